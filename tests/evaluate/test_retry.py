"""VerifiedSpeech speech: nano speaks, a real listener hears."""

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


def test_what_was_not_heard_is_said_again_and_no_more_often_than_needed(tts, monkeypatch):
    """The first try is made noise; the second is nano's own."""
    generate, seeds = tts.generate, []

    def sometimes(*args, seed, **options):
        seeds.append(seed)
        speech = generate(*args, seed=seed, **options)
        noise = np.random.default_rng(0).normal(0, 0.1, len(speech.waveform.samples)).astype(np.float32)
        return replace(speech, waveform=Waveform(noise, 24000)) if len(seeds) == 1 else speech

    monkeypatch.setattr(tts, "generate", sometimes)
    best = generate_verified(tts, TEXT, seed=1, num_tries=4)
    assert seeds[:2] == [1, 1 + SEED_STEP]
    assert best.num_tries == len(seeds) <= 4
    assert best.errors.errors <= 1
    assert "sun" in best.transcript.lower()


def test_the_best_of_bad_tries_is_given(tts, monkeypatch):
    generate = tts.generate
    said = iter(["A cat sat.", "The sun sets in the west.", "A dog ran."])
    monkeypatch.setattr(tts, "generate", lambda text, voice, seed: generate(next(said), voice, seed=seed))
    best = generate_verified(tts, TEXT, seed=1, num_tries=3)
    assert best.num_tries == 3
    assert "west" in best.transcript.lower()


def test_no_try_at_all_is_refused(tts):
    with pytest.raises(OptionError, match="num_tries=0"):
        generate_verified(tts, TEXT, num_tries=0)


@pytest.mark.parametrize("seed", [-1, 2**70, "x"])
def test_a_seed_is_that_of_the_first_try_or_none(tts, seed):
    with pytest.raises(OptionError, match="seed="):
        generate_verified(tts, TEXT, seed=seed)
