"""The order in which conversations are trained, who makes the batches, and each process's share of a step."""

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
from higgs_audio.model.model import IGNORED
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm.collate import Batch, collate
from higgs_audio.train_lm.composer import Composer
from higgs_audio.train_lm.corruption import corrupt
from higgs_audio.train_lm.examples import Dialogue
from higgs_audio.train_lm.packing import pack
from higgs_audio.training.parallel import shares

WINDOW = 512  # conversations; of fewer, those in a batch would differ more in length
WINDOW_BATCHES = 10  # about, of a window, at least

# Conversations of a micro-batch: their numbers in the step, and what they became before anything is corrupted.
Share = tuple[Sequence[int], Batch]
Place = tuple[int, int]  # of a step: number of its window, its number there


@dataclass(frozen=True)
class BatchOrder:
    """What the order depends on.

    Args:
        positions: of a step, over all processes, at most.
        num_short: steps at the start that take the shorter half of the clips alone.
        seed: of the run.
    """

    positions: int
    num_short: int
    seed: int


def dialogue_batches(
    composer: Composer, samples: Sequence[EncodedClip], order: BatchOrder, start: int
) -> Iterator[list[Dialogue]]:
    """Conversations of every step from number `start` on: the shorter half of the clips first, then all."""
    for windows, first, count in phases(composer, samples, order, start):
        yield from itertools.islice(windows.steps(first), count)


def training_steps(
    composer: Composer,
    samples: Sequence[EncodedClip],
    order: BatchOrder,
    start: int,
    cutter: "MicroBatcher",
    num_workers: int,
    place: Place | None = None,
) -> Iterator[tuple[list[Share], Place]]:
    """The same, collated into this process's micro-batches by `num_workers` processes, by this one where it is 0.

    With each step comes the place of the one behind it. Whoever begins at a step with the `place` that came before it
    need not wait for all windows until there to be composed.
    """
    for windows, first, count in phases(composer, samples, order, start):
        begin = place if place and first else windows.find(first)  # a place is in the phase of its step
        yield from itertools.islice(collated(Collated(windows, cutter), begin, num_workers), count)


