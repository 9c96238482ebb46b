"""Tests of clips: the order in which training reads them, and random crops of their waveforms."""

import itertools

import numpy as np
import pytest
import soundfile
import torch
from corpus import RATE

from higgs_audio.data.clips import ClipAudio, batch_order, length_batches
from higgs_audio.data.manifest import read_manifests
from higgs_audio.errors import RecipeError


def random_lengths(count, seed=0):
    return np.random.default_rng(seed).integers(20, 400, count).tolist()


@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_an_epoch_has_every_clip_once_in_batches_within_the_budget(epoch):
    lengths = random_lengths(301)
    batches = length_batches(lengths, 1000, seed=3, epoch=epoch)
    assert sorted(itertools.chain(*batches)) == list(range(301))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 1000 for batch in batches)
    assert len(batches) < 1.3 * sum(lengths) / 1000, "batches mix clips of different lengths"


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_only():
    lengths = random_lengths(50)
    one = length_batches(lengths, 1000, seed=3, epoch=0)
    assert one == length_batches(lengths, 1000, seed=3, epoch=0)
    assert one != length_batches(lengths, 1000, seed=3, epoch=1)
    assert one != length_batches(lengths, 1000, seed=4, epoch=0)


@pytest.mark.parametrize("start", [0, 1, 7, 30])
def test_an_order_that_starts_later_continues_the_same_order(start):
    lengths = random_lengths(40)
    whole = list(itertools.islice(batch_order(lengths, 1000, 5, 0), start + 20))
    assert list(itertools.islice(batch_order(lengths, 1000, 5, start), 20)) == whole[start:]


def test_a_clip_longer_than_the_budget_is_a_recipe_error():
    with pytest.raises(RecipeError, match="1001"):
        next(batch_order([3, 1001], 1000, 0, 0))


def test_crops_are_parts_of_clips_and_short_clips_are_repeated(corpus):
    clips = read_manifests(corpus)
    waveforms = [torch.from_numpy(soundfile.read(clip.audio, dtype="float32")[0]) for clip in clips]
    for crop in ClipAudio(clips, RATE).random_crops(20, 4800, torch.Generator().manual_seed(0)):
        starts = [
            (waveform, start) for waveform in waveforms for start in (waveform == crop[0]).nonzero().flatten().tolist()
        ]
        assert any(torch.equal(waveform[start : start + 4800], crop) for waveform, start in starts)
    length = 3 * max(map(len, waveforms))
    assert ClipAudio(clips, RATE).random_crops(2, length, torch.Generator().manual_seed(0)).shape == (2, length)


def test_clips_in_memory_give_the_same_crops_as_files(corpus):
    clips = read_manifests(corpus)
    longest = round(max(clip.seconds for clip in clips) * RATE)
    for length in (4800, 2 * longest):
        from_files, in_memory = (
            ClipAudio(clips, RATE, device).random_crops(8, length, torch.Generator().manual_seed(1))
            for device in (None, torch.device("cpu"))
        )
        torch.testing.assert_close(in_memory, from_files, rtol=0, atol=0.5 / 32_768)
