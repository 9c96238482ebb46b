"""The order in which conversations are trained, and each process's share of a step."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from higgs_audio.model import IGNORED
from higgs_audio.processor import HiggsAudioProcessor
from higgs_audio.train.clips import length_batches
from higgs_audio.train.composer import Composer
from higgs_audio.train.dialogue import Batch, Dialogue, collate, corrupt
from higgs_audio.train.packing import pack
from higgs_audio.train.parallel import shares
from higgs_audio.train.shards import Sample


@dataclass(frozen=True)
class Order:
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
    composer: Composer, samples: Sequence[Sample], order: Order, start: int
) -> Iterator[list[Dialogue]]:
    """Conversations of every step from number `start` on: the shorter half of the clips first, then all."""
    sizes = [s.num_frames + len(s.phonemes) for s in samples]
    short = sorted(range(len(samples)), key=sizes.__getitem__)[: max(1, len(samples) // 2)]
    if start < order.num_short:
        yield from itertools.islice(
            composed(composer, short, order.positions, 2 * order.seed, start), order.num_short - start
        )
    done = max(0, start - order.num_short)
    yield from composed(composer, range(len(samples)), order.positions, 2 * order.seed + 1, done)


def composed(
    composer: Composer, numbers: Sequence[int], positions: int, seed: int, start: int
) -> Iterator[list[Dialogue]]:
    """Endless batches of conversations, one for each of the samples in an epoch, from batch number `start` on.

    Conversations differ in length by ten times, so they are drawn first and batched by what they turned out to be.
    """
    for epoch in itertools.count():
        sizes = [composer.compose(n, draw_of(seed, epoch, n)).num_positions for n in numbers]
        batches = length_batches(sizes, positions, seed, epoch)
        for batch in batches[start:]:
            yield [composer.compose(numbers[i], draw_of(seed, epoch, numbers[i])) for i in batch]
        start = max(0, start - len(batches))


def draw_of(*numbers: int) -> torch.Generator:
    """The randomness of one conversation, a function of `numbers`."""
    return torch.Generator().manual_seed(hash(numbers) & 0xFFFF_FFFF)


@dataclass(frozen=True)
class Cutter:
    """Cuts a step's conversations into micro-batches.

    Args:
        rank, size: this process and how many there are.
        accumulate: micro-batches of each process.
        reference_labels_after: see `collate`.
        packed: one row without padding, see `pack`.
        codebook_size: V; corrupted codes are drawn below it.
        seed: of the run.
    """

    processor: HiggsAudioProcessor
    rank: int
    size: int
    accumulate: int
    reference_labels_after: int
    packed: bool
    codebook_size: int
    seed: int

    def cut(self, dialogues: Sequence[Dialogue], step: int, corruption: float) -> list[Batch]:
        """This process's micro-batches of the step; what a conversation becomes does not depend on how it is cut."""
        chosen = shares([dialogue.num_positions for dialogue in dialogues], self.size * self.accumulate)
        mine = chosen[self.rank :: self.size]
        return [self._batch(dialogues, numbers, step, corruption) for numbers in mine]

    def _batch(self, dialogues: Sequence[Dialogue], numbers: Sequence[int], step: int, corruption: float) -> Batch:
        """An empty share is some conversation without labels: every process must take part in every exchange."""
        if not numbers:
            return unlabelled(collate(dialogues[:1], self.processor))
        batch = collate([dialogues[n] for n in numbers], self.processor, self.reference_labels_after)
        draws = [draw_of(self.seed, step, n, 1) for n in numbers]
        columns = batch.inputs["audio_input_ids"]
        batch.inputs["audio_input_ids"] = corrupt(columns, batch.turn_labels, corruption, draws, self.codebook_size)
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
        turn_labels=torch.full_like(batch.turn_labels, IGNORED),
        said=torch.zeros_like(batch.said),
        num_frames=0,
    )
