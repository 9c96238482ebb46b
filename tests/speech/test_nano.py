"""The embedded checkpoint: what it is made of, and that people could follow what it says."""

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


def test_it_takes_at_most_80_megabytes():
    assert num_bytes(NANO) <= 80_000_000


def test_it_is_the_published_architecture_in_small(tts):
    config, codec = tts.model.config, tts.codec.config
    assert config.audio_dual_ffn_layers == list(range(config.text_config.num_hidden_layers))
    assert (config.audio_num_codebooks, config.audio_codebook_size) == (8, 1024)
    assert (codec.sample_rate, codec.frame_rate, codec.num_codebooks, codec.codebook_size) == (24000, 25, 8, 1024)
    assert codec.semantic.num_hidden_layers >= 1
    assert tuple(tts.voices) == VOICES


@pytest.mark.parametrize("voice", VOICES)
def test_whisper_hears_most_words_of_a_sentence_in_every_voice(tts, voice):
    speech = tts.generate(SENTENCE, voice=voice, seed=1)
    assert speech.finish_reason == "stop"
    assert 1.5 < speech.seconds < 5
    heard = word_errors(SENTENCE, transcribe([speech.waveform])[0].text)
    assert heard.errors / heard.total <= 0.4, heard


def test_its_stream_is_its_speech(tts):
    whole = tts.generate(SENTENCE, seed=2)
    chunks = [chunk.samples for chunk in tts.stream(SENTENCE, seed=2)]
    assert len(chunks) > 1
    np.testing.assert_allclose(np.concatenate(chunks), whole.waveform.samples, atol=1e-4)
