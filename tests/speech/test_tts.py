"""HiggsAudio on a tiny random checkpoint, whose noise has everything that speech has but sense."""

import asyncio
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import higgs_audio.speech.result
import higgs_audio.speech.tts
from higgs_audio import audio
from higgs_audio.audio.waveform import Waveform
from higgs_audio.engine import Engine
from higgs_audio.errors import (
    AudioError,
    CheckpointError,
    CodesError,
    EngineError,
    HiggsAudioError,
    NumericsError,
    OptionError,
    PromptError,
    TextError,
    VoiceError,
)
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.request import UTTERANCE_CHARS
from higgs_audio.speech.result import LOW_LATENCY_FRAMES
from higgs_audio.speech.stream import UTTERANCES_AHEAD
from higgs_audio.speech.tts import HiggsAudio
from higgs_audio.text.pace import count_phones, frame_bounds

TEXT = "The sun sets."
LONG = "Hello, all.\n\nGood night.\n\nBye now."  # three utterances


@pytest.fixture(scope="module")
def tts(tiny_checkpoint: Path) -> HiggsAudio:
    return HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu")


def sound(seconds: float, sample_rate: int = 24000) -> Waveform:
    """Quiet noise."""
    samples = np.random.default_rng(0).normal(0, 0.1, int(seconds * sample_rate))
    return audio.from_array(samples.clip(-1, 1), sample_rate)


def prefer(tts, monkeypatch, bias):
    """Adds `bias` to the logits of stream eos."""
    step, ends = tts.engine._runner.step, torch.zeros(1026)
    ends[1025] = bias
    monkeypatch.setattr(tts.engine._runner, "step", lambda *args: step(*args) + ends)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    audio.write(sound(1.0), tmp_path / "me.wav")
    return tmp_path / "me.wav"


def test_a_text_becomes_speech_of_bounded_length(tts):
    speech = tts.generate(TEXT, seed=1)
    least, most = frame_bounds(count_phones(TEXT, phonemes=True), 25)
    assert speech.codes.shape[0] == 8
    assert least <= speech.codes.shape[1] <= most + 25
    assert speech.codes.dtype == np.int64
    assert speech.waveform.sample_rate == tts.sample_rate == 24000
    assert len(speech.waveform.samples) == 960 * speech.codes.shape[1]
    assert speech.seconds == speech.codes.shape[1] / 25


def test_the_sound_is_what_the_codes_decode_to(tts):
    speech = tts.generate("Hello there.", seed=3)
    decoded = tts.codec.decode(torch.from_numpy(speech.codes)[None]).audio_values[0, 0]
    assert np.abs(decoded.numpy() - speech.waveform.samples).max() < 1e-4


def test_generate_is_the_concatenation_of_the_stream(tts, monkeypatch):
    prefer(tts, monkeypatch, -100.0)
    chunks = list(tts.stream(LONG, seed=2))
    whole = tts.generate(LONG, seed=2)
    assert len(chunks) >= 6
    assert all(len(chunk.samples) for chunk in chunks)
    assert np.array_equal(np.concatenate([chunk.samples for chunk in chunks]), whole.waveform.samples)


def test_the_first_chunk_comes_after_a_few_frames(tts, monkeypatch):
    """4 frames and those that this decoder looks ahead, whatever the length of the text."""
    prefer(tts, monkeypatch, -100.0)
    first = next(tts.stream(LONG * 10, seed=2))
    assert 4 / 25 <= first.seconds < 5 / 25


def test_chunks_double_so_that_little_is_decoded_twice(tts, monkeypatch):
    prefer(tts, monkeypatch, -100.0)
    lengths = [round(25 * chunk.seconds) for chunk in tts.stream("Many words of a length like these. " * 3, seed=2)]
    assert lengths[:4] == [4, 8, 16, 32]
    assert max(lengths) <= 64 + 2


def test_the_same_words_twice_are_not_said_twice_in_the_same_way(tts, monkeypatch):
    prefer(tts, monkeypatch, -100.0)
    first, second = np.split(tts.generate("Hello.\n\nHello.", seed=1).codes, 2, axis=1)
    assert not np.array_equal(first, second)


