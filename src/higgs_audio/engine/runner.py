"""The model on the rows of a KV cache: prompts are read in pieces, then all rows take one step together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from higgs_audio.checks import audio_mask
from higgs_audio.engine.kv_cache import KVCache, Shared
from higgs_audio.engine.trunk import native_trunk
from higgs_audio.errors import OptionError, nearest
from higgs_audio.layers import DualFFNLayer, RMSNorm, Route
from higgs_audio.model import HiggsAudioForConditionalGeneration

PLAIN = (nn.Linear, RMSNorm)  # what has weights
BACKENDS = ("sdpa", "eager")  # attention that takes a mask


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of a prompt for a row of the cache: token ids `[t]` from position `start` on, and the columns `[F, K]`
    of its placeholders, both on the CPU.
    """

    row: int
    ids: Tensor
    columns: Tensor
    start: int

    @property
    def stop(self) -> int:
        """The position behind it."""
        return self.start + len(self.ids)

    @property
    def positions(self) -> Tensor:
        """`[t]`."""
        return torch.arange(self.start, self.stop, device="cpu")


class Runner:
    """Forward passes of one model over one cache.

    Args:
        model: in eval mode.
        cache: of its sizes.
        fused: few operations where layers are plain, in C (`NativeTrunk`) or with matrices joined that read the same
            rows; None: where they are.
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
        positions = torch.arange(cache.max_positions, device=model.device)[None]
        self._turns = turning(*self._trunk.rotary_emb(positions, model.dtype))  # [T, 2, 1, H]
        self._native = native_trunk(model, self._turns) if self.fused else None
        layers: Any = self._trunk.layers if self.fused and self._native is None else []
        self._fused = [FusedLayer(layer) for layer in layers]
        self._last = FusedNorm(self._trunk.norm) if self.fused and is_plain(self._trunk.norm) else self._trunk.norm

    @property
    def is_current(self) -> bool:
        """Whether the joined matrices are still the model's: they are not where it was moved or converted."""
        fused = all(layer.is_current for layer in self._fused)
        native = self._native is None or self._native.is_current
        return self.cache.fits(self.model.device, self.model.dtype) and fused and native

    @property
    def is_invariant(self) -> bool:
        """Whether a position has the same numbers whatever it is read with."""
        return self._native is not None

    def cost(self, sizes: Sequence[int]) -> int:
        """Positions that pieces of such sizes are to `read`: torch fills the shorter ones up."""
        return sum(sizes) if self.is_invariant else len(sizes) * max(sizes, default=0)

    @torch.inference_mode()
    def read(self, pieces: Sequence[Piece]) -> None:
        """Pieces of prompts, each in a row of its own."""
        length = max(piece.stop for piece in pieces)
        self.cache.reserve(1 + max(piece.row for piece in pieces), length)
        if self._native is None:
            self._read_in_torch(pieces, length)
            return
        ids = torch.cat([piece.ids for piece in pieces])  # [N]
        columns = torch.cat([piece.columns for piece in pieces])  # [F, K]
        audio = audio_mask(ids, self.model.config)  # [N]
        order = torch.cat([(~audio).nonzero(), audio.nonzero()])[:, 0]
        written = self._trunk.embed_tokens(ids[~audio])
        rows = torch.cat([written, self._trunk.embed_audio_tokens(columns)])  # [N, D]
        sequences = torch.cat([torch.full_like(piece.ids, piece.row) for piece in pieces])
        positions = torch.cat([piece.positions for piece in pieces])
        self._native(rows, len(written), 0, sequences[order], positions[order], self.cache)

    def _read_in_torch(self, pieces: Sequence[Piece], length: int) -> None:
        """One batch `[B, t]`, shorter pieces filled up on the right."""
        device = self.model.device
        padding = self.model.config.pad_token_id or 0
        ids = pad_sequence([piece.ids for piece in pieces], True, padding).to(device)  # [B, t]
        positions = pad_sequence([piece.positions for piece in pieces], True).to(device)  # [B, t]
        real = pad_sequence([torch.ones_like(piece.ids) for piece in pieces], True).to(device)  # [B, t]
        columns = pad_sequence([piece.columns for piece in pieces], True).to(device)  # [B, F, K]
        filled = pad_sequence([torch.ones(len(piece.columns)).bool() for piece in pieces], True).to(device)  # [B, F]
        codes = (columns, filled) if columns.shape[1] else (None, None)
        way, embeds = self._trunk.embed(ids, real, *codes, None, None)
        rotary = self._trunk.rotary_emb(positions, embeds.dtype)
        seen = torch.arange(length, device=device) <= positions[:, :, None]  # [B, t, T]
        is_whole = not self._adds_mask and all(len(piece.ids) == length for piece in pieces)
        mask = None if is_whole else self._mask(seen[:, None])  # the attention masks whole prompts by itself
        place, hidden = _Spans(self.cache, pieces, length), way.take(embeds)
        for layer in self._trunk.layers:
            hidden = layer(hidden, way, rotary, mask, place)

    @torch.inference_mode()
    def step(self, columns: Tensor, positions: Sequence[int], shared: Shared | None = None) -> Tensor:
        """One column of every row: `[R, K]` at `positions`, which the host knows -> logits `[R, K, V + 2]`.

        Where their beginnings are `shared`, C reads them there.
        """
        length = 1 + max(positions)
        self.cache.reserve(len(columns), length)
        places = torch.tensor(positions, device=columns.device)  # [R]
        hidden = self._trunk.embed_audio_tokens(columns)  # [R, D]
        if self._native is not None:
            sequences = torch.arange(len(hidden), device="cpu")
            logits = self._native(hidden, 0, len(hidden), sequences, places, self.cache, shared)
            return logits.unflatten(-1, (self.model.config.audio_num_codebooks, -1))
        uneven = min(positions) + 1 < length
        mask = None
        if uneven:
            seen = torch.arange(length, device=places.device) <= places[:, None]  # [R, T]
            mask = self._mask(seen[:, None, None])
        place = _Step(self.cache, places, length, uneven)
        if self.fused:
            turn = self._turns[places]  # [R, 2, 1, H]
            for layer in self._fused:
                hidden = layer(hidden, turn, mask, place)
        else:
            rotary = self._trunk.rotary_emb(places[:, None], self.model.dtype)
            for layer in self._trunk.layers:
                hidden = layer(hidden, Route(len(columns), 0), rotary, mask, place)
        return self.model.audio_logits(self._last(hidden))

    def _mask(self, seen: Tensor) -> Tensor:
        """Which positions see which, as the attention takes it."""
        return torch.where(seen, 0.0, float("-inf")).to(self.model.dtype) if self._adds_mask else seen


