"""Tests of verified generation: nano generates, and a real ASR model transcribes."""

from dataclasses import replace

import numpy as np
import pytest

from higgs_audio import HiggsAudio
from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import OptionError
from higgs_audio.evaluate.retry import SEED_STEP, generate_verified

TEXT = "The sun rises in the east and sets in the west."


@pytest.fixture(scope="module")
def tts():
    return HiggsAudio.from_pretrained("nano", device="cpu")


class NoisyFirstTry:
    """A model whose first output is noise; it records the seeds."""

    def __init__(self, tts):
        self.tts, self.seeds = tts, []

    def generate(self, text, voice, seed):
        self.seeds.append(seed)
        speech = self.tts.generate(text, voice, seed=seed)
        if len(self.seeds) > 1:
            return speech
        noise = np.random.default_rng(0).normal(0, 0.1, len(speech.waveform.samples)).astype(np.float32)
        return replace(speech, waveform=Waveform(noise, 24000))


class WrongTexts:
    """A model that generates the given texts in turn, whatever the requested text."""

    def __init__(self, tts, texts):
        self.tts, self.texts = tts, iter(texts)

    def generate(self, text, voice, seed):
        return self.tts.generate(next(self.texts), voice, seed=seed)


def test_a_text_is_generated_again_until_its_transcript_has_no_errors(tts):
    model = NoisyFirstTry(tts)
    best = generate_verified(model, TEXT, seed=1, num_tries=4)
    assert model.seeds[:2] == [1, 1 + SEED_STEP]
    assert best.num_tries == len(model.seeds) <= 4
    assert best.errors.errors <= 1
    assert "sun" in best.transcript.lower()


def test_the_try_with_the_fewest_errors_is_returned(tts):
    model = WrongTexts(tts, ["A cat sat.", "The sun sets in the west.", "A dog ran."])
    best = generate_verified(model, TEXT, seed=1, num_tries=3)
    assert best.num_tries == 3
    assert "west" in best.transcript.lower()


def test_less_than_one_try_is_rejected(tts):
    with pytest.raises(OptionError, match="num_tries=0"):
        generate_verified(tts, TEXT, num_tries=0)


@pytest.mark.parametrize("seed", [-1, 2**70, "x"])
def test_an_invalid_seed_is_rejected(tts, seed):
    with pytest.raises(OptionError, match="seed="):
        generate_verified(tts, TEXT, seed=seed)