def test_equal_seeds_give_equal_speech_and_others_do_not(tts):
    first, again, other = (tts.generate("Hello there.", seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first.codes, again.codes)
    assert not np.array_equal(first.codes, other.codes)


def test_voices_are_named_and_the_first_is_the_default(tts):
    assert tts.voices == ("ava", "joe")
    assert tts.voice("joe").profile == "Joe"
    default, ava, joe = (tts.generate("Hello there.", voice, seed=1).codes for voice in (None, "ava", tts.voice("joe")))
    assert np.array_equal(default, ava)
    assert not np.array_equal(default, joe)


def test_a_recording_with_its_transcript_is_a_voice(tts, recording):
    voice = tts.voice(recording, transcript=" Hello. ")
    assert voice.codes.shape == (8, 25)
    assert voice.transcript == "Hello."
    from_bytes = tts.voice(recording.read_bytes(), transcript="Hello.")
    assert np.array_equal(voice.codes, from_bytes.codes)
    cloned = tts.generate("Hello there.", voice, seed=1)
    assert not np.array_equal(cloned.codes, tts.generate("Hello there.", seed=1).codes)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_recordings_of_any_rate_are_resampled(tts, rate):
    assert tts.voice(sound(1.0, rate), "Hello.").codes.shape == (8, 25)


def test_stereo_and_float64_recordings_are_read(tts, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "stereo.wav", np.full((24000, 2), 0.1), 24000, subtype="DOUBLE")
    assert tts.voice(tmp_path / "stereo.wav", "Hello.").codes.shape == (8, 25)


def test_a_voice_that_nobody_named_stays_the_first_utterance_s(tts, monkeypatch):
    """Without a profile or reference each utterance would be spoken by somebody else."""
    nameless = HiggsAudio(tts.model, tts.processor)
    prompts = []
    original = type(tts.processor).apply_chat_template

    def listen(processor, messages, **options):
        prompts.append(messages)
        return original(processor, messages, **options)

    monkeypatch.setattr(type(tts.processor), "apply_chat_template", listen)
    speech = nameless.generate(LONG, seed=1)
    spoken = [turn["content"][0]["codes"] for turns in prompts for turn in turns if turn["role"] == "assistant"]
    assert len(spoken) == 2  # in the prompts of the second and the third
    for codes in spoken:
        assert np.array_equal(codes, speech.codes[:, : codes.shape[1]])


def test_every_utterance_has_a_limit_and_reaching_it_is_said(tts, monkeypatch):
    prefer(tts, monkeypatch, -100.0)
    phones = count_phones("Hello there.", phonemes=True)
    speech = tts.generate("Hello there.", seed=1)
    assert speech.finish_reason == "length"
    assert speech.codes.shape[1] == frame_bounds(phones, 25)[1]


def test_max_seconds_holds_for_all_utterances_together(tts, monkeypatch):
    prefer(tts, monkeypatch, -100.0)
    whole = tts.generate(LONG, seed=1)
    for seconds in (whole.seconds - 0.4, 0.4):
        speech = tts.generate(LONG, seed=1, max_seconds=seconds)
        assert (speech.seconds, speech.finish_reason) == (pytest.approx(seconds), "length")
    first = frame_bounds(count_phones(LONG.split("\n")[0], phonemes=True), 25)[1] / 25
    assert tts.generate(LONG, seed=1, max_seconds=first).seconds == first  # the others are left out
    assert tts.generate(LONG, seed=1, max_seconds=0.04).codes.shape == (8, 1)


def test_an_end_that_the_model_chooses_is_a_stop_but_not_before_the_least_length(tts, monkeypatch):
    prefer(tts, monkeypatch, 100.0)
    speech = tts.generate("Hello there.", seed=1)
    least, _ = frame_bounds(count_phones("Hello there.", phonemes=True), 25)
    assert (speech.codes.shape[1], speech.finish_reason) == (least, "stop")


def test_progress_is_told_in_seconds_of_sound(tts):
    seconds = []
    speech = tts.generate("Hello there.", seed=1, progress=seconds.append)
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(speech.seconds)


def test_a_scene_becomes_part_of_the_prompt(tts):
    quiet = tts.generate("Hello there.", seed=1, scene="Audio is recorded from a quiet room.")
    assert not np.array_equal(quiet.codes, tts.generate("Hello there.", seed=1).codes)


def test_greedy_choices_need_no_seed(tts):
    first, again = (tts.generate("Hi there.", do_sample=False, max_seconds=0.4) for _ in range(2))
    assert np.array_equal(first.codes, again.codes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "letter or digit"),
        (" \n\t", "letter or digit"),
        ("?!...", "letter or digit"),
        ("Hello <|eot_id|> you", "<|eot_id|>"),
        ("<|AUDIO_OUT|>", "<|AUDIO_OUT|>"),
        ("Well <SE>[Laughter]</SE>", "<SE>"),
        ("Hello there.\n\n你好。", "English"),
    ],
)
def test_text_that_cannot_be_spoken_is_refused_before_the_first_sound(tts, text, said):
    with pytest.raises(TextError, match=said.replace("|", r"\|")):
        tts.stream(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": 0}, "top_k=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"max_seconds": 0}, "max_seconds=0"),
        ({"max_seconds": float("nan")}, "max_seconds=nan"),
        ({"max_seconds": "5"}, "max_seconds='5'"),
        ({"max_seconds": True}, "max_seconds=True"),
        ({"top_k": "5"}, "top_k='5'"),
        ({"max_new_tokens": 5}, "no option 'max_new_tokens'"),
    ],
)
def test_an_option_that_is_wrong_is_refused_before_the_first_sound(tts, options, said):
    with pytest.raises(OptionError, match=said):
        tts.stream("Hello.", **options)


