"""Views of the KV cache for attention layers, in prefill and in decode steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from higgs_audio.engine.kv_cache import KVCache


@dataclass(frozen=True, eq=False)
class PrefillChunk:
    """Consecutive positions of a prompt, to be prefilled into one slot.

    Attributes:
        slot: slot of the KV cache.
        ids: `[t]` token ids, on the CPU.
        columns: `[F, K]`, the columns of the placeholders among them, on the CPU.
        start: the first position.
    """

    slot: int
    ids: Tensor
    columns: Tensor
    start: int

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.start + len(self.ids)

    @property
    def positions(self) -> Tensor:
        """The positions of the chunk, `[t]`."""
        return torch.arange(self.start, self.stop, device="cpu")


class PrefillView:
    """The slots of a batch of chunks. The attention mask hides positions of longer slots and padding.

    Args:
        cache: a cache with memory for the chunks.
        chunks: one per slot.
        length: number of positions that attention reads.
    """

    def __init__(self, cache: KVCache, chunks: Sequence[PrefillChunk], length: int) -> None:
        self._cache, self._chunks = cache, chunks
        self._slots = torch.tensor([chunk.slot for chunk in chunks], device=cache.state.device)
        self._layers = cache.layers(cache.state.shape[2], length)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Writes keys and values `[B, N_kv, t, H]`; returns the ones of all positions, `[B, N_kv, T, H]` each."""
        for index, chunk in enumerate(self._chunks):
            size = len(chunk.ids)
            self._cache.write(layer, chunk.slot, chunk.start, keys[index, :, :size], values[index, :, :size])
        cached = self._layers[layer].index_select(1, self._slots)  # [2, B, N_kv, T, H]
        return cached[0], cached[1]


class DecodeView:
    """One new position of each of the first slots.

    Args:
        cache: a cache with memory for the positions.
        positions: `[R]`, the new position of each slot.
        length: number of positions that attention reads, one more than the highest position.
        is_ragged: whether positions differ.
    """

    def __init__(self, cache: KVCache, positions: Tensor, length: int, is_ragged: bool) -> None:
        self._positions, self._last, self._is_ragged = positions, length - 1, is_ragged
        self._slots = torch.arange(len(positions), device=positions.device)
        self._layers = cache.layers(len(positions), length)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Calls `write` with keys and values `[R, N_kv, 1, H]`."""
        return self.write(torch.stack([keys[:, :, 0], values[:, :, 0]], dim=1), layer)

    def write(self, keys_values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Writes keys and values `[R, 2, N_kv, H]`; returns the ones of all positions, `[R, N_kv, T, H]` each."""
        cached = self._layers[layer]  # [2, R, N_kv, T, H]
        if self._is_ragged:
            cached[:, self._slots, :, self._positions] = keys_values
        else:
            cached[:, :, :, self._last].copy_(keys_values.transpose(0, 1))
        keys, values = cached.unbind(0)
        return keys, values
