"""The decode queue: which utterances are decoded together, and what a failure or an abandoned stream does to others."""

import gc
import threading

import numpy as np
import pytest
import torch
from oracle import make_codes, make_tokenizer

from higgs_audio.codec import StreamDecoder
from higgs_audio.delay import apply_delay
from higgs_audio.engine import RequestHandle
from higgs_audio.errors import HiggsAudioError
from higgs_audio.speech import decode_queue as module
from higgs_audio.speech.decode_queue import GROUP_SIZE, DecodeQueue


@pytest.fixture(scope="module")
def codec():
    return make_tokenizer("vocos")


class Source:
    """A request handle that gets one column a step, and the codes `[K, F]` that the columns hold."""

    def __init__(self, codec, seed, frames=40, complete=False):
        marker = codec.config.codebook_size
        self.codes = make_codes(frames, seed)
        delayed = apply_delay(self.codes, marker, marker + 1)
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
def group_sizes(monkeypatch):
    """The number of utterances of each call of the audio tokenizer."""
    sizes, push = [], module.push_many
    monkeypatch.setattr(module, "push_many", lambda streams, *args: sizes.append(len(streams)) or push(streams, *args))
    return sizes


def test_offline_utterances_are_decoded_in_groups(codec, group_sizes):
    queue, sources = DecodeQueue(codec), [Source(codec, seed, complete=True) for seed in range(2 * GROUP_SIZE + 3)]
    jobs = [queue.open(source.handle, is_offline=True) for source in sources]
    for source, job in zip(sources, jobs, strict=True):
        chunks = list(queue.chunks(job))
        assert [chunk.finish_reason for chunk in chunks] == ["stop"]
        np.testing.assert_allclose(samples_of(chunks), decoded_alone(codec, source), atol=1e-5)
        assert torch.equal(chunks[0].codes, source.codes)
    assert group_sizes == [GROUP_SIZE, GROUP_SIZE, 3]
    assert len(queue) == 0


def test_a_stream_does_not_wait_for_the_chunks_of_offline_utterances(codec, group_sizes):
    queue = DecodeQueue(codec)
    offline = [queue.open(Source(codec, seed, complete=True).handle, is_offline=True) for seed in range(GROUP_SIZE)]
    source = Source(codec, 99)
    chunks = list(queue.chunks(queue.open(source.handle)))
    assert set(group_sizes) == {1}
    assert [len(job.chunks) for job in offline] == [0] * GROUP_SIZE
    np.testing.assert_allclose(samples_of(chunks), decoded_alone(codec, source), atol=1e-5)
    group_sizes.clear()
    assert len(list(queue.chunks(offline[0]))) == 1
    assert group_sizes == [GROUP_SIZE]


def test_a_stream_starts_while_another_thread_decodes(codec, monkeypatch):
    """It runs its engine steps; with one lock around both it would wait before the first step."""
    queue, push = DecodeQueue(codec), module.push_many
    inside, enough = threading.Event(), threading.Event()

    def slow(*args):
        inside.set()
        assert enough.wait(20)
        return push(*args)

    monkeypatch.setattr(module, "push_many", slow)
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


def test_a_stream_that_is_garbage_collected_during_a_decode_is_closed(codec, monkeypatch):
    queue, push = DecodeQueue(codec), module.push_many
    left = queue.chunks(queue.open(Source(codec, 1).handle))
    next(left)
    cycle = [left]
    cycle.append(cycle)
    del left, cycle
    monkeypatch.setattr(module, "push_many", lambda *args: (gc.collect() and push(*args)) or push(*args))
    found, source = [], Source(codec, 2)
    thread = threading.Thread(target=lambda: found.extend(queue.chunks(queue.open(source.handle))), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    np.testing.assert_allclose(samples_of(found), decoded_alone(codec, source), atol=1e-5)
    assert len(queue) == 0


class OnBrokenDevice:
    """Samples that cannot be copied from their device."""

    def float(self):
        raise torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize("place", ["decoding", "copying"])
def test_a_failure_of_one_utterance_ends_it_alone_and_nothing_is_decoded_twice(codec, monkeypatch, place):
    """The call fails, or the copy of the samples from the device, when the decoders have advanced already."""
    queue, push = DecodeQueue(codec), module.push_many
    sources = [Source(codec, seed, complete=True) for seed in range(3)]
    jobs = [queue.open(source.handle, is_offline=True) for source in sources]

    def failing(decoders, *args):
        is_broken = [decoder is jobs[1].decoder for decoder in decoders]
        if place == "decoding" and any(is_broken):
            raise torch.OutOfMemoryError("no memory")
        samples = push(decoders, *args)
        return [OnBrokenDevice() if broken else part for part, broken in zip(samples, is_broken, strict=True)]

    monkeypatch.setattr(module, "push_many", failing)
    for number in (0, 2):
        expected = decoded_alone(codec, sources[number])
        np.testing.assert_allclose(samples_of(queue.chunks(jobs[number])), expected, atol=1e-5)
    with pytest.raises(HiggsAudioError, match="no memory"):
        list(queue.chunks(jobs[1]))
    assert len(queue) == 0


def fail_once(monkeypatch, error):
    """Raises an error after the first call has decoded; returns the number of utterances of each call."""
    push, calls = module.push_many, []

    def failing(decoders, *args):
        samples = push(decoders, *args)
        calls.append(len(decoders))
        if len(calls) == 1:
            raise error
        return samples

    monkeypatch.setattr(module, "push_many", failing)
    return calls


def test_an_interrupt_after_decoding_does_not_decode_twice(codec, monkeypatch):
    queue, sources = DecodeQueue(codec), [Source(codec, seed, complete=True) for seed in range(2)]
    jobs = [queue.open(source.handle, is_offline=True) for source in sources]
    fail_once(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(queue.chunks(jobs[0]))
    np.testing.assert_allclose(samples_of(queue.chunks(jobs[1])), decoded_alone(codec, sources[1]), atol=1e-5)


def test_a_call_that_failed_once_is_repeated_for_each_utterance_alone(codec, monkeypatch):
    queue, sources = DecodeQueue(codec), [Source(codec, seed, complete=True) for seed in range(3)]
    jobs = [queue.open(source.handle, is_offline=True) for source in sources]
    calls = fail_once(monkeypatch, RuntimeError("once"))
    for source, job in zip(sources, jobs, strict=True):
        np.testing.assert_allclose(samples_of(queue.chunks(job)), decoded_alone(codec, source), atol=1e-5)
    assert calls == [3, 1, 1, 1]
