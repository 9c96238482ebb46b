"""The layers of the backbone: routing of rows, norms, attention, feed-forward networks, DualFFN, audio embeddings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, LlamaConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from higgs_audio.config import HiggsAudioConfig


@dataclass(frozen=True)
class Route:
    """The order of a batch's positions inside the layers: computed once per forward pass, used by every layer.

    Hidden states are rows `[N, D]`: text rows first, then audio rows, without padding. Only attention uses `[B, T]`.

    Attributes:
        batch: number of sequences, B.
        num_text: number of text rows.
        row_positions: `[N]`, index of each row in the flattened B * T positions; None if every position is audio and in
            order (the decode step), so that nothing is reordered.
        position_rows: `[B * T]`, index of the row of each position; 0 for padding.
    """

    batch: int
    num_text: int
    row_positions: Tensor | None = None
    position_rows: Tensor | None = None

    def gather(self, positions: Tensor) -> Tensor:
        """Gathers positions `[B, T, ...]` into rows `[N, ...]`."""
        flat = positions.flatten(0, 1)
        return flat if self.row_positions is None else flat.index_select(0, self.row_positions)

    def scatter(self, rows: Tensor) -> Tensor:
        """Scatters rows `[N, ...]` to positions `[B, T, ...]`; padding receives row 0, which the mask hides."""
        flat = rows if self.position_rows is None else rows.index_select(0, self.position_rows)
        return flat.unflatten(0, (self.batch, -1))

    def apply(self, text: nn.Module, audio: nn.Module | None, rows: Tensor) -> Tensor:
        """Applies `text` to the text rows and `audio` to the audio rows; `text` to all rows if `audio` is None."""
        if audio is None or self.num_text == rows.shape[0]:
            return text(rows)
        if self.num_text == 0:
            return audio(rows)
        text_rows, audio_rows = rows.split([self.num_text, len(rows) - self.num_text])
        return torch.cat([text(text_rows), audio(audio_rows)])


def make_route(audio: Tensor, attended: Tensor | None) -> Route:
    """Returns the route of a batch from its audio mask `[B, T]` and attention mask `[B, T]` (1 = not padding)."""
    real = torch.ones_like(audio) if attended is None else attended.bool()
    text_rows = (~audio & real).flatten().nonzero().squeeze(1)
    audio_rows = (audio & real).flatten().nonzero().squeeze(1)
    row_positions = torch.cat([text_rows, audio_rows])  # [N]
    position_rows = torch.zeros(audio.numel(), dtype=torch.long, device=audio.device)
    position_rows[row_positions] = torch.arange(len(row_positions), device=audio.device)
    return Route(audio.shape[0], len(text_rows), row_positions, position_rows)


class RMSNorm(nn.Module):
    """Root-mean-square norm, `x / rms(x) * weight`, computed in fp32 as in Llama."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class FeedForward(nn.Module):
    """Gated feed-forward network: `down(act(gate(x)) * up(x))`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class RotaryEmbedding(nn.Module):
    """Rotary position embedding, with the scaling in `config.rope_parameters`, such as llama3."""

    inv_freq: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)

    def frequencies(self) -> Tensor:
        """Returns the angles in radians per position, `[H / 2]`."""
        parameters: Any = self.config.rope_parameters
        if parameters["rope_type"] != "default":
            return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](self.config)[0]
        exponents = torch.arange(0, head_width(self.config), 2, dtype=torch.float) / head_width(self.config)
        return torch.as_tensor(parameters["rope_theta"]) ** -exponents

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the cosines and sines, each `[B, T, 1, H]`, of `positions [B, T]`."""
        angles = positions[..., None].float() * self.inv_freq.float()  # [B, T, H / 2]
        angles = torch.cat([angles, angles], dim=-1)[:, :, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the halves of each head of `[B, T, N, H]`."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Attention without fused kernels: the backend "eager".

    Args:
        module: the attention layer; dropout is active when it is in training mode.
        query: `[B, N, T, H]`.
        key, value: `[B, N_kv, T', H]`.
        attention_mask: added to the scores, broadcast to `[B, N, T, T']`.
        **options: `scaling`, a factor of the scores, and `dropout`.

    Returns:
        The output `[B, T, N, H]`, and the weights `[B, N, T, T']`.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * options["scaling"]
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, options.get("dropout", 0.0), module.training)
    return (weights @ value).transpose(1, 2), weights


