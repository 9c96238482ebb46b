"""Where a forward pass keeps keys and values: views of the KV cache for a prefill and for a decode step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from higgs_audio.engine.kv_cache import KVCache


@dataclass(frozen=True, eq=False)
class PrefillChunk:
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


class PrefillView:
    """Pieces of prompts in their rows, the keys and values of others hidden by the mask."""

    def __init__(self, cache: KVCache, pieces: Sequence[PrefillChunk], length: int) -> None:
        self._cache, self._pieces = cache, pieces
        self._rows = torch.tensor([piece.row for piece in pieces], device=cache.state.device)
        self._known = cache.layers(cache.state.shape[2], length)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        for number, piece in enumerate(self._pieces):
            size = len(piece.ids)
            self._cache.write_span(layer, piece.row, piece.start, keys[number, :, :size], values[number, :, :size])
        known = self._known[layer].index_select(1, self._rows)  # [2, B, N_kv, T, H]
        return known[0], known[1]


class DecodeView:
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