def test_a_special_token_in_the_scene_is_refused(tts):
    with pytest.raises(PromptError, match="scene_desc_end"):
        tts.generate("Hello.", scene="A room.<|scene_desc_end|>")


def test_a_voice_that_does_not_exist_names_the_nearest(tts):
    for ask in (tts.voice, lambda name: tts.generate("Hello.", name)):
        with pytest.raises(VoiceError, match="did you mean 'ava'"):
            ask("avaa")
    with pytest.raises(VoiceError, match="transcript"):
        tts.generate("Hello.", Path("me.wav"))


def test_a_recording_without_transcript_and_a_name_with_one_are_refused(tts, recording):
    with pytest.raises(VoiceError, match="needs its transcript"):
        tts.voice(recording)
    with pytest.raises(VoiceError, match="takes no transcript"):
        tts.voice("ava", transcript="Hello.")
    with pytest.raises(TextError, match="letter or digit"):
        tts.voice(recording, transcript="...")


@pytest.mark.parametrize("source", ["nowhere.wav", Path("nowhere"), b"", b"not a sound"])
def test_a_recording_that_cannot_be_read_is_refused(tts, source):
    with pytest.raises(AudioError):
        tts.voice(source, transcript="Hello.")


@pytest.mark.parametrize("seconds", [118 / 24000, 30.5, 200.0])
def test_a_recording_that_is_too_short_or_too_long_is_refused(tts, tmp_path, seconds):
    given = sound(seconds)
    audio.write(given, tmp_path / "x.wav")
    for source in (given, tmp_path / "x.wav"):
        with pytest.raises(AudioError, match=r"118|30"):
            tts.voice(source, transcript="Hello.")


@pytest.mark.parametrize("codes", [np.full((8, 3), 1024), np.full((8, 3), -1), np.zeros((7, 3), int)])
def test_a_reference_with_impossible_codes_is_refused(tts, codes):
    with pytest.raises(CodesError):
        tts.stream("Hello.", Voice(transcript="Hi.", codes=codes))


def test_a_slow_reference_raises_the_limit():
    assert frame_bounds(100, 25, reference_pace=0.2)[1] > frame_bounds(100, 25)[1]
    assert frame_bounds(100, 25, reference_pace=0.05) == frame_bounds(100, 25) == (75, 325)


