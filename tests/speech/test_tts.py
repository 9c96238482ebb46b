"""Tests of HiggsAudio on a tiny checkpoint with random weights: generate, stream, limits and options."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from hooks import counted_calls
from noise import LONG, TEXT
from transformers import GenerationConfig

from higgs_audio.errors import OptionError
from higgs_audio.generation.guidance import last_text, mask_last_text
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import Turn, compose, to_messages
from higgs_audio.speech.request import RequestBuilder
from higgs_audio.speech.result import LOW_LATENCY_FRAMES
from higgs_audio.speech.tts import HiggsAudio
from higgs_audio.text.pace import count_phones, frame_bounds
from higgs_audio.text.utterances import MAX_CHARS


def test_speech_has_a_bounded_length(tts):
    speech = tts.generate(TEXT, seed=1)
    minimum, maximum = frame_bounds(count_phones(TEXT, phonemes=True), 25)
    assert speech.codes.shape[0] == 8
    assert minimum <= speech.codes.shape[1] <= maximum + 25
    assert speech.codes.dtype == np.int64
    assert speech.waveform.sample_rate == tts.sample_rate == 24000
    assert len(speech.waveform.samples) == 960 * speech.codes.shape[1]
    assert speech.seconds == speech.codes.shape[1] / 25


def test_the_waveform_is_the_decoded_codes(tts):
    speech = tts.generate("Hello there.", seed=3)
    decoded = tts.codec.decode(torch.from_numpy(speech.codes)[None]).audio_values[0, 0]
    assert np.abs(decoded.numpy() - speech.waveform.samples).max() < 1e-4


def test_generate_is_the_concatenation_of_the_stream(endless):
    chunks = list(endless.stream(LONG, seed=2))
    whole = endless.generate(LONG, seed=2)
    assert len(chunks) >= 6
    assert all(len(chunk.samples) for chunk in chunks)
    assert np.array_equal(np.concatenate([chunk.samples for chunk in chunks]), whole.waveform.samples)


def test_the_first_chunk_comes_after_a_few_frames(endless):
    """The first chunk has 4 frames and is delayed by the look-ahead of the decoder, whatever the length of the text."""
    first = next(endless.stream(LONG * 10, seed=2))
    assert 4 / 25 <= first.seconds < 5 / 25


def test_chunks_double_so_that_little_is_decoded_twice(endless):
    lengths = [round(25 * chunk.seconds) for chunk in endless.stream("Many words of a length like these. " * 3, seed=2)]
    assert lengths[:4] == [4, 8, 16, 32]
    assert max(lengths) <= 64 + 2


def test_low_latency_needs_fewer_steps_for_nearly_the_same_sound(endless):
    waited, samples = {}, {}
    next(endless.stream("Hello there.", seed=2))  # prefills what precedes the text
    for low_latency in (False, True):
        stream = endless.stream("Hello there.", seed=2, low_latency=low_latency)
        with counted_calls(endless.model.model.embed_audio_tokens) as steps:
            first = next(stream).samples
        waited[low_latency] = len(steps)
        samples[low_latency] = np.concatenate([first, *(chunk.samples for chunk in stream)])
    assert waited[False] - waited[True] == endless.codec.decoder_context[1] - LOW_LATENCY_FRAMES
    assert samples[True].shape == samples[False].shape
    assert np.abs(samples[True] - samples[False]).max() < 0.1 * np.abs(samples[False]).max()
    with pytest.raises(OptionError, match="low_latency='no'"):
        endless.stream("Hello there.", low_latency="no")


def test_a_repeated_utterance_has_other_codes(endless):
    first, second = np.split(endless.generate("Hello.\n\nHello.", seed=1).codes, 2, axis=1)
    assert not np.array_equal(first, second)


def test_equal_seeds_give_equal_speech_and_others_do_not(tts):
    first, again, other = (tts.generate("Hello there.", seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first.codes, again.codes)
    assert not np.array_equal(first.codes, other.codes)


def test_greedy_decoding_is_deterministic_without_a_seed(tts):
    first, again = (tts.generate("Hi there.", do_sample=False, max_seconds=0.4) for _ in range(2))
    assert np.array_equal(first.codes, again.codes)


def test_sampling_options_default_to_those_of_the_checkpoint(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"do_sample": false}', encoding="utf-8")
    calm = HiggsAudio.from_pretrained(tmp_path / "model", device="cpu")
    first, again = (calm.generate("Hi there.", max_seconds=0.4).codes for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, calm.generate("Hi there.", max_seconds=0.4, do_sample=True, seed=1).codes)


class Recording(HiggsAudioProcessor):
    """A processor that keeps the conversations that it renders."""

    def __init__(self, tts):
        super().__init__(tts.processor.tokenizer, tts.codec, text_frontend=tts.processor.text_frontend)
        self.rendered = []

    def encode_conversations(self, conversations, **options):
        self.rendered.extend(conversations)
        return super().encode_conversations(conversations, **options)


def test_without_a_voice_later_utterances_continue_the_first(tts):
    """Without a profile or reference, each utterance would have a different voice."""
    processor = Recording(tts)
    speech = HiggsAudio(tts.model, processor).generate(LONG, seed=1)
    turns = [turn for conversation in processor.rendered for turn in conversation if turn["role"] == "assistant"]
    assert len(turns) == 2  # in the prompts of the second and the third utterance
    for turn in turns:
        codes = turn["content"][0]["codes"]
        assert np.array_equal(codes, speech.codes[:, : codes.shape[1]])


def test_prompts_are_rendered_once_when_their_utterance_is_due(tts):
    processor = Recording(tts)
    stream = HiggsAudio(tts.model, processor).stream(LONG, tts.voice("ava"), seed=1)
    assert processor.rendered == []
    next(stream)
    assert len(processor.rendered) == 1
    list(stream)
    texts = [conversation[-1]["content"] for conversation in processor.rendered]
    assert texts == ["Hello, all.", "Good night.", "Bye now."]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_engine_request_is_that_of_the_plain_loop(tts, recording, scale):
    """Its prompt, the negative prompt of guidance, and the positions before the text."""
    voice = tts.voice(recording, "Hello.")
    request = tts.request(
        "[SPEAKER1] Good night.", voice, {"seed": 1, "scene": "A room.", "text_guidance_scale": scale}
    )
    built = RequestBuilder(tts.model, tts.processor).build(request, 0)
    messages = to_messages(compose([Turn("[SPEAKER1] Good night.", "SPEAKER0")], voice, scene="A room."))
    inputs = tts.processor.apply_chat_template(messages, force_audio=True)
    assert torch.equal(built.input_ids, inputs.input_ids[0])
    assert torch.equal(built.columns, inputs.audio_input_ids[0])
    assert built.prefix == last_text(built.input_ids, tts.processor.tokenizer)[0]
    if scale == 1.0:
        assert built.negative_ids is None
    else:
        assert torch.equal(built.negative_ids, mask_last_text(built.input_ids, tts.processor.tokenizer))


def test_an_utterance_that_reaches_its_limit_reports_length(endless):
    phones = count_phones("Hello there.", phonemes=True)
    speech = endless.generate("Hello there.", seed=1)
    assert speech.finish_reason == "length"
    assert speech.codes.shape[1] == frame_bounds(phones, 25)[1]


def test_max_seconds_limits_all_utterances_together(endless):
    whole = endless.generate(LONG, seed=1)
    for seconds in (whole.seconds - 0.4, 0.4):
        speech = endless.generate(LONG, seed=1, max_seconds=seconds)
        assert (speech.seconds, speech.finish_reason) == (pytest.approx(seconds), "length")
    first = frame_bounds(count_phones(LONG.split("\n")[0], phonemes=True), 25)[1] / 25
    assert endless.generate(LONG, seed=1, max_seconds=first).seconds == first  # the other utterances are not generated
    assert endless.generate(LONG, seed=1, max_seconds=0.04).codes.shape == (8, 1)


def test_the_model_ends_an_utterance_but_not_below_its_minimum_length(brief):
    speech = brief.generate("Hello there.", seed=1)
    minimum, _ = frame_bounds(count_phones("Hello there.", phonemes=True), 25)
    assert (speech.codes.shape[1], speech.finish_reason) == (minimum, "stop")


def test_a_slow_reference_raises_the_limit():
    assert frame_bounds(100, 25, reference_pace=0.2)[1] > frame_bounds(100, 25)[1]
    assert frame_bounds(100, 25, reference_pace=0.05) == frame_bounds(100, 25) == (75, 325)


def test_digits_and_ideographs_of_written_text_count_as_several_phones():
    assert count_phones("ab 12, 你", phonemes=False) == 2 + 15
    assert count_phones("It was 1984.", phonemes=True) > count_phones("It was.", phonemes=True) + 10


@pytest.mark.parametrize("stated", [None, 50, 110, 400])
def test_the_length_of_utterances_is_stated_by_the_checkpoint(tts, tiny_checkpoint, tmp_path, stated):
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "generation_config.json"
    fields = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(fields | ({} if stated is None else {"utterance_chars": stated})))
    request = HiggsAudio.from_pretrained(tmp_path / "checkpoint", device="cpu").request("word " * 200, None, {})
    longest = max(map(len, request.utterances))
    assert (stated or MAX_CHARS) / 2 < longest <= (stated or MAX_CHARS) + 1  # a full stop can be added


@pytest.mark.parametrize("stated", [19, 2000, "110", 1.5, -1])
def test_an_impossible_length_of_utterances_is_an_option_error(tts, stated):
    model = copy.copy(tts.model)
    model.generation_config = GenerationConfig()
    model.generation_config.utterance_chars = stated
    with pytest.raises(OptionError, match="utterance_chars"):
        HiggsAudio(model, tts.processor)


def test_progress_reports_the_seconds_of_generated_audio(tts):
    seconds = []
    speech = tts.generate("Hello there.", seed=1, progress=seconds.append)
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(speech.seconds)


def test_a_scene_becomes_part_of_the_prompt(tts):
    quiet = tts.generate("Hello there.", seed=1, scene="Audio is recorded from a quiet room.")
    assert not np.array_equal(quiet.codes, tts.generate("Hello there.", seed=1).codes)


def test_sounds_in_brackets_are_tokens_for_models_of_written_text(tts):
    """As in the error message and in the published examples; for a model of phonemes see `test_pauses.py`."""
    written = HiggsAudio(tts.model, HiggsAudioProcessor(tts.processor.tokenizer, tts.codec))
    request = written.request("Well [laugh]. Yes.", None, {})
    assert any("<SE>[Laughter]</SE>" in utterance for utterance in request.utterances)
