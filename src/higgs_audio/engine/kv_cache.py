"""The KV cache: one slot per sequence, two with guidance, in one tensor.

The slots in use come first, without gaps, so that the batch of a step is a view. Memory is allocated on demand, by
doubling, up to the limit of the engine: the worst case of a request is known before it is admitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig

from higgs_audio.model.layers import head_width

INITIAL_POSITIONS = 256


@dataclass(frozen=True)
class SavedSlot:
    """A copy of the first positions of a slot: `state [L, 2, N_kv, T, H]`."""

    state: Tensor

    @property
    def length(self) -> int:
        """Number of positions, T."""
        return self.state.shape[3]

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values."""
        return self.state.numel() * self.state.element_size()


class SharedPrefixes:
    """Prefixes that several slots loaded from one saved copy.

    C reads the saved copy instead of the slots: a single copy stays in a core's cache.

    Args:
        parts: for each slot the copy and the number of positions loaded from it, or None.

    Attributes:
        saved: for each slot the copy, or None.
        pointers, counts, lengths: `[R]` int64 on the CPU: the addresses of the copies (0 for none), the numbers of
            positions loaded, the numbers of positions in the copies.
    """

    def __init__(self, parts: Sequence[tuple[SavedSlot, int] | None]) -> None:
        self.saved = [None if part is None else part[0] for part in parts]  # keeps the memory behind the pointers alive
        columns = (
            [0 if saved is None else saved.state.data_ptr() for saved in self.saved],
            [0 if part is None else part[1] for part in parts],
            [0 if saved is None else saved.length for saved in self.saved],
        )
        tensors = (torch.tensor(column, dtype=torch.long, device="cpu") for column in columns)
        self.pointers, self.counts, self.lengths = tensors
        assert bool((self.counts <= self.lengths).all())


class KVCache:
    """Keys and values of all layers.

    Args:
        config: config of the backbone.
        max_slots, max_positions: the maximum size.
        dtype, device: dtype and device of the model.
        initial_positions: positions of each slot that are allocated at first.
    """

    def __init__(
        self,
        config: LlamaConfig,
        max_slots: int,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device,
        initial_positions: int = INITIAL_POSITIONS,
    ) -> None:
        self.max_slots, self.max_positions = max_slots, max_positions
        self._initial_positions = initial_positions
        heads = config.num_key_value_heads or config.num_attention_heads
        self._shape = (config.num_hidden_layers, 2, heads, head_width(config))  # L, 2, N_kv, H
        self._state = torch.empty(self._full_shape(0, 0), dtype=dtype, device=device)  # [L, 2, R, N_kv, T, H]

    @property
    def state(self) -> Tensor:
        """All keys and values, `[L, 2, R, N_kv, T, H]`; replaced when the cache grows."""
        return self._state

    @property
    def num_bytes(self) -> int:
        """Bytes that are allocated now."""
        return self._state.numel() * self._state.element_size()

    def matches(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the cache has this device and dtype."""
        return self._state.device == device and self._state.dtype == dtype

    def reserve(self, num_slots: int, num_positions: int) -> None:
        """Allocates memory for at least `num_slots` slots of `num_positions` positions; keeps the contents."""
        slots, positions = self._state.shape[2], self._state.shape[4]
        assert num_slots <= self.max_slots and num_positions <= self.max_positions
        if num_slots <= slots and num_positions <= positions:
            return
        slots = min(self.max_slots, _doubled(slots or 1, num_slots))
        positions = min(self.max_positions, _doubled(positions or self._initial_positions, num_positions))
        old = self._state
        with torch.inference_mode(False):  # an inference tensor could not be modified outside of inference mode
            # zeros, because uninitialized memory may contain NaN; see `zero`
            self._state = torch.zeros(self._full_shape(slots, positions), dtype=old.dtype, device=old.device)
        self._state[:, :, : old.shape[2], :, : old.shape[4]] = old

    def release(self) -> None:
        """Frees all memory."""
        self._state = self._state.new_empty(self._full_shape(0, 0))

    def layers(self, num_slots: int, length: int) -> tuple[Tensor, ...]:
        """Returns for each layer a view `[2, R, N_kv, T, H]` of the first slots and positions."""
        return self._state[:, :, :num_slots, :, :length].unbind(0)

    def write(self, layer: int, slot: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Writes keys and values `[N_kv, t, H]` at the positions from `start` on."""
        stop = start + keys.shape[1]
        self._state[layer, 0, slot, :, start:stop] = keys
        self._state[layer, 1, slot, :, start:stop] = values

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of a slot to another slot."""
        self._state[:, :, target, :, :length] = self._state[:, :, source, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of a slot to another slot and zeroes the source."""
        self.copy(source, target, length)
        self.zero(source, length)

    def zero(self, slot: int, length: int) -> None:
        """Zeroes the first positions of a slot: attention multiplies masked values by 0, and 0 times NaN is NaN."""
        self._state[:, :, slot, :, :length] = 0

    def save(self, slot: int, length: int) -> SavedSlot:
        """Returns a copy of the first positions of a slot."""
        return SavedSlot(self._state[:, :, slot, :, :length].clone(memory_format=torch.contiguous_format))

    def load(self, slot: int, saved: SavedSlot, length: int | None = None) -> None:
        """Writes a saved copy, or its first `length` positions, to a slot."""
        length = saved.length if length is None else length
        self._state[:, :, slot, :, :length] = saved.state[:, :, :, :length]

    def _full_shape(self, slots: int, positions: int) -> tuple[int, ...]:
        layers, two, heads, width = self._shape
        return layers, two, slots, heads, positions, width


def slot_bytes(config: LlamaConfig, num_positions: int, dtype: torch.dtype) -> int:
    """Returns the bytes of one slot of `num_positions` positions."""
    heads = config.num_key_value_heads or config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_width(config) * num_positions * dtype.itemsize


def _doubled(size: int, minimum: int) -> int:
    while size < minimum:
        size *= 2
    return size