class _Spans:
    """Pieces of prompts in their rows, the keys and values of others hidden by the mask."""

    def __init__(self, cache: KVCache, pieces: Sequence[Piece], length: int) -> None:
        self._cache, self._pieces = cache, pieces
        self._rows = torch.tensor([piece.row for piece in pieces], device=cache.state.device)
        self._known = cache.layers(cache.state.shape[2], length)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        for number, piece in enumerate(self._pieces):
            size = len(piece.ids)
            self._cache.write_span(layer, piece.row, piece.start, keys[number, :, :size], values[number, :, :size])
        known = self._known[layer].index_select(1, self._rows)  # [2, B, N_kv, T, H]
        return known[0], known[1]


class _Step:
    """One position of every row; `uneven` where rows are of different lengths."""

    def __init__(self, cache: KVCache, positions: Tensor, length: int, uneven: bool) -> None:
        self._positions, self._last, self._uneven = positions, length - 1, uneven
        self._rows = torch.arange(len(positions), device=positions.device)
        self._known = cache.layers(len(positions), length)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return self.put(torch.stack([keys[:, :, 0], values[:, :, 0]], dim=1), layer)

    def put(self, pairs: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keeps keys and values `[R, 2, N_kv, H]`; returns all of them, `[R, N_kv, T, H]` each."""
        known = self._known[layer]  # [2, R, N_kv, T, H]
        if self._uneven:
            known[:, self._rows, :, self._positions] = pairs
        else:
            known[:, :, :, self._last].copy_(pairs.transpose(0, 1))
        keys, values = known.unbind(0)
        return keys, values


def turning(cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` as x * a + (x, halves exchanged) * b: cosines and sines `[1, T, 1, H]` -> a and b, `[T, 2, 1, H]`."""
    first, second = sin[0].chunk(2, dim=-1)
    return torch.stack([cos[0], torch.cat([-first, second], dim=-1)], dim=1)


class FusedLayer:
    """A layer for rows that are all audio, its matrices joined and few operations: a step of a small model is mostly
    their overhead.

    The layer's own weights become views of the joined ones, so that nothing is held twice.
    """

    def __init__(self, layer: DualFFNLayer) -> None:
        attention, (before, between, feed) = layer.self_attn, layer.of_audio
        self._before, self._between = FusedNorm(before), FusedNorm(between)
        self._qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = joined(feed.gate_proj, feed.up_proj)
        self._views = ((self._qkv, attention.q_proj), (self._gate_up, feed.gate_proj))
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        parts: list[tuple[nn.Module, str]] = [(attention, name) for name in names]
        parts += [(feed, name) for name in ("gate_proj", "up_proj", "down_proj", "act")]
        self._parts = [(owner, name, getattr(owner, name)) for owner, name in parts]
        self._out, self._down, self._act = attention.o_proj, feed.down_proj, feed.act
        self._number, self._width = attention.layer_idx, attention.head_dim
        self.num_values = attention.v_proj.out_features // self._width  # N_kv
        self._num_queries = attention.q_proj.out_features // self._width  # N
        self._grouped = self._num_queries != self.num_values

    @property
    def is_current(self) -> bool:
        """Whether the layer's matrices still are the same, no adapter around them, and views of the joined ones."""
        same = all(getattr(owner, name) is part for owner, name, part in self._parts)
        return same and all(joined[0].data_ptr() == part.weight.data_ptr() for joined, part in self._views)

    def __call__(self, hidden: Tensor, turn: Tensor, mask: Tensor | None, place: "_Step") -> Tensor:
        """Rows `[R, D]` to rows `[R, D]`; `turn [R, 2, 1, H]` is of `turning`."""
        heads = F.linear(self._before(hidden), *self._qkv).unflatten(-1, (-1, self._width))
        turned, (here, there) = heads[:, : -self.num_values], turn.unbind(1)  # [R, N + N_kv, H]
        turned.copy_(torch.addcmul(turned * here, turned.roll(self._width // 2, -1), there))
        query, pairs = heads.tensor_split((self._num_queries,), dim=1)
        keys, values = place.put(pairs.unflatten(1, (2, -1)), self._number)
        seen = F.scaled_dot_product_attention(query[:, :, None], keys, values, mask, enable_gqa=self._grouped)
        hidden = added(hidden, seen.flatten(1), self._out)
        gate, up = F.linear(self._between(hidden), *self._gate_up).chunk(2, dim=-1)
        return added(hidden, self._act(gate).mul_(up), self._down)


class FusedNorm:
    """`RMSNorm` in few operations: one kernel on a GPU; on a CPU torch has none, and a norm and a hypotenuse do."""

    def __init__(self, norm: RMSNorm) -> None:
        self._norm, (self._size,) = norm, norm.weight.shape
        self._least = torch.tensor((self._size * norm.eps) ** 0.5, device=norm.weight.device)
        self._is_plain = norm.weight.device.type == "cpu" and norm.weight.dtype == torch.float32

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows `[R, D]` to rows `[R, D]`."""
        if not self._is_plain:
            return F.rms_norm(rows, (self._size,), self._norm.weight, self._norm.eps)
        length = torch.hypot(torch.linalg.vector_norm(rows, dim=-1, keepdim=True), self._least)  # sqrt(D) rms
        return rows * (self._norm.weight / length) * self._size**0.5


def added(rows: Tensor, x: Tensor, projection: nn.Linear) -> Tensor:
    """`rows + projection(x)`, in one operation where there is no bias."""
    if projection.bias is None:
        return torch.addmm(rows, x, projection.weight.t())
    return rows + projection(x)


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
