"""Tests of the decode queue: utterances that are decoded together, and effects of failures and abandoned streams on
others.
"""

import gc
import threading

import numpy as np
import pytest
import torch
from hooks import TorchCalls, before_calls
from oracle import make_codes, make_tokenizer

from higgs_audio.codec import StreamDecoder
from higgs_audio.delay import apply_delay
from higgs_audio.engine import RequestHandle
from higgs_audio.errors import HiggsAudioError
from higgs_audio.speech.decode_queue import GROUP_SIZE, DecodeQueue

FRAMES = 40  # of an utterance


@pytest.fixture(scope="module")
def codec():
    return make_tokenizer("vocos")


class Source:
    """A request handle that gets one column per step, and the codes `[K, F]` of the columns."""

    def __init__(self, codec, seed, frames=FRAMES, complete=False):
        bos = codec.config.codebook_size
        self.codes = make_codes(frames, seed)
        delayed = apply_delay(self.codes, bos, bos + 1)
        self.columns = [tuple(column) for column in delayed.T.tolist()]
        self.handle = RequestHandle(self.step, lambda: self.handle.close("cancelled"))
        while complete and self.columns:
            self.step()

    def step(self):
        if self.columns:
            column = self.columns.pop(0)
            self.handle.push(column, None if self.columns else "stop")


def decoded_alone(codec, source):
    return StreamDecoder(codec).push(source.codes, True).clamp(-1, 1).numpy()


def samples_of(chunks):
    return np.concatenate([chunk.samples for chunk in chunks])


@pytest.fixture
def decoded_frames(codec):
    """The number of frames in each call of the audio tokenizer."""
    frames = []
    with before_calls(codec.fc2, lambda latent: frames.append(latent.shape[1])):  # [1, F, D], one after another
        yield frames


class FailingCopies(TorchCalls):
    """A context in which some copies from the device fail, when the decoders have advanced already.

    Args:
        fails: whether the copy of so many samples fails.
        error: that is raised.
    """

    def __init__(self, fails, error):
        super().__init__(self.copy)
        self.fails, self.error = fails, error

    def copy(self, function, *args):
        if function is torch.Tensor.cpu and self.fails(len(args[0])):
            raise self.error


def test_offline_utterances_are_decoded_in_groups(codec, decoded_frames):
    queue, sources = DecodeQueue(codec), [Source(codec, seed, complete=True) for seed in range(2 * GROUP_SIZE + 3)]
    expected = [decoded_alone(codec, source) for source in sources]
    decoded_frames.clear()
    jobs = [queue.open(source.handle, is_offline=True) for source in sources]
    for source, samples, job in zip(sources, expected, jobs, strict=True):
        chunks = list(queue.chunks(job))
        assert [chunk.finish_reason for chunk in chunks] == ["stop"]
        np.testing.assert_allclose(samples_of(chunks), samples, atol=1e-5)
        assert torch.equal(chunks[0].codes, source.codes)
    assert decoded_frames == [GROUP_SIZE * FRAMES, GROUP_SIZE * FRAMES, 3 * FRAMES]
    assert len(queue) == 0


def test_a_stream_does_not_wait_for_the_chunks_of_offline_utterances(codec, decoded_frames):
    queue = DecodeQueue(codec)
    offline = [queue.open(Source(codec, seed, complete=True).handle, is_offline=True) for seed in range(GROUP_SIZE)]
    source = Source(codec, 99)
    chunks = list(queue.chunks(queue.open(source.handle)))
    assert sum(decoded_frames) == FRAMES
    assert [len(job.chunks) for job in offline] == [0] * GROUP_SIZE
    np.testing.assert_allclose(samples_of(chunks), decoded_alone(codec, source), atol=1e-5)
    decoded_frames.clear()
    assert len(list(queue.chunks(offline[0]))) == 1
    assert decoded_frames == [GROUP_SIZE * FRAMES]


