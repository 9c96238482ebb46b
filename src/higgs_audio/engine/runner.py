"""The model on the rows of a KV cache: prompts are read in pieces, then all rows take one step together."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.engine.kv_cache import KVCache
from higgs_audio.errors import OptionError, nearest
from higgs_audio.layers import DualFFNLayer, RMSNorm, Route, rotate
from higgs_audio.model import HiggsAudioForConditionalGeneration

PLAIN = (nn.Linear, RMSNorm)  # what has weights
BACKENDS = ("sdpa", "eager")  # attention that takes a mask


class Runner:
    """Forward passes of one model over one cache.

    Args:
        model: in eval mode.
        cache: of its sizes.
        fused: join matrices that read the same rows, where they are plain; None: where they are.
    """

    def __init__(self, model: HiggsAudioForConditionalGeneration, cache: KVCache, fused: bool | None = None) -> None:
        self.model, self.cache = model, cache
        self._trunk = model.model
        backend = self._trunk.text_config._attn_implementation
        if backend not in BACKENDS:
            raise OptionError(f"attention {backend!r}: an engine needs a mask; {nearest(str(backend), BACKENDS)}")
        self._adds_mask = backend == "eager"
        plain = all(is_plain(layer) for layer in self._trunk.layers)
        self.fused = plain if fused is None else fused and plain
        layers: Any = self._trunk.layers
        self._layers = [FusedLayer(layer) if self.fused else layer for layer in layers]

    @torch.inference_mode()
    def read(self, rows: Sequence[int], ids: Tensor, columns: Tensor, start: int) -> None:
        """A piece of a prompt, for one row or for the same positions of several.

        Args:
            rows: of the cache.
            ids: `[R, t]` the token ids from position `start` on; rows differ in text only.
            columns: `[F, K]` of the piece's placeholders, F at least 0.
            start: its first position.
        """
        stop = start + ids.shape[1]
        self.cache.reserve(max(rows) + 1, stop)
        codes = columns.expand(len(rows), -1, -1) if len(columns) else None
        way, embeds = self._trunk._embed(ids, None, codes, None, None, None)
        positions = torch.arange(start, stop, device=ids.device).expand(len(rows), -1)
        rotary = self._trunk.rotary_emb(positions, embeds.dtype)
        known = start == 0 and not self._adds_mask  # the attention masks a whole prompt by itself
        mask = None if known else self._mask(_causal(ids.shape[1], start, embeds.device))
        place, hidden = _Span(self.cache, rows, start), way.take(embeds)
        for layer in self._trunk.layers:
            hidden = layer(hidden, way, rotary, mask, place)

    @torch.inference_mode()
    def step(self, columns: Tensor, positions: Tensor, length: int) -> Tensor:
        """One column of every row: `[R, K]` at `positions [R]`, all below `length` -> logits `[R, K, V + 2]`."""
        self.cache.reserve(len(columns), length)
        rotary = self._trunk.rotary_emb(positions[:, None], self.model.dtype)
        place = _Step(self.cache, positions, length)
        seen = torch.arange(length, device=positions.device) <= positions[:, None]  # [R, T]
        mask = self._mask(seen[:, None, None])
        hidden = self._trunk.embed_audio_tokens(columns)  # [R, D]
        for layer in self._layers:
            hidden = layer(hidden, Route(len(columns), 0), rotary, mask, place)
        return self.model.audio_logits(self._trunk.norm(hidden))

    def _mask(self, seen: Tensor) -> Tensor | None:
        """Which positions see which, as the attention takes it; None where all see all."""
        if bool(seen.all()):
            return None
        return torch.where(seen, 0.0, float("-inf")).to(self.model.dtype) if self._adds_mask else seen


class Place(Protocol):
    """What a layer's attention needs of a cache."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keeps `[R, N_kv, t, H]`; returns all keys and values up to there, `[R, N_kv, T, H]`."""


