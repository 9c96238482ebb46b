"""Texts and audio for tests of speech generation."""

import numpy as np

from higgs_audio.audio.waveform import Waveform, from_array

TEXT = "The sun sets."
LONG = "Hello, all.\n\nGood night.\n\nBye now."  # three utterances


def make_noise(seconds: float, sample_rate: int = 24000) -> Waveform:
    """Returns quiet noise."""
    samples = np.random.default_rng(0).normal(0, 0.1, int(seconds * sample_rate))
    return from_array(samples.clip(-1, 1), sample_rate)
