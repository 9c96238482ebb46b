"""Order of the training conversations, their collation in worker processes, and the micro-batches of each process."""

import itertools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from higgs_audio.data.clips import length_batches
from higgs_audio.data.shards import EncodedClip
from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm.collate import Batch, collate
from higgs_audio.train_lm.composer import Composer
from higgs_audio.train_lm.corruption import corrupt
from higgs_audio.train_lm.examples import Dialogue
from higgs_audio.train_lm.packing import pack
from higgs_audio.training.parallel import partition

# The indices of a micro-batch's conversations in the step, and the micro-batch before corruption and packing.
IndexedBatch = tuple[Sequence[int], Batch]
Cursor = tuple[int, int]  # position of a step in the data: index of its window, index in the window


@dataclass(frozen=True)
class BatchOrder:
    """The settings that, with the clips, determine the order of the conversations.

    Args:
        positions: maximum number of positions in a step, over all processes.
        num_short: number of steps at the start that use only the shorter half of the clips.
        seed: seed of the run.
        min_window_size: minimum number of conversations in a window, see `Windows`. In a smaller window, the lengths in
            a batch would differ more.
        min_window_batches: approximate minimum number of batches in a window.
    """

    positions: int
    num_short: int
    seed: int
    min_window_size: int = 512
    min_window_batches: int = 10


def dialogue_batches(
    composer: Composer, samples: Sequence[EncodedClip], order: BatchOrder, start: int
) -> Iterator[list[Dialogue]]:
    """Yields the conversations of each step from step `start` on: the shorter half of the clips first, then all."""
    for windows, first, count in phases(composer, samples, order, start):
        yield from itertools.islice(windows.steps(first), count)


def training_steps(
    composer: Composer,
    samples: Sequence[EncodedClip],
    order: BatchOrder,
    start: int,
    batcher: "MicroBatcher",
    num_workers: int,
    cursor: Cursor | None = None,
) -> Iterator[tuple[list[IndexedBatch], Cursor]]:
    """Yields the conversations of `dialogue_batches`, collated into this process's micro-batches.

    `num_workers` processes collate them; 0 collates in this process. Each step is yielded with the cursor of the next
    step. A run that resumes at step `start` with the `cursor` yielded before it need not compose earlier windows.
    """
    for windows, first, count in phases(composer, samples, order, start):
        begin = cursor if cursor and first else windows.find(first)  # a cursor is in the phase of its step
        yield from itertools.islice(load_steps(CollatedWindows(windows, batcher), begin, num_workers), count)