def test_text_that_is_not_phonemes_counts_figures_and_ideographs_more():
    assert count_phones("ab 12, 你", phonemes=False) == 2 + 15
    assert count_phones("It was 1984.", phonemes=True) > count_phones("It was.", phonemes=True) + 10


def test_utterances_are_no_longer_than_the_model_has_learned(tts):
    request = tts.request("word " * 100, None, {})
    assert max(map(len, request.utterances)) <= UTTERANCE_CHARS + 1  # a full stop may be added


@pytest.mark.parametrize(
    ("name", "said"),
    [("nanno", "did you mean 'nano'"), ("", "allowed: nano"), ("org/no-such-model", "neither a folder here nor")],
)
def test_a_model_that_does_not_exist_names_the_nearest(name, said):
    with pytest.raises(CheckpointError, match=said):
        HiggsAudio.from_pretrained(name)


def test_a_device_that_does_not_exist_is_refused(tiny_checkpoint):
    with pytest.raises(OptionError, match="toaster"):
        HiggsAudio.from_pretrained(tiny_checkpoint, device="toaster")


def without(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def replaced(name, text):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        without("config.json"),
        without("model.safetensors"),
        without("tokenizer.json"),
        without("codec/model.safetensors"),
        cut("model.safetensors"),
        cut("codec/model.safetensors"),
        replaced("config.json", "{"),
        replaced("tokenizer.json", "{}"),
        replaced("processor_config.json", "{"),
        replaced("voices.json", '["ava"]'),
        replaced("generation_config.json", "{"),
        lambda folder: shutil.rmtree(folder / "codec"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(tiny_checkpoint, tmp_path, damage):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError):
        HiggsAudio.from_pretrained(tmp_path / "model", device="cpu")


def test_weights_that_are_missing_or_unknown_are_refused_by_name(tiny_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    norm = weights.pop("model.norm.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing weights .*model\.norm\.weight"):
        HiggsAudio.from_pretrained(tmp_path / "model", device="cpu")
    weights |= {"model.norm.weight": norm, "model.more.weight": norm.clone()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 unexpected weights .*model\.more\.weight"):
        HiggsAudio.from_pretrained(tmp_path / "model", device="cpu")


def test_every_error_is_of_the_package(tts):
    for error in (TextError, OptionError, VoiceError, AudioError, CheckpointError, CodesError):
        assert issubclass(error, HiggsAudioError)


def test_the_checkpoint_s_own_sampling_is_the_default(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"do_sample": false}', encoding="utf-8")
    calm = HiggsAudio.from_pretrained(tmp_path / "model", device="cpu")
    first, again = (calm.generate("Hi there.", max_seconds=0.4).codes for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, calm.generate("Hi there.", max_seconds=0.4, do_sample=True, seed=1).codes)


@pytest.mark.parametrize("voice", [5, None, b"ava", ["ava"]])
def test_a_voice_of_another_type_is_refused(tts, voice):
    with pytest.raises((VoiceError, AudioError)):
        tts.voice(voice) if voice is not None else tts.generate("Hello.", voice=5)


@pytest.mark.parametrize("voices", [5, ["ava"], {"ava": "Ava"}, {"ava": {"profile": None}}])
def test_the_parts_of_the_facade_have_their_types(tts, voices):
    with pytest.raises(OptionError, match="voices="):
        HiggsAudio(tts.model, tts.processor, voices)
    with pytest.raises(OptionError, match="give a HiggsAudioForConditionalGeneration"):
        HiggsAudio(tts.processor, tts.model)


def test_a_scene_and_progress_have_their_types(tts):
    with pytest.raises(PromptError, match="the scene is a int"):
        tts.stream("Hello.", scene=5)
    with pytest.raises(OptionError, match="progress=5"):
        tts.generate("Hello.", progress=5)


def test_a_sound_in_brackets_is_a_token_where_the_model_reads_written_text(tts):
    """As its error message and the published examples promise; a model of phonemes reads the word."""
    written = HiggsAudio(tts.model, HiggsAudioProcessor(tts.processor.tokenizer, tts.codec))
    for speaker, expected in ((written, True), (tts, False)):
        request = speaker.request("Well [laugh]. Yes.", None, {})
        assert any("<SE>[Laughter]</SE>" in utterance for utterance in request.utterances) == expected


# Several at once.


def test_texts_spoken_together_are_what_each_is_alone(tts):
    texts = ["Hello there.", LONG, "Good night."]
    together = tts.generate_batch(texts, seed=3)
    for text, speech in zip(texts, together, strict=True):
        alone = tts.generate(text, seed=3)
        assert np.array_equal(speech.codes, alone.codes)
        assert np.abs(speech.waveform.samples - alone.waveform.samples).max() < 1e-4
        assert 0 < speech.first_sound_seconds < 60
    assert tts.engine.num_running == 0


def test_a_text_that_cannot_be_said_is_refused_before_any_other_is(tts):
    with pytest.raises(TextError, match="special token"):
        tts.generate_batch(["Hello there.", "<|eot_id|>"], seed=3)
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)


def test_streams_in_asyncio_are_those_outside(tts):
    async def listen(seed):
        chunks = [chunk.samples async for chunk in tts.stream_async("Hello there.", seed=seed)]
        return np.concatenate(chunks), await tts.generate_async("Hello there.", seed=seed)

    async def both():
        return await asyncio.gather(listen(1), listen(2))

    for seed, (streamed, speech) in zip((1, 2), asyncio.run(both()), strict=True):
        whole = tts.generate("Hello there.", seed=seed).waveform.samples
        assert np.abs(streamed - whole).max() < 1e-4
        assert np.abs(speech.waveform.samples - whole).max() < 1e-4


def test_low_latency_speaks_after_fewer_columns_and_says_the_same(tts, monkeypatch):
    prefer(tts, monkeypatch, -100.0)
    step, steps, waited, spoken = tts.engine._runner.step, [], {}, {}
    monkeypatch.setattr(tts.engine._runner, "step", lambda *args: steps.append(1) or step(*args))
    for low_latency in (False, True):
        steps.clear()
        stream = tts.stream("Hello there.", seed=2, low_latency=low_latency)
        first = next(stream).samples
        waited[low_latency] = len(steps)
        spoken[low_latency] = np.concatenate([first, *(chunk.samples for chunk in stream)])
    assert waited[False] - waited[True] == tts.codec.decoder_context[1] - LOW_LATENCY_FRAMES
    assert spoken[True].shape == spoken[False].shape
    assert np.abs(spoken[True] - spoken[False]).max() < 0.1 * np.abs(spoken[False]).max()
    with pytest.raises(OptionError, match="low_latency='no'"):
        tts.stream("Hello there.", low_latency="no")


def test_a_stream_that_is_left_leaves_nothing_behind(tts, monkeypatch):
    prefer(tts, monkeypatch, -100.0)
    stream = tts.stream(LONG, seed=2)
    next(stream)
    assert tts.engine.num_running == 1
    stream.close()
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)

    async def leave():
        stream = tts.stream_async(LONG, seed=2)
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(leave())
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)


