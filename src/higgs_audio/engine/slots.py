"""Allocates the slots of the KV cache: first those of decoding sequences, then those of sequences in prefill, without
gaps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.engine.decode_state import DecodeState
from higgs_audio.engine.kv_cache import KVCache, SharedPrefixes
from higgs_audio.engine.sampler import NUM_STEPS, Sampler, make_sampler
from higgs_audio.engine.sequence import Sequence


class Slots:
    """The slots of one cache.

    Args:
        cache: the cache.
        config: config of the model.

    Attributes:
        cache: the cache.
        decoding: decoding sequences, in the order of `state`.
        state: their decode state; None before the first sequence.
        prefilling: sequences in prefill, in the order of their slots.
        expected: number of slots that will be needed soon; `allocate` reserves memory for all of them at once.
    """

    def __init__(self, cache: KVCache, config: HiggsAudioConfig) -> None:
        self.cache, self._config = cache, config
        self.decoding: list[Sequence] = []
        self.state: DecodeState | None = None
        self.prefilling: list[Sequence] = []
        self.expected = 0
        self._layout: BatchLayout | None = None

    def allocate(self, sequence: Sequence) -> None:
        """Allocates the next slots to a sequence whose prefill begins."""
        first = _count_slots(self.decoding) + _count_slots(self.prefilling)
        slots = list(range(first, first + sequence.request.num_slots))
        self.cache.reserve(max(slots[-1] + 1, self.expected), 1)
        self.prefilling.append(sequence)
        sequence.slots, sequence.num_cached, sequence.shared = slots, [0] * len(slots), [None] * len(slots)

    def start_decoding(self, sequence: Sequence, state: DecodeState) -> None:
        """Moves the first sequence in prefill, which is complete, to the decoding sequences."""
        assert sequence is self.prefilling[0]
        self.prefilling.remove(sequence)
        sequence.length = sequence.num_prefilled
        self._append(sequence, state)

    def preempt(self, sequence: Sequence) -> None:
        """Frees the slots of a sequence, which can be resumed later.

        A decoding sequence is saved; an unfinished prefill is repeated, which takes about as long as a copy.
        """
        if sequence in self.decoding:
            assert self.state is not None
            saved = [self.cache.save(slot, sequence.length) for slot in sequence.slots]
            sequence.saved = (saved, self.state.select([self.decoding.index(sequence)]))
        self.free(sequence)

    def resume(self, sequence: Sequence) -> None:
        """Restores a preempted sequence after the decoding sequences; the slots of sequences in prefill move up."""
        assert sequence.saved is not None
        saved, state = sequence.saved
        first = _count_slots(self.decoding)
        slots = list(range(first, first + sequence.request.num_slots))
        self.cache.reserve(slots[-1] + 1, sequence.length)
        self._move_prefilling(slots[-1] + 1)
        sequence.slots = slots
        for slot, contents in zip(slots, saved, strict=True):
            self.cache.load(slot, contents)
        sequence.saved = None
        self._append(sequence, state)

    def free(self, sequence: Sequence) -> None:
        """Frees the slots of a sequence, if it has any, and closes the gaps."""
        slots, sequence.slots = sequence.slots, []
        for slot in slots:
            self.cache.zero(slot, sequence.length or len(sequence.request.input_ids))
        if sequence in self.decoding:
            index = self.decoding.index(sequence)
            assert self.state is not None
            self.decoding.remove(sequence)
            self.state = self.state.select([n for n in range(len(self.state)) if n != index])
            self._close_gaps(slots)
        elif sequence in self.prefilling:
            self.prefilling.remove(sequence)
            self._move_prefilling(_count_slots(self.decoding))
        sequence.num_prefilled = 0
        self._layout = None

    def layout(self) -> "BatchLayout":
        """Returns the layout of the decode batch, with random numbers for at least one step."""
        assert self.state is not None
        if self._layout is None or self._layout.sampler.num_steps == NUM_STEPS:
            self._layout = BatchLayout.of(self.decoding, self.state, self._config)
        return self._layout

    def _append(self, sequence: Sequence, state: DecodeState) -> None:
        self.decoding.append(sequence)
        self.state = state if self.state is None or not len(self.state) else self.state.concat(state)
        self._layout = None

    def _close_gaps(self, gaps: list[int]) -> None:
        """Moves the last slots of decoding sequences into the gaps, then the slots of sequences in prefill."""
        num_used = _count_slots(self.decoding)
        free = [slot for slot in gaps if slot < num_used]
        for sequence in self.decoding:
            for number, slot in enumerate(sequence.slots):
                if slot >= num_used:
                    target = free.pop()
                    self.cache.move(slot, target, sequence.length)
                    sequence.slots[number] = target
        self._move_prefilling(num_used)

    def _move_prefilling(self, first: int) -> None:
        """Moves the slots of sequences in prefill to `first` and on, in an order that overwrites no unmoved slot."""
        moves: list[tuple[int, int, int]] = []  # source, target, number of positions
        for sequence in self.prefilling:
            slots = list(range(first, first + len(sequence.slots)))
            lengths = [max(sequence.num_prefilled, cached) for cached in sequence.num_cached]
            moves += zip(sequence.slots, slots, lengths, strict=True)
            sequence.slots, first = slots, first + len(slots)
        if not moves or moves[-1][0] == moves[-1][1]:
            return
        self.cache.reserve(first, max(1, *(length for _, _, length in moves)))
        for source, target, length in moves if moves[-1][1] < moves[-1][0] else reversed(moves):
            if source != target:
                self.cache.move(source, target, length)


@dataclass(frozen=True)
class BatchLayout:
    """The layout of the decode batch until a sequence joins or leaves, or the random numbers are used up.

    Attributes:
        owners: for each of the R slots, the index of its sequence.
        owner_index: the same as a tensor `[R]` on the device.
        sampler: sampler of the batch.
        shared: prefixes that slots share.
    """

    owners: list[int]
    owner_index: Tensor
    sampler: Sampler
    shared: SharedPrefixes

    @classmethod
    def of(cls, sequences: list[Sequence], state: DecodeState, config: HiggsAudioConfig) -> "BatchLayout":
        """Returns the layout of decoding sequences."""
        owner = {slot: index for index, sequence in enumerate(sequences) for slot in sequence.slots}
        owners = [owner[slot] for slot in range(len(owner))]
        conditional, negative = zip(*((sequence.slots[0], sequence.slots[-1]) for sequence in sequences), strict=True)
        device = state.num_columns.device
        owner_index, *rows = (torch.tensor(column, device=device) for column in (owners, conditional, negative))
        sampler = make_sampler(state, rows[0], rows[1], config)
        return cls(owners, owner_index, sampler, _shared_prefixes(sequences, len(owners)))


def _shared_prefixes(sequences: list[Sequence], num_slots: int) -> SharedPrefixes:
    """Returns the prefixes that slots share and that are still in the prefix cache."""
    parts = {slot: part for s in sequences for slot, part in zip(s.slots, s.shared, strict=True)}
    alive = ((part[0](), part[1]) if (part := parts[slot]) else (None, 0) for slot in range(num_slots))
    return SharedPrefixes([(saved, count) if saved else None for saved, count in alive])


def _count_slots(sequences: list[Sequence]) -> int:
    return sum(len(sequence.slots) for sequence in sequences)
