"""Keys and values of all rows that run, in one tensor a layer. Rows 0 to R - 1 are in use, without holes.

Memory is taken as it is needed, by doubling, up to what the engine was given: a row's worst case is known before it is
admitted. Without holes, a step's batch is a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig

from higgs_audio.model.layers import head_width

FIRST_POSITIONS = 256


@dataclass(frozen=True)
class Saved:
    """The keys and values of one row: `[L, 2, N_kv, T, H]`."""

    state: Tensor

    @property
    def length(self) -> int:
        """Positions, T."""
        return self.state.shape[3]

    @property
    def num_bytes(self) -> int:
        return self.state.numel() * self.state.element_size()


class Shared:
    """First positions of rows that were loaded from what is saved, where all of them can read it: memory is read faster
    where it is the same.

    Args:
        parts: of each row what was loaded, and how many of its positions; None where nothing was.

    Attributes:
        saved: of each row, None where it shares nothing.
        pointers, counts, sizes: `[R]` int64 on the CPU: where that lies (0 for nothing), positions shared and positions
            saved.
    """

    def __init__(self, parts: Sequence[tuple[Saved, int] | None]) -> None:
        self.saved = [None if part is None else part[0] for part in parts]  # kept, as pointers do not
        columns = (
            [0 if saved is None else saved.state.data_ptr() for saved in self.saved],
            [0 if part is None else part[1] for part in parts],
            [0 if saved is None else saved.length for saved in self.saved],
        )
        tensors = (torch.tensor(column, dtype=torch.long, device="cpu") for column in columns)
        self.pointers, self.counts, self.sizes = tensors
        assert bool((self.counts <= self.sizes).all())


class KVCache:
    """Rows of keys and values.

    Args:
        config: of the trunk.
        max_rows, max_positions: what it may grow to.
        dtype, device: of the model.
    """

    def __init__(
        self, config: LlamaConfig, max_rows: int, max_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.max_rows, self.max_positions = max_rows, max_positions
        heads = config.num_key_value_heads or config.num_attention_heads
        self._shape = (config.num_hidden_layers, 2, heads, head_width(config))  # L, 2, N_kv, H
        self._state = torch.empty(self._sized(0, 0), dtype=dtype, device=device)  # [L, 2, R, N_kv, T, H]

    @property
    def state(self) -> Tensor:
        """All of it, `[L, 2, R, N_kv, T, H]`; another tensor whenever it has grown."""
        return self._state

    @property
    def num_bytes(self) -> int:
        """Taken now."""
        return self._state.numel() * self._state.element_size()

    def fits(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it is of a model there, of that type."""
        return self._state.device == device and self._state.dtype == dtype

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Makes room for rows of so many positions; what is there stays."""
        rows, positions = self._state.shape[2], self._state.shape[4]
        assert num_rows <= self.max_rows and num_positions <= self.max_positions
        if num_rows <= rows and num_positions <= positions:
            return
        rows = min(self.max_rows, _doubled(rows or 1, num_rows))
        positions = min(self.max_positions, _doubled(positions or FIRST_POSITIONS, num_positions))
        old = self._state
        with torch.inference_mode(False):  # whoever asks: a tensor made in that mode cannot be written to outside of it
            # Zeros and no NaN; see `wipe`.
            self._state = torch.zeros(self._sized(rows, positions), dtype=old.dtype, device=old.device)
        self._state[:, :, : old.shape[2], :, : old.shape[4]] = old

    def release(self) -> None:
        """Gives all memory back."""
        self._state = self._state.new_empty(self._sized(0, 0))

    def layers(self, num_rows: int, length: int) -> tuple[Tensor, ...]:
        """Of every layer the keys and values, views `[2, R, N_kv, T, H]` of the first rows and positions."""
        return self._state[:, :, :num_rows, :, :length].unbind(0)

    def write_span(self, number: int, row: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Keys and values `[N_kv, t, H]` of the positions from `start` on."""
        stop = start + keys.shape[1]
        self._state[number, 0, row, :, start:stop] = keys
        self._state[number, 1, row, :, start:stop] = values

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies a row's first positions to another row."""
        self._state[:, :, target, :, :length] = self._state[:, :, source, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """The same, and leaves zeros behind."""
        self.copy(source, target, length)
        self.wipe(source, length)

    def wipe(self, row: int, length: int) -> None:
        """Zeros in a row's first positions: what is masked is still multiplied by 0, and NaN would stay NaN."""
        self._state[:, :, row, :, :length] = 0

    def save(self, row: int, length: int) -> Saved:
        """A copy of a row's first positions."""
        return Saved(self._state[:, :, row, :, :length].clone(memory_format=torch.contiguous_format))

    def load(self, row: int, saved: Saved, length: int | None = None) -> None:
        """Writes a copy back, or its first positions."""
        length = saved.length if length is None else length
        self._state[:, :, row, :, :length] = saved.state[:, :, :, :length]

    def _sized(self, rows: int, positions: int) -> tuple[int, ...]:
        layers, pair, heads, width = self._shape
        return layers, pair, rows, heads, positions, width


def row_bytes(config: LlamaConfig, num_positions: int, dtype: torch.dtype) -> int:
    """Bytes of one row of so many positions."""
    heads = config.num_key_value_heads or config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_width(config) * num_positions * dtype.itemsize


def _doubled(size: int, least: int) -> int:
    while size < least:
        size *= 2
    return size
