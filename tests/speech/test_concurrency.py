"""Tests of HiggsAudio with several texts at once: batches, threads, asyncio; cancellation and failures."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hooks import after_calls, before_calls
from noise import LONG

from higgs_audio.engine import Engine
from higgs_audio.errors import EngineError, NumericsError, OptionError, TextError
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.speech.decode_queue import DecodeQueue
from higgs_audio.speech.request import RequestBuilder
from higgs_audio.speech.stream import MAX_ACTIVE_TEXTS, UTTERANCES_AHEAD, SpeechStream
from higgs_audio.speech.tts import HiggsAudio


def test_a_batch_equals_its_texts_generated_alone(tts):
    texts = ["Hello there.", LONG, "Good night."]
    together = tts.generate_batch(texts, seed=3)
    for text, speech in zip(texts, together, strict=True):
        alone = tts.generate(text, seed=3)
        assert np.array_equal(speech.codes, alone.codes)
        assert np.abs(speech.waveform.samples - alone.waveform.samples).max() < 1e-4
        assert 0 < speech.first_audio_seconds < 60
    assert tts.engine.num_running == 0


def test_an_invalid_text_of_a_batch_is_rejected_before_any_is_generated(tts):
    with pytest.raises(TextError, match="special token"):
        tts.generate_batch(["Hello there.", "<|eot_id|>"], seed=3)
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)


def test_a_single_text_is_not_a_batch(tts):
    with pytest.raises(TextError, match=r"give a list"):
        tts.generate_batch("Hello there.", seed=3)
    assert tts.generate_batch([]) == []


def test_failing_texts_do_not_end_the_list(tts, with_engine):
    """Earlier, sixteen consecutive errors without a running text were treated as the end of the list."""
    tts = with_engine(tts, context=200)
    long = "Many words of a length like these are too much for a small engine. "
    texts = [long] * 20 + ["Hello there."] * 3
    results = dict(tts.generate_as_completed(tts.request(text, None, {"seed": 3}) for text in texts))
    assert sorted(results) == list(range(23))
    assert [isinstance(results[number], OptionError) for number in range(23)] == [True] * 20 + [False] * 3


def test_many_long_texts_never_exceed_the_waiting_limit(tts, with_engine):
    """Earlier, all utterances of a book were submitted at once, but the engine accepts a thousand."""
    alone = tts.generate(LONG, seed=3)
    limit = MAX_ACTIVE_TEXTS * UTTERANCES_AHEAD
    book = "\n\n".join(["Hello, all."] * 40)
    texts = [LONG, *[book] * 2, *["Hello."] * limit, LONG]
    speeches = with_engine(tts, max_waiting=limit, max_slots=2).generate_batch(texts, seed=3)
    assert np.array_equal(speeches[0].codes, alone.codes)
    assert np.array_equal(speeches[-1].codes, alone.codes)
    assert len(speeches) == len(texts)


def test_asyncio_streams_equal_other_streams(tts):
    async def collect(seed):
        chunks = [chunk.samples async for chunk in tts.stream_async("Hello there.", seed=seed)]
        return np.concatenate(chunks), await tts.generate_async("Hello there.", seed=seed)

    async def both():
        return await asyncio.gather(collect(1), collect(2))

    for seed, (streamed, speech) in zip((1, 2), asyncio.run(both()), strict=True):
        whole = tts.generate("Hello there.", seed=seed).waveform.samples
        assert np.abs(streamed - whole).max() < 1e-4
        assert np.abs(speech.waveform.samples - whole).max() < 1e-4


def test_an_asynchronous_stream_raises_the_errors_of_a_stream(tts):
    async def collect(**options):
        async for _ in tts.stream_async("Hello.", **options):
            pass

    with pytest.raises(OptionError, match="no option 'temperatur'"):
        asyncio.run(collect(temperatur=1))
    asyncio.run(collect(low_latency=True, seed=1, max_seconds=0.2))


def test_threads_that_start_at_once_share_one_engine(tiny_checkpoint):
    """Creating an engine encodes silence, here slowly."""
    tts = HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu")
    made = []

    def slow(_):
        made.append(1)
        time.sleep(0.2)

    with before_calls(tts.codec.acoustic_encoder, slow), ThreadPoolExecutor(4) as pool:
        codes = [speech.codes for speech in pool.map(lambda _: tts.generate("Hello there.", seed=1), range(4))]
    assert len(made) == 1
    assert all(np.array_equal(codes[0], other) for other in codes)
    tts.engine = Engine(tts.model, context=512, max_slots=2)
    assert tts.engine.context == 512


def test_a_text_too_long_for_the_engine_fails_alone(tts, with_engine):
    tts = with_engine(tts, context=200)
    long = "Many words of a length like these are too much for a small engine. "
    requests = [tts.request(text, None, {"seed": 3}) for text in ("Hello there.", long, "Good night.")]
    results = dict(tts.generate_as_completed(requests))
    assert isinstance(results[1], OptionError)
    assert results[0].seconds > 0
    assert results[2].seconds > 0
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)


def test_logits_with_nan_end_their_text_alone(tts):
    healthy = [tts.generate(text, seed=3).codes for text in ("Hello there.", "Good night.")]

    def add_nan(rows):  # embeddings [R, D], one for each slot
        if len(tts.engine.slots.decoding) == 3:
            rows = rows.clone()
            rows[tts.engine.slots.decoding[1].slots[0]] = float("nan")
        return rows

    requests = [tts.request(text, None, {"seed": 3}) for text in ("Hello there.", "Bad luck.", "Good night.")]
    with after_calls(tts.model.model.embed_audio_tokens, add_nan):
        results = dict(tts.generate_as_completed(requests))
    first, broken, last = (results[number] for number in range(3))
    assert isinstance(broken, NumericsError)
    assert np.array_equal(first.codes, healthy[0])
    assert np.array_equal(last.codes, healthy[1])


def test_a_failing_audio_tokenizer_ends_its_text_alone(tts):
    """It fails with the first text, also where both are decoded together."""
    first, alone = (tts.generate(text, seed=3) for text in ("Hello there.", "Good night."))
    assert first.codes.shape != alone.codes.shape

    def failing(latent):  # [1, F, D]
        if latent.shape[1] != alone.codes.shape[1]:
            raise RuntimeError("out of memory")

    requests = [tts.request(text, None, {"seed": 3}) for text in ("Hello there.", "Good night.")]
    with before_calls(tts.codec.fc2, failing):
        results = dict(tts.generate_as_completed(requests))
        assert isinstance(results[0], EngineError)
        assert isinstance(results[0].__cause__, RuntimeError)
        assert np.array_equal(results[1].codes, alone.codes)
        with pytest.raises(EngineError, match="out of memory"):
            tts.generate("Hello there.", seed=3)
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)


class FailingThird(HiggsAudioProcessor):
    """A processor that fails to encode a third conversation."""

    num_calls = 0

    def encode_conversations(self, conversations, **options):
        self.num_calls += 1
        if self.num_calls == 3:
            raise RuntimeError("no memory")
        return super().encode_conversations(conversations, **options)


def test_a_text_that_fails_to_start_frees_its_requests(tts):
    """Its first utterances have been submitted before."""
    processor = FailingThird(tts.processor.tokenizer, tts.codec, text_frontend="phonemes")
    failing = HiggsAudio(tts.model, processor)
    request = failing.request("One two three. " * 40, tts.voice("ava"), {"seed": 1})
    assert request.is_parallel
    with pytest.raises(RuntimeError, match="no memory"):
        list(failing.generate_as_completed([request]))
    assert (failing.engine.num_waiting, failing.engine.num_running) == (0, 0)
    processor.num_calls = 0
    builder, queue = RequestBuilder(tts.model, processor), DecodeQueue(tts.codec)
    with pytest.raises(RuntimeError, match="no memory"):
        SpeechStream(request, tts.engine, builder, queue, num_ahead=UTTERANCES_AHEAD, is_offline=True).start()
    assert (len(queue), tts.engine.num_waiting, tts.engine.num_running) == (0, 0, 0)


def test_an_abandoned_stream_frees_its_request(endless):
    engine = endless.engine
    stream = endless.stream(LONG, seed=2)
    next(stream)
    assert engine.num_running == 1
    stream.close()
    assert (engine.num_running, engine.num_waiting) == (0, 0)

    async def leave():
        stream = endless.stream_async(LONG, seed=2)
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(leave())
    assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_an_interrupted_batch_frees_its_requests(endless):
    passes = []

    def interrupted(*_):
        passes.append(1)
        if len(passes) == 20:
            raise KeyboardInterrupt

    with (
        before_calls(endless.model.model.embed_audio_tokens, interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        endless.generate_batch([LONG, LONG], seed=1)
    assert (endless.engine.num_running, endless.engine.num_waiting) == (0, 0)
    assert endless.generate("Hello there.", seed=5).seconds > 0


def test_cancelling_the_task_of_a_stream_frees_its_request(endless):
    """Earlier, its generator was closed while a thread was still running it."""

    async def collect(begun):
        async for _ in endless.stream_async(LONG * 5, seed=2):
            begun.set()

    async def cancel():
        begun = asyncio.Event()
        task = asyncio.create_task(collect(begun))
        await begun.wait()
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert (endless.engine.num_running, endless.engine.num_waiting) == (0, 0)


def test_cancelling_generate_async_stops_its_generation(endless):
    """Earlier, the text was generated to its end."""
    seconds = []

    async def cancel():
        task = asyncio.create_task(endless.generate_async(LONG * 5, seed=2, progress=seconds.append))
        while not seconds:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())  # waits for its threads
    assert (endless.engine.num_running, endless.engine.num_waiting) == (0, 0)
    assert seconds[-1] < endless.generate(LONG * 5, seed=2).seconds / 2


def test_a_waiting_stream_is_cancelled_at_once(endless, with_engine):
    """Earlier, the cancelled task returned only when its text had been admitted and generated."""
    tts, made = with_engine(endless, max_slots=1), []

    async def run():
        async def collect():
            async for _ in tts.stream_async("Good night.", seed=2):
                made.append(1)

        written = RequestBuilder(tts.model, tts.processor).build(tts.request("Hello there.", None, {"seed": 1}), 0)
        other = tts.engine.submit(replace(written, min_frames=1500, max_frames=1500, detect_loops=False))
        next(other)
        task = asyncio.create_task(collect())
        while not tts.engine.num_waiting:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not other.is_done
        assert tts.engine.num_waiting == 0
        other.cancel()

    asyncio.run(run())
    assert not made


def test_a_stream_cancelled_while_it_submits_frees_its_request(tts, with_engine):
    """Earlier, requests that a thread submitted after the cancellation kept their slots."""
    begun = threading.Event()

    class Slow(Engine):
        def submit(self, request):
            begun.set()
            time.sleep(0.2)
            return super().submit(request)

    tts = with_engine(tts, Slow)

    async def run():
        async def collect():
            async for _ in tts.stream_async("Good night.", seed=2):
                pass

        task = asyncio.create_task(collect())
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)