class _Span:
    """A piece of a prompt in some rows."""

    def __init__(self, cache: KVCache, rows: Sequence[int], start: int) -> None:
        self._cache, self._rows, self._start = cache, rows, start

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        for number, row in enumerate(self._rows):
            self._cache.write_span(layer, row, self._start, keys[number], values[number])
        stop, first, last = self._start + keys.shape[2], min(self._rows), max(self._rows)
        known = self._cache.layer(layer, last + 1, stop)
        if len(self._rows) == 1:
            return known[0][first:], known[1][first:]
        index = torch.tensor(self._rows, device=keys.device)
        return known[0][index], known[1][index]


class _Step:
    """One position of every row."""

    def __init__(self, cache: KVCache, positions: Tensor, length: int) -> None:
        self._cache, self._positions, self._length = cache, positions, length
        self._rows = torch.arange(len(positions), device=positions.device)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        self._cache.write(layer, self._rows, self._positions, keys[:, :, 0], values[:, :, 0])
        return self._cache.layer(layer, len(self._positions), self._length)


class FusedLayer:
    """A layer for rows that are all audio, its matrices joined: fewer and wider products.

    The layer's own weights become views of the joined ones, so that nothing is held twice.
    """

    def __init__(self, layer: DualFFNLayer) -> None:
        attention, feed = layer.self_attn, layer.audio_mlp or layer.mlp
        norms = (
            layer.audio_input_layernorm or layer.input_layernorm,
            layer.audio_post_attention_layernorm or layer.post_attention_layernorm,
        )
        self._norms = [(norm.weight, norm.eps) for norm in norms]
        self._attention, self._feed = attention, feed
        self._qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = joined(feed.gate_proj, feed.up_proj)
        self._heads = [
            p.out_features // attention.head_dim for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]

    def __call__(self, hidden: Tensor, way: Route, rotary: tuple[Tensor, Tensor], mask: Any, place: Place) -> Tensor:
        """Rows `[R, D]` to rows `[R, D]`."""
        attention, (weight, eps) = self._attention, self._norms[0]
        heads = F.linear(F.rms_norm(hidden, weight.shape, weight, eps), *self._qkv)
        heads = heads.unflatten(-1, (-1, attention.head_dim))[:, None]  # [R, 1, N + 2 N_kv, H]
        turned, value = heads.split([self._heads[0] + self._heads[1], self._heads[2]], dim=2)
        query, key = rotate(turned, *rotary).split(self._heads[:2], dim=2)
        keys, values = place.update(key.transpose(1, 2), value.transpose(1, 2), attention.layer_idx)
        grouped = self._heads[0] != self._heads[1]
        seen = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, mask, enable_gqa=grouped)
        hidden = hidden + attention.o_proj(seen.flatten(1))
        weight, eps = self._norms[1]
        gate, up = F.linear(F.rms_norm(hidden, weight.shape, weight, eps), *self._gate_up).chunk(2, dim=-1)
        return hidden + self._feed.down_proj(self._feed.act(gate) * up)


def joined(*projections: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One weight and one bias of projections that read the same rows; theirs become views of them."""
    sizes = [projection.out_features for projection in projections]
    weight = torch.cat([projection.weight.detach() for projection in projections])
    bias = None if projections[0].bias is None else torch.cat([projection.bias.detach() for projection in projections])
    for number, part in enumerate(weight.split(sizes)):
        projections[number].weight.data = part
    for number, part in enumerate(() if bias is None else bias.split(sizes)):
        projections[number].bias.data = part
    return weight, bias


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is made of torch's own matrices, in one place: no adapters, nothing quantised or offloaded."""
    weights, parts = list(layer.parameters()), list(layer.modules())
    return (
        all(type(part) in PLAIN or not list(part.parameters(recurse=False)) for part in parts)
        and all(type(weight) is nn.Parameter for weight in weights)
        and len({(weight.device, weight.dtype) for weight in weights}) == 1
        and not any(part._forward_pre_hooks or part._forward_hooks for part in parts)
    )


def _causal(length: int, start: int, device: torch.device) -> Tensor:
    """Which positions see which, `[1, 1, t, T]`."""
    return torch.ones(length, start + length, dtype=torch.bool, device=device).tril(start)[None, None]
