"""Tests of the order of training conversations, of their windows, and of their batches in worker processes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from higgs_audio.train_lm.batches import BatchOrder, MicroBatcher, Windows, dialogue_batches, training_steps
from higgs_audio.train_lm.composer import Composer

SMALL_WINDOWS = BatchOrder(positions=900, num_short=0, seed=0, min_window_size=7, min_window_batches=0)


class CountingComposer(Composer):
    """Counts the conversations that it composes."""

    count = 0

    def compose(self, index, generator):
        self.count += 1
        return super().compose(index, generator)


@pytest.fixture(scope="module")
def composer(samples, mix):
    return Composer(samples, {"ava": "Ava"}, "ava", mix)


def test_a_conversation_depends_only_on_seed_epoch_and_sample(samples, composer):
    order = BatchOrder(positions=900, num_short=0, seed=0)

    def turns(start):
        drawn = itertools.islice(dialogue_batches(composer, samples, order, start), 30 - start)
        return [[tuple(turn.id for turn in dialogue.turns) for dialogue in batch] for batch in drawn]

    whole = turns(0)
    assert turns(13) == whole[13:]
    assert whole[0] not in whole[1:]


@pytest.mark.parametrize(
    ("order", "per_epoch"),
    [(BatchOrder(positions=900, num_short=0, seed=0), 1), (SMALL_WINDOWS, 6)],
    ids=["one window", "several windows"],
)
def test_every_sample_has_one_conversation_per_epoch(samples, composer, order, per_epoch):
    windows = Windows(composer, range(len(samples)), order, seed=1)
    assert windows.per_epoch == per_epoch
    for epoch in range(3):
        numbers = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        last = [d.turns[-1].id.split("+")[-1] for n in numbers for batch in windows.batches(n) for d in batch]
        assert sorted(last) == sorted(sample.id for sample in samples)


def test_the_steps_of_several_windows_can_start_anywhere(samples, mix):
    windows = Windows(Composer(samples, {}, "", mix), range(len(samples)), SMALL_WINDOWS, seed=1)
    whole = [[d.turns[-1].id for d in batch] for batch in itertools.islice(windows.steps(0), 60)]
    for start in (1, 17, 40):
        rest = itertools.islice(windows.steps(start), 60 - start)
        assert [[d.turns[-1].id for d in batch] for batch in rest] == whole[start:]
    assert windows.find(40)[0] > 1


@pytest.mark.parametrize("start", [0, 5])
def test_worker_processes_load_the_same_batches_as_this_process(samples, composer, processor, start):
    order = BatchOrder(positions=900, num_short=3, seed=0)
    batcher = MicroBatcher(processor, 0, 1, 2, 10, False, 1024, 0, {"ava": 0, "joe": 1})
    loaded = [training_steps(composer, samples, order, start, batcher, num_workers) for num_workers in (0, 2)]
    sources = (
        (batcher.split(dialogues, 1, 0.2) for dialogues in dialogue_batches(composer, samples, order, start)),
        *((batcher.finish(collated, 1, 0.2) for collated, _ in steps) for steps in loaded),
    )
    for step in itertools.islice(zip(*sources, strict=False), 12):
        assert [len(batches) for batches in step] == [2, 2, 2]
        for equal_batches in zip(*step, strict=True):
            arrays = [batch.arrays() for batch in equal_batches]
            for other in arrays[1:]:
                assert other.keys() == arrays[0].keys()
                assert all(np.array_equal(other[name], value) for name, value in arrays[0].items())


@pytest.mark.parametrize("start", [2, 3, 4, 9])
def test_a_run_resumes_at_its_cursor_without_composing_earlier_windows(samples, mix, processor, start):
    """Earlier, finding step 9,000 of a run on a GPU took longer than the rest of the run."""
    composer, order = CountingComposer(samples, {"ava": "Ava"}, "ava", mix), replace(SMALL_WINDOWS, num_short=3)
    batcher = MicroBatcher(processor, 0, 1, 1, 10, False, 1024, 0)
    whole = list(itertools.islice(training_steps(composer, samples, order, 0, batcher, 0), 14))
    cursor = whole[start - 1][1]
    composer.count = 0
    resumed = training_steps(composer, samples, order, start, batcher, 0, cursor)
    rest = [next(resumed)]
    num_samples = len(samples) // 2 if start < order.num_short else len(samples)
    assert composer.count <= num_samples + 7  # each clip once to estimate the number of windows, and a single window
    rest += itertools.islice(resumed, 13 - start)
    for (collated, after), (expected, expected_after) in zip(rest, whole[start:], strict=True):
        assert after == expected_after
        for (indices, batch), (expected_indices, expected_batch) in zip(collated, expected, strict=True):
            assert indices == expected_indices
            assert torch.equal(batch.inputs["input_ids"], expected_batch.inputs["input_ids"])


def test_a_batch_is_filled_by_the_lengths_of_its_conversations(samples, composer):
    order = BatchOrder(positions=900, num_short=0, seed=0)
    for batch in itertools.islice(dialogue_batches(composer, samples, order, 0), 40):
        assert max(d.num_positions for d in batch) * len(batch) <= 900