def phases(
    composer: Composer, samples: Sequence[EncodedClip], order: BatchOrder, start: int
) -> Iterator[tuple["Windows", int, int | None]]:
    """Yields each phase: its windows, the first step in them, and the number of steps (None: endless)."""
    sizes = [s.num_frames + len(s.phonemes) for s in samples]
    short = sorted(range(len(samples)), key=sizes.__getitem__)[: max(1, len(samples) // 2)]
    if start < order.num_short:
        yield Windows(composer, short, order, 2 * order.seed), start, order.num_short - start
    yield Windows(composer, range(len(samples)), order, 2 * order.seed + 1), max(0, start - order.num_short), None


@dataclass(frozen=True)
class Windows:
    """The endless order of conversations, one for each sample in an epoch, in numbered windows.

    The lengths of conversations differ by a factor of ten, so a window's conversations are composed first and then
    batched by length. A window is a function of its number, so several processes can build windows, and no process has
    to compose a whole epoch first.

    Args:
        composer: composes the conversations.
        indices: indices of the samples for which conversations are composed.
        order: maximum number of positions in a step, and minimum size of a window.
        seed: seed of this phase of the run.
    """

    composer: Composer
    indices: Sequence[int]
    order: BatchOrder
    seed: int

    @cached_property
    def per_epoch(self) -> int:
        """Number of windows that together contain each sample once."""
        some = [self.composer.compose(n, generator_for(self.seed, n)).num_positions for n in self.indices[:64]]
        positions = self.order.min_window_batches * self.order.positions
        size = max(self.order.min_window_size, positions * len(some) / sum(some))
        return max(1, round(len(self.indices) / size))

    def batches(self, window: int) -> list[list[Dialogue]]:
        """Returns the conversations of each step of window number `window`."""
        per_epoch = self.per_epoch
        epoch, part = divmod(window, per_epoch)
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(len(self.indices))
        chosen = [self.indices[i] for i in np.array_split(shuffled, per_epoch)[part]]
        dialogues = [self.composer.compose(n, generator_for(self.seed, epoch, n)) for n in chosen]
        sizes = [dialogue.num_positions for dialogue in dialogues]
        batches = length_batches(sizes, self.order.positions, self.seed, window)
        return [[dialogues[i] for i in batch] for batch in batches]

    def find(self, step: int) -> Cursor:
        """Returns the cursor of step number `step`.

        The number of steps in a window is unknown until its conversations are composed, so this composes every window
        before the step.
        """
        window = 0
        while step and step >= (count := len(self.batches(window))):
            window, step = window + 1, step - count
        return window, step

    def steps(self, start: int) -> Iterator[list[Dialogue]]:
        """Yields the conversations of each step from step number `start` on."""
        first, offset = self.find(start)
        for window in itertools.count(first):
            yield from self.batches(window)[offset:]
            offset = 0


@dataclass(frozen=True)
class CollatedWindows(Dataset[bytes]):
    """Dataset of windows whose steps `MicroBatcher.collate` has collated, pickled with small integers.

    Tensors would be passed between processes in shared memory, with one file descriptor each: thousands at a time.
    """

    windows: Windows
    batcher: "MicroBatcher"

    def __getitem__(self, window: int) -> bytes:
        steps = [self.batcher.collate(step) for step in self.windows.batches(window)]
        return pickle.dumps([[(list(n), batch.arrays()) for n, batch in step] for step in steps], protocol=5)


def load_steps(source: CollatedWindows, start: Cursor, num_workers: int) -> Iterator[tuple[list[IndexedBatch], Cursor]]:
    """Yields the steps from cursor `start` on, each with the next cursor; the order is independent of `num_workers`."""
    first, offset = start
    numbers: Any = itertools.count(first)
    identity = bytes  # the default collate_fn would look for tensors
    loader = DataLoader(source, sampler=numbers, batch_size=None, num_workers=num_workers, collate_fn=identity)
    for window, pickled in enumerate(loader, first):
        for number, step in enumerate(pickle.loads(pickled)[offset:], offset + 1):
            yield [(indices, Batch.from_arrays(arrays)) for indices, arrays in step], (window, number)
        offset = 0


def generator_for(*numbers: int) -> torch.Generator:
    """Returns the random generator of one conversation, which depends on `numbers` only."""
    return torch.Generator().manual_seed(hash(numbers) & 0xFFFF_FFFF)


@dataclass(frozen=True)
class MicroBatcher:
    """Splits the conversations of a step into micro-batches.

    Args:
        processor: renders the conversations.
        rank, size: rank of this process and number of processes.
        accumulate: number of micro-batches per process.
        reference_labels_after: see `collate`.
        packed: whether to pack each micro-batch into one row without padding, see `pack`.
        codebook_size: V; corrupted codes are drawn below it.
        seed: seed of the run.
        speakers: speaker -> class of the speaker classifier.
    """

    processor: HiggsAudioProcessor
    rank: int
    size: int
    accumulate: int
    reference_labels_after: int
    packed: bool
    codebook_size: int
    seed: int
    speakers: Mapping[str, int] = field(default_factory=dict)

    def split(self, dialogues: Sequence[Dialogue], step: int, corruption: float) -> list[Batch]:
        """Returns this process's micro-batches of a step; a conversation's tensors do not depend on the split."""
        return self.finish(self.collate(dialogues), step, corruption)

    def collate(self, dialogues: Sequence[Dialogue]) -> list[IndexedBatch]:
        """Collates this process's micro-batches, before corruption, which depends on the number of the step."""
        assigned = partition([dialogue.num_positions for dialogue in dialogues], self.size * self.accumulate)
        return [(indices, self._batch(dialogues, indices)) for indices in assigned[self.rank :: self.size]]

    def finish(self, collated: Sequence[IndexedBatch], step: int, corruption: float) -> list[Batch]:
        """Corrupts the input columns of the micro-batches and packs them if `packed`."""
        return [self._finished(indices, batch, step, corruption) for indices, batch in collated]

    def _batch(self, dialogues: Sequence[Dialogue], indices: Sequence[int]) -> Batch:
        """Collates the conversations of one micro-batch.

        An empty micro-batch becomes a conversation without labels, because every process must participate in every
        collective operation.
        """
        if not indices:
            return without_labels(collate(dialogues[:1], self.processor, speakers=self.speakers))
        chosen = [dialogues[n] for n in indices]
        return collate(chosen, self.processor, self.reference_labels_after, self.speakers)

    def _finished(self, indices: Sequence[int], batch: Batch, step: int, corruption: float) -> Batch:
        if not indices:
            return batch
        keys = [hash((self.seed, step, n)) for n in indices]
        columns = batch.inputs["audio_input_ids"]
        corrupted = corrupt(columns, batch.turn_labels, corruption, keys, self.codebook_size)
        batch = replace(batch, inputs=batch.inputs | {"audio_input_ids": corrupted})
        return pack(batch) if self.packed else batch


def without_labels(batch: Batch) -> Batch:
    """Returns the batch without labels, so that it does not contribute to any loss or gradient."""
    ignored = {name: torch.full_like(batch.inputs[name], IGNORE_INDEX) for name in ("labels", "audio_labels")}
    no_targets = torch.full_like(batch.attention_targets, IGNORE_INDEX)
    return replace(
        batch,
        inputs=batch.inputs | ignored,
        attention_targets=no_targets,
        phone_labels=no_targets,
        speaker_labels=no_targets,
        turn_labels=torch.full_like(batch.turn_labels, IGNORE_INDEX),
        turn_speakers=torch.zeros_like(batch.turn_speakers),
        num_frames=0,
    )