def phases(
    composer: Composer, samples: Sequence[EncodedClip], order: BatchOrder, start: int
) -> Iterator[tuple["Windows", int, int | None]]:
    """Windows of each phase, the step in them to begin with, and how many steps they are for (None: endless)."""
    sizes = [s.num_frames + len(s.phonemes) for s in samples]
    short = sorted(range(len(samples)), key=sizes.__getitem__)[: max(1, len(samples) // 2)]
    if start < order.num_short:
        yield Windows(composer, short, order.positions, 2 * order.seed), start, order.num_short - start
    everything = range(len(samples))
    yield Windows(composer, everything, order.positions, 2 * order.seed + 1), max(0, start - order.num_short), None


@dataclass(frozen=True)
class Windows:
    """The endless order of conversations, one of each sample in an epoch, in numbered windows.

    Conversations differ in length by ten times, so those of a window are drawn first and batched by what they turned
    out to be. A window is a function of its number: several processes can make them, and none waits for an epoch.
    """

    composer: Composer
    numbers: Sequence[int]
    positions: int
    seed: int

    @cached_property
    def per_epoch(self) -> int:
        """How many windows have each sample once."""
        some = [self.composer.compose(n, draw_of(self.seed, n)).num_positions for n in self.numbers[:64]]
        size = max(WINDOW, WINDOW_BATCHES * self.positions * len(some) / sum(some))
        return max(1, round(len(self.numbers) / size))

    def batches(self, window: int) -> list[list[Dialogue]]:
        """The conversations of each step of window number `window`."""
        per_epoch = self.per_epoch
        epoch, place = divmod(window, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.numbers))
        chosen = [self.numbers[i] for i in np.array_split(order, per_epoch)[place]]
        dialogues = [self.composer.compose(n, draw_of(self.seed, epoch, n)) for n in chosen]
        sizes = [dialogue.num_positions for dialogue in dialogues]
        return [[dialogues[i] for i in batch] for batch in length_batches(sizes, self.positions, self.seed, window)]

    def find(self, step: int) -> tuple[int, int]:
        """The window that step number `step` is in, and its number there: how many each has shows when it is drawn."""
        window = 0
        while step and step >= (count := len(self.batches(window))):
            window, step = window + 1, step - count
        return window, step

    def steps(self, start: int) -> Iterator[list[Dialogue]]:
        """From step number `start` on."""
        first, offset = self.find(start)
        for window in itertools.count(first):
            yield from self.batches(window)[offset:]
            offset = 0


@dataclass(frozen=True)
class Collated(Dataset[bytes]):
    """Windows as what `MicroBatcher.collate` makes of each of their steps, pickled with small numbers.

    Tensors would go from process to process in shared memory, a file descriptor each: thousands at a time.
    """

    windows: Windows
    cutter: "MicroBatcher"

    def __getitem__(self, window: int) -> bytes:
        steps = [self.cutter.collate(step) for step in self.windows.batches(window)]
        return pickle.dumps([[(list(n), batch.arrays()) for n, batch in step] for step in steps], protocol=5)


def collated(source: Collated, start: Place, num_workers: int) -> Iterator[tuple[list[Share], Place]]:
    """Steps from `start` on, in order, whoever made them, each with the place of the next."""
    first, offset = start
    numbers: Any = itertools.count(first)
    same = bytes  # the default would look for tensors
    loader = DataLoader(source, sampler=numbers, batch_size=None, num_workers=num_workers, collate_fn=same)
    for window, pickled in enumerate(loader, first):
        for number, step in enumerate(pickle.loads(pickled)[offset:], offset + 1):
            yield [(chosen, Batch.from_arrays(arrays)) for chosen, arrays in step], (window, number)
        offset = 0


def draw_of(*numbers: int) -> torch.Generator:
    """The randomness of one conversation, a function of `numbers`."""
    return torch.Generator().manual_seed(hash(numbers) & 0xFFFF_FFFF)


@dataclass(frozen=True)
class MicroBatcher:
    """Cuts a step's conversations into micro-batches.

    Args:
        rank, size: this process and how many there are.
        accumulate: micro-batches of each process.
        reference_labels_after: see `collate`.
        packed: one row without padding, see `pack`.
        codebook_size: V; corrupted codes are drawn below it.
        seed: of the run.
        speakers: whom the guide can name, and by which number.
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

    def cut(self, dialogues: Sequence[Dialogue], step: int, corruption: float) -> list[Batch]:
        """This process's micro-batches of the step; what a conversation becomes does not depend on how it is cut."""
        return self.finish(self.collate(dialogues), step, corruption)

    def collate(self, dialogues: Sequence[Dialogue]) -> list[Share]:
        """What does not depend on the number of the step."""
        chosen = shares([dialogue.num_positions for dialogue in dialogues], self.size * self.accumulate)
        return [(numbers, self._batch(dialogues, numbers)) for numbers in chosen[self.rank :: self.size]]

    def finish(self, collated: Sequence[Share], step: int, corruption: float) -> list[Batch]:
        """Micro-batches with corrupted columns, packed where that is wanted."""
        return [self._finished(numbers, batch, step, corruption) for numbers, batch in collated]

    def _batch(self, dialogues: Sequence[Dialogue], numbers: Sequence[int]) -> Batch:
        """An empty share is some conversation without labels: every process must take part in every exchange."""
        if not numbers:
            return unlabelled(collate(dialogues[:1], self.processor, speakers=self.speakers))
        mine = [dialogues[n] for n in numbers]
        return collate(mine, self.processor, self.reference_labels_after, self.speakers)

    def _finished(self, numbers: Sequence[int], batch: Batch, step: int, corruption: float) -> Batch:
        if not numbers:
            return batch
        keys = [hash((self.seed, step, n)) for n in numbers]
        columns = batch.inputs["audio_input_ids"]
        corrupted = corrupt(columns, batch.turn_labels, corruption, keys, self.codebook_size)
        batch = replace(batch, inputs=batch.inputs | {"audio_input_ids": corrupted})
        return pack(batch) if self.packed else batch


def unlabelled(batch: Batch) -> Batch:
    """The batch without a label, so that it adds nothing to any loss or gradient."""
    blank = {name: torch.full_like(batch.inputs[name], IGNORED) for name in ("labels", "audio_labels")}
    nothing = torch.full_like(batch.look, IGNORED)
    return replace(
        batch,
        inputs=batch.inputs | blank,
        look=nothing,
        phones=nothing,
        who=nothing,
        turn_labels=torch.full_like(batch.turn_labels, IGNORED),
        said=torch.zeros_like(batch.said),
        num_frames=0,
    )
