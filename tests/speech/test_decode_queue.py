"""Columns to sound: who is sounded with whom, and what happens to the others where one fails or goes away."""

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
from higgs_audio.speech.decode_queue import GROUP, DecodeQueue


@pytest.fixture(scope="module")
def codec():
    return make_tokenizer("vocos")


class Speaker:
    """An answer whose columns come one a step, and the codes `[K, F]` that are in them."""

    def __init__(self, codec, seed, frames=40, made=False):
        marker = codec.config.codebook_size
        self.codes = make_codes(frames, seed)
        delayed = apply_delay(self.codes, marker, marker + 1)
        self._columns = [tuple(column) for column in delayed.T.tolist()]
        self.answer = RequestHandle(self.step, lambda: self.answer.close("cancelled"))
        while made and self._columns:
            self.step()

    def step(self):
        if self._columns:
            column = self._columns.pop(0)
            self.answer.push(column, None if self._columns else "stop")


def alone(codec, speaker):
    return StreamDecoder(codec).push(speaker.codes, True).clamp(-1, 1).numpy()


def heard(chunks):
    return np.concatenate([chunk.samples for chunk in chunks])


@pytest.fixture
def groups(monkeypatch):
    """How many were sounded at once, call by call."""
    sizes, push = [], module.push_many
    monkeypatch.setattr(module, "push_many", lambda streams, *args: sizes.append(len(streams)) or push(streams, *args))
    return sizes


def test_those_nobody_waits_for_are_sounded_in_groups(codec, groups):
    desk, speakers = DecodeQueue(codec), [Speaker(codec, seed, made=True) for seed in range(2 * GROUP + 3)]
    soundings = [desk.open(speaker.answer, soon=False) for speaker in speakers]
    for speaker, sounding in zip(speakers, soundings, strict=True):
        chunks = list(desk.chunks(sounding))
        assert [chunk.finish_reason for chunk in chunks] == ["stop"]
        np.testing.assert_allclose(heard(chunks), alone(codec, speaker), atol=1e-5)
        assert torch.equal(chunks[0].codes, speaker.codes)
    assert groups == [GROUP, GROUP, 3]
    assert desk._open == []


def test_who_is_waited_for_does_not_wait_for_the_chunks_of_others(codec, groups):
    desk = DecodeQueue(codec)
    patient = [desk.open(Speaker(codec, seed, made=True).answer, soon=False) for seed in range(GROUP)]
    speaker = Speaker(codec, 99)
    chunks = list(desk.chunks(desk.open(speaker.answer)))
    assert set(groups) == {1}
    assert [len(one.chunks) for one in patient] == [0] * GROUP
    np.testing.assert_allclose(heard(chunks), alone(codec, speaker), atol=1e-5)
    groups.clear()
    assert len(list(desk.chunks(patient[0]))) == 1
    assert groups == [GROUP]


def test_who_is_waited_for_begins_while_another_thread_sounds(codec, monkeypatch):
    """It takes its steps; a lock held by who sounds would hold it up before the first."""
    desk, push = DecodeQueue(codec), module.push_many
    inside, enough = threading.Event(), threading.Event()

    def slow(*args):
        inside.set()
        assert enough.wait(20)
        return push(*args)

    monkeypatch.setattr(module, "push_many", slow)
    patient = desk.open(Speaker(codec, 1, made=True).answer, soon=False)
    thread = threading.Thread(target=lambda: list(desk.chunks(patient)))
    thread.start()
    assert inside.wait(20)
    speaker = Speaker(codec, 2)
    chunks = desk.chunks(desk.open(speaker.answer))
    waiting = threading.Thread(target=next, args=(chunks,))
    waiting.start()
    while speaker._columns and waiting.is_alive():
        waiting.join(0.01)
    assert not speaker._columns
    enough.set()
    thread.join(20)
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_stream_that_the_garbage_collector_finds_while_another_is_sounded_is_closed(codec, monkeypatch):
    desk, push = DecodeQueue(codec), module.push_many
    left = desk.chunks(desk.open(Speaker(codec, 1).answer))
    next(left)
    cycle = [left]
    cycle.append(cycle)
    del left, cycle
    monkeypatch.setattr(module, "push_many", lambda *args: (gc.collect() and push(*args)) or push(*args))
    found, speaker = [], Speaker(codec, 2)
    thread = threading.Thread(target=lambda: found.extend(desk.chunks(desk.open(speaker.answer))), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    np.testing.assert_allclose(heard(found), alone(codec, speaker), atol=1e-5)
    assert desk._open == []


@pytest.mark.parametrize("place", ["pushing", "samples"])
def test_what_fails_for_one_fails_for_it_alone_and_nothing_is_sounded_twice(codec, monkeypatch, place):
    """While all are sounded, or as their sound comes from the device; `spoiled` fails alone too."""
    desk, push = DecodeQueue(codec), DecodeQueue._pushed
    speakers = [Speaker(codec, seed, made=True) for seed in range(3)]
    soundings = [desk.open(speaker.answer, soon=False) for speaker in speakers]

    def failing(self, ready, codes):
        if place == "pushing" and soundings[1] in ready:
            raise torch.OutOfMemoryError("no memory")
        sounds = push(self, ready, codes)
        if soundings[1] in ready:
            raise torch.OutOfMemoryError("no memory")
        return sounds

    monkeypatch.setattr(DecodeQueue, "_pushed", failing)
    for number in (0, 2):
        np.testing.assert_allclose(heard(desk.chunks(soundings[number])), alone(codec, speakers[number]), atol=1e-5)
    with pytest.raises(HiggsAudioError, match="no memory"):
        list(desk.chunks(soundings[1]))
    assert desk._open == []


def fail_once(monkeypatch, error):
    """The first time that sound has been made; how many were sounded at once, call by call."""
    push, calls = DecodeQueue._pushed, []

    def failing(self, ready, codes):
        sounds = push(self, ready, codes)
        calls.append(len(ready))
        if len(calls) == 1:
            raise error
        return sounds

    monkeypatch.setattr(DecodeQueue, "_pushed", failing)
    return calls


def test_an_interrupt_behind_the_sound_does_not_sound_it_twice(codec, monkeypatch):
    desk, speakers = DecodeQueue(codec), [Speaker(codec, seed, made=True) for seed in range(2)]
    soundings = [desk.open(speaker.answer, soon=False) for speaker in speakers]
    fail_once(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(desk.chunks(soundings[0]))
    np.testing.assert_allclose(heard(desk.chunks(soundings[1])), alone(codec, speakers[1]), atol=1e-5)


def test_what_failed_once_for_all_is_sounded_for_each(codec, monkeypatch):
    desk, speakers = DecodeQueue(codec), [Speaker(codec, seed, made=True) for seed in range(3)]
    soundings = [desk.open(speaker.answer, soon=False) for speaker in speakers]
    calls = fail_once(monkeypatch, RuntimeError("once"))
    for speaker, sounding in zip(speakers, soundings, strict=True):
        np.testing.assert_allclose(heard(desk.chunks(sounding)), alone(codec, speaker), atol=1e-5)
    assert calls == [3, 1, 1, 1]