def head_width(config: LlamaConfig) -> int:
    """Returns the width of an attention head, H."""
    return config.head_dim or config.hidden_size // config.num_attention_heads


class Attention(nn.Module):
    """Grouped-query self-attention, shared by text and audio."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer, True
        self.head_dim = head_width(config)
        num_shared = config.num_key_value_heads or config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // num_shared
        inner, shared = config.num_attention_heads * self.head_dim, num_shared * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)

    def queries_and_keys(self, rows: Tensor, route: Route, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the rotated queries `[B, T, N, H]` and keys `[B, T, N_kv, H]` of normalized rows `[N, D]`."""
        query, key = (route.scatter(p(rows)).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj))
        return rotate(query, *rotary), rotate(key, *rotary)

    def forward(
        self, rows: Tensor, route: Route, rotary: tuple[Tensor, Tensor], mask: Any, cache: Cache | None, **options: Any
    ) -> Tensor:
        """Maps normalized rows `[N, D]` to rows `[N, D]`.

        Args:
            rows, route: the hidden states and their order.
            rotary: cosines and sines of the positions, `[B, T, 1, H]`.
            mask: attention mask in the format of the backend: a tensor, a block mask, or None.
            cache: extended by the new keys and values; without a cache, the call attends to its own keys only.
            **options: passed to the attention function.
        """
        query, key = (x.transpose(1, 2) for x in self.queries_and_keys(rows, route, rotary))  # [B, N, T, H]
        value = route.scatter(self.v_proj(rows)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        dropout = self.config.attention_dropout if self.training else 0.0
        out, _ = self._backend()(self, query, key, value, mask, dropout=dropout, scaling=self.head_dim**-0.5, **options)
        return self.o_proj(route.gather(out.flatten(2)))

    def _backend(self) -> Callable[..., tuple[Tensor, Any]]:
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)


class DualFFNLayer(GradientCheckpointingLayer):
    """A decoder layer: text and audio rows share the attention; with `dual`, audio rows have their own norms and
    feed-forward network."""

    def __init__(self, config: LlamaConfig, layer: int, dual: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.audio_mlp = FeedForward(config) if dual else None
        self.audio_input_layernorm = RMSNorm(width, eps) if dual else None
        self.audio_post_attention_layernorm = RMSNorm(width, eps) if dual else None

    @property
    def text_modules(self) -> tuple[RMSNorm, RMSNorm, FeedForward]:
        """For text rows: the norm before attention, the norm before the feed-forward network, and that network."""
        return self.input_layernorm, self.post_attention_layernorm, self.mlp

    @property
    def audio_modules(self) -> tuple[RMSNorm, RMSNorm, FeedForward]:
        """The same modules for audio rows."""
        return (
            self.audio_input_layernorm or self.input_layernorm,
            self.audio_post_attention_layernorm or self.post_attention_layernorm,
            self.audio_mlp or self.mlp,
        )

    def forward(self, rows: Tensor, route: Route, *attention: Any, **options: Any) -> Tensor:
        """Maps rows `[N, D]` to rows `[N, D]`, in the order of operations of the published DualFFN.

        Args:
            rows, route: the hidden states and their order.
            *attention, **options: the other arguments of `Attention.forward`.
        """
        normed = route.apply(self.input_layernorm, self.audio_input_layernorm, rows)
        rows = rows + self.self_attn(normed, route, *attention, **options)
        normed = route.apply(self.post_attention_layernorm, self.audio_post_attention_layernorm, rows)
        return rows + route.apply(self.mlp, self.audio_mlp, normed)


class AudioEmbeddings(nn.Module):
    """One embedding matrix for all codebooks; the embedding of a column is the sum over its K codes."""

    offsets: Tensor

    def __init__(self, config: HiggsAudioConfig, width: int) -> None:
        super().__init__()
        self.num_codebooks, self.num_rows = config.audio_num_codebooks, config.codebook_rows
        self.embed_audio_tokens = nn.Embedding(self.num_codebooks * self.num_rows, width)
        self.register_buffer("offsets", self.first_rows(), persistent=False)

    def first_rows(self) -> Tensor:
        """Returns the first row of each codebook in the matrix, `[K]`."""
        return torch.arange(self.num_codebooks) * self.num_rows

    def forward(self, codes: Tensor) -> Tensor:
        """Embeds delayed columns `[..., K]`, ids 0 to V + 1, as `[..., D]`."""
        return self.embed_audio_tokens(codes + self.offsets).sum(-2)