def test_a_batch_that_is_interrupted_leaves_nothing_behind(tts, monkeypatch):
    prefer(tts, monkeypatch, -100.0)
    step, steps = tts.engine._runner.step, []

    def interrupted(*args):
        steps.append(1)
        if len(steps) == 20:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(tts.engine._runner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tts.generate_batch([LONG, LONG], seed=1)
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)
    assert tts.generate("Hello there.", seed=5).seconds > 0


def test_a_text_whose_numbers_fail_does_not_take_the_others_with_it(tts, monkeypatch):
    healthy = [tts.generate(text, seed=3).codes for text in ("Hello there.", "Good night.")]
    logits = tts.engine._runner.step

    def spoiled(*args):
        made = logits(*args).clone()
        if len(tts.engine._rows.speaking) == 3:
            made[tts.engine._rows.speaking[1].rows[0]] = float("nan")
        return made

    monkeypatch.setattr(tts.engine._runner, "step", spoiled)
    requests = [tts.request(text, None, {"seed": 3}) for text in ("Hello there.", "Bad luck.", "Good night.")]
    results = dict(tts.generate_as_completed(requests))
    first, broken, last = (results[number] for number in range(3))
    assert isinstance(broken, NumericsError)
    assert np.array_equal(first.codes, healthy[0])
    assert np.array_equal(last.codes, healthy[1])


