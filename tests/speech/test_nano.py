"""Tests of the embedded checkpoint: its size, architecture, and intelligibility."""

import numpy as np
import pytest

from higgs_audio import NANO, HiggsAudio
from higgs_audio.checkpoint.find import num_bytes
from higgs_audio.evaluate.metrics import word_errors
from higgs_audio.listen.asr import transcribe

SENTENCE = "The sun rises in the east and sets in the west."
VOICES = ("ava", "joe", "sally", "angus")


@pytest.fixture(scope="module")
def tts():
    return HiggsAudio.from_pretrained("nano")


def test_nano_takes_at_most_80_megabytes():
    assert num_bytes(NANO) <= 80_000_000


def test_nano_has_the_published_architecture(tts):
    config, codec = tts.model.config, tts.codec.config
    assert config.audio_dual_ffn_layers == list(range(config.text_config.num_hidden_layers))
    assert (config.audio_num_codebooks, config.audio_codebook_size) == (8, 1024)
    assert (codec.sample_rate, codec.frame_rate, codec.num_codebooks, codec.codebook_size) == (24000, 25, 8, 1024)
    assert codec.semantic.num_hidden_layers >= 1
    assert tuple(tts.voices) == VOICES


@pytest.mark.parametrize("voice", VOICES)
def test_whisper_recognizes_most_words_of_a_sentence_in_every_voice(tts, voice):
    speech = tts.generate(SENTENCE, voice=voice, seed=1)
    assert speech.finish_reason == "stop"
    assert 1.5 < speech.seconds < 5
    errors = word_errors(SENTENCE, transcribe([speech.waveform])[0].text)
    assert errors.errors / errors.total <= 0.4, errors


def test_the_stream_equals_generate(tts):
    whole = tts.generate(SENTENCE, seed=2)
    chunks = [chunk.samples for chunk in tts.stream(SENTENCE, seed=2)]
    assert len(chunks) > 1
    np.testing.assert_allclose(np.concatenate(chunks), whole.waveform.samples, atol=1e-4)