def test_a_stream_starts_while_another_thread_decodes(codec):
    """It runs its engine steps; with one lock for both, it would wait before the first step."""
    queue = DecodeQueue(codec)
    inside, enough = threading.Event(), threading.Event()

    def slow(_):
        inside.set()
        assert enough.wait(20)

    with before_calls(codec.fc2, slow):
        offline = queue.open(Source(codec, 1, complete=True).handle, is_offline=True)
        thread = threading.Thread(target=lambda: list(queue.chunks(offline)))
        thread.start()
        assert inside.wait(20)
        source = Source(codec, 2)
        chunks = queue.chunks(queue.open(source.handle))
        waiting = threading.Thread(target=next, args=(chunks,))
        waiting.start()
        while source.columns and waiting.is_alive():
            waiting.join(0.01)
        assert not source.columns
        enough.set()
        thread.join(20)
        waiting.join(20)
        assert not waiting.is_alive()


def test_a_stream_that_is_garbage_collected_during_a_decode_is_closed(codec):
    queue = DecodeQueue(codec)
    left = queue.chunks(queue.open(Source(codec, 1).handle))
    next(left)
    cycle = [left]
    cycle.append(cycle)
    del left, cycle
    found, source = [], Source(codec, 2)
    thread = threading.Thread(target=lambda: found.extend(queue.chunks(queue.open(source.handle))), daemon=True)
    with before_calls(codec.fc2, lambda _: gc.collect()):
        thread.start()
        thread.join(30)
    assert not thread.is_alive()
    np.testing.assert_allclose(samples_of(found), decoded_alone(codec, source), atol=1e-5)
    assert len(queue) == 0


@pytest.mark.parametrize("place", ["decoding", "copying"])
def test_a_failure_of_one_utterance_ends_it_alone_and_nothing_is_decoded_twice(codec, place):
    """The call fails, or the copy of the samples from the device, when the decoders have advanced already.

    The broken utterance is the one with a frame more than the others.
    """
    queue, error = DecodeQueue(codec), torch.OutOfMemoryError("no memory")
    sources = [Source(codec, seed, frames=FRAMES + (seed == 1), complete=True) for seed in range(3)]
    expected = [decoded_alone(codec, source) for source in sources]
    jobs = [queue.open(source.handle, is_offline=True) for source in sources]

    def failing(latent):
        if latent.shape[1] % FRAMES:
            raise error

    with (
        before_calls(codec.fc2, failing)
        if place == "decoding"
        else FailingCopies(lambda length: length == len(expected[1]), error)
    ):
        for number in (0, 2):
            np.testing.assert_allclose(samples_of(queue.chunks(jobs[number])), expected[number], atol=1e-5)
        with pytest.raises(HiggsAudioError, match="no memory"):
            list(queue.chunks(jobs[1]))
    assert len(queue) == 0


def test_an_interrupt_after_decoding_does_not_decode_twice(codec):
    queue, sources = DecodeQueue(codec), [Source(codec, seed, complete=True) for seed in range(2)]
    jobs = [queue.open(source.handle, is_offline=True) for source in sources]
    with FailingCopies(lambda length: True, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        list(queue.chunks(jobs[0]))
    np.testing.assert_allclose(samples_of(queue.chunks(jobs[1])), decoded_alone(codec, sources[1]), atol=1e-5)


def test_a_call_that_failed_once_is_repeated_for_each_utterance_alone(codec, decoded_frames):
    queue, sources = DecodeQueue(codec), [Source(codec, seed, complete=True) for seed in range(3)]
    expected = [decoded_alone(codec, source) for source in sources]
    jobs = [queue.open(source.handle, is_offline=True) for source in sources]
    decoded_frames.clear()
    with FailingCopies(lambda length: len(decoded_frames) == 1, RuntimeError("once")):
        for samples, job in zip(expected, jobs, strict=True):
            np.testing.assert_allclose(samples_of(queue.chunks(job)), samples, atol=1e-5)
    assert decoded_frames == [3 * FRAMES, FRAMES, FRAMES, FRAMES]