def test_threads_that_speak_first_share_one_engine(tiny_checkpoint, monkeypatch):
    made, make = [], higgs_audio.speech.tts.Engine

    def slow(*args, **options):
        made.append(1)
        time.sleep(0.2)
        return make(*args, **options)

    monkeypatch.setattr(higgs_audio.speech.tts, "Engine", slow)
    tts = HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu")
    with ThreadPoolExecutor(4) as pool:
        codes = [speech.codes for speech in pool.map(lambda _: tts.generate("Hello there.", seed=1), range(4))]
    assert len(made) == 1
    assert all(np.array_equal(codes[0], other) for other in codes)
    tts.engine = make(tts.model, context=512, max_rows=2)
    assert tts.engine.context == 512


# What one text does to others.


def test_a_text_too_long_for_the_engine_fails_alone_and_nothing_of_it_stays(tts, monkeypatch):
    monkeypatch.setattr(tts, "_engine", Engine(tts.model, context=200))
    long = "Many words of a length like these are too much for a small engine. "
    requests = [tts.request(text, None, {"seed": 3}) for text in ("Hello there.", long, "Good night.")]
    results = dict(tts.generate_as_completed(requests))
    assert isinstance(results[1], OptionError)
    assert results[0].seconds > 0
    assert results[2].seconds > 0
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)


def test_long_texts_and_many_of_them_ask_for_no_more_than_may_wait(tts, monkeypatch):
    """Every utterance of a book was asked for at once, and the engine takes a thousand."""
    alone = tts.generate(LONG, seed=3)
    monkeypatch.setattr(tts, "_engine", Engine(tts.model, max_waiting=6 * UTTERANCES_AHEAD, max_rows=2))
    monkeypatch.setattr("higgs_audio.speech.stream.TOGETHER", 6)
    book = "\n\n".join(["Hello, all."] * 40)
    spoken = tts.generate_batch([LONG, *[book] * 2, *["Hello."] * 20, LONG], seed=3)
    assert np.array_equal(spoken[0].codes, alone.codes)
    assert np.array_equal(spoken[-1].codes, alone.codes)
    assert len(spoken) == 24


def test_one_text_is_no_list_of_texts(tts):
    with pytest.raises(TextError, match=r"give a list"):
        tts.generate_batch("Hello there.", seed=3)
    assert tts.generate_batch([]) == []


def test_a_stream_whose_task_is_cancelled_ends_its_work(tts, monkeypatch):
    """Its generator was closed while a thread was still in it."""
    prefer(tts, monkeypatch, -100.0)

    async def listen(begun):
        async for _ in tts.stream_async(LONG * 5, seed=2):
            begun.set()

    async def cancel():
        begun = asyncio.Event()
        task = asyncio.create_task(listen(begun))
        await begun.wait()
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)


def test_a_recording_is_encoded_once_however_often_it_is_a_voice(tts, recording, monkeypatch):
    encode, calls = tts.processor.encode_audio, []
    tts._references.clear()
    monkeypatch.setattr(tts.processor, "encode_audio", lambda waveform: calls.append(1) or encode(waveform))
    first, again = tts.voice(recording, "Noise."), tts.voice(recording.read_bytes(), "Other words.")
    assert np.array_equal(first.codes, again.codes)
    assert (first.transcript, again.transcript, len(calls)) == ("Noise.", "Other words.", 1)
    first.codes[:] = 0  # one's own
    assert not np.array_equal(tts.voice(recording, "Noise.").codes, first.codes)
    assert len(calls) == 1
    tts.voice(Waveform(audio.read(recording).samples * 0.5, 24000), "Noise.")
    assert len(calls) == 2


def test_many_bad_texts_before_good_ones_do_not_end_the_list(tts, monkeypatch):
    """Sixteen errors in a row while nobody spoke were taken for the end."""
    monkeypatch.setattr(tts, "_engine", Engine(tts.model, context=200))
    long = "Many words of a length like these are too much for a small engine. "
    texts = [long] * 20 + ["Hello there."] * 3
    results = dict(tts.generate_as_completed(tts.request(text, None, {"seed": 3}) for text in texts))
    assert sorted(results) == list(range(23))
    assert [isinstance(results[number], OptionError) for number in range(23)] == [True] * 20 + [False] * 3


def test_an_audio_tokenizer_that_fails_ends_its_text_alone(tts, monkeypatch):
    alone = tts.generate("Good night.", seed=3)
    push, broken = higgs_audio.speech.decode_queue.push_many, []

    def failing(decoders, *args):
        broken[:] = broken or decoders[:1]
        if broken[0] in decoders:
            raise RuntimeError("out of memory")
        return push(decoders, *args)

    monkeypatch.setattr(higgs_audio.speech.decode_queue, "push_many", failing)
    requests = [tts.request(text, None, {"seed": 3}) for text in ("Hello there.", "Good night.")]
    results = dict(tts.generate_as_completed(requests))
    assert isinstance(results[0], EngineError)
    assert isinstance(results[0].__cause__, RuntimeError)
    assert np.array_equal(results[1].codes, alone.codes)
    broken.clear()
    with pytest.raises(EngineError, match="out of memory"):
        tts.generate("Hello there.", seed=3)
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)


def test_a_stream_that_waits_for_others_can_be_cancelled_at_once(tts, monkeypatch):
    """It came back when it had been given room and had spoken."""
    prefer(tts, monkeypatch, -100.0)
    monkeypatch.setattr(tts, "_engine", Engine(tts.model, max_rows=1))
    made = []

    async def run():
        async def listen():
            async for _ in tts.stream_async("Good night.", seed=2):
                made.append(1)

        written = tts._writer.write(tts.request("Hello there.", None, {"seed": 1}), 0)
        other = tts.engine.submit(replace(written, min_frames=1500, max_frames=1500, guarded=False))
        next(other)
        task = asyncio.create_task(listen())
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


def test_an_asynchronous_stream_raises_what_a_stream_raises(tts):
    async def listen(**options):
        async for _ in tts.stream_async("Hello.", **options):
            pass

    with pytest.raises(OptionError, match="no option 'temperatur'"):
        asyncio.run(listen(temperatur=1))
    asyncio.run(listen(low_latency=True, seed=1, max_seconds=0.2))


@pytest.mark.parametrize(
    ("text", "scene", "error"), [("Half \ud800.", None, TextError), ("Hello.", "\udfff", PromptError)]
)
def test_half_a_character_is_refused(tts, text, scene, error):
    with pytest.raises(error, match="half of a character"):
        tts.generate(text, scene=scene)


def test_a_stream_that_is_cancelled_as_it_begins_asks_for_nothing_that_stays(tts, monkeypatch):
    """What a thread asked for when nobody waited for it any more kept its rows."""
    submit = tts.engine.submit
    begun = threading.Event()

    def slow(request):
        begun.set()
        time.sleep(0.2)
        return submit(request)

    monkeypatch.setattr(tts.engine, "submit", slow)

    async def run():
        async def listen():
            async for _ in tts.stream_async("Good night.", seed=2):
                pass

        task = asyncio.create_task(listen())
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert (tts.engine.num_running, tts.engine.num_waiting) == (0, 0)


def test_a_text_that_cannot_be_begun_leaves_nothing_behind(tts, monkeypatch):
    """Its first utterances have been asked for by then."""
    write, calls = tts._writer.write, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("no memory")
        return write(*args)

    request = tts.request("One two three. " * 40, tts.voices[0], {"seed": 1})
    assert request.is_free
    monkeypatch.setattr(tts._writer, "write", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        list(tts.generate_as_completed([request]))
    assert (tts._desk._open, tts.engine.num_waiting, tts.engine.num_running) == ([], 0, 0)
