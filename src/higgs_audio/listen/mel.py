"""Mel spectrograms in numpy: the input of the speaker encoder and of the spectrogram plots."""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]

# Slaney's scale: 3 mels for every 200 Hz up to 1 kHz, then 27 mels for every factor of 6.4.
HZ_PER_MEL = 200.0 / 3.0
KNEE_HZ = 1000.0
KNEE_MEL = KNEE_HZ / HZ_PER_MEL
LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: ArrayLike) -> NDArray[np.float64]:
    """Converts frequencies in Hz to Slaney's mels, any shape.

    >>> hz_to_mel([200, 1000, 6400]).round(6).tolist()
    [3.0, 15.0, 42.0]
    """
    hz = np.asarray(hz, dtype=np.float64)
    return np.where(hz < KNEE_HZ, hz / HZ_PER_MEL, KNEE_MEL + np.log(np.maximum(hz, KNEE_HZ) / KNEE_HZ) / LOG_STEP)


def mel_to_hz(mel: ArrayLike) -> NDArray[np.float64]:
    """Converts Slaney's mels to frequencies in Hz, any shape; the inverse of `hz_to_mel`."""
    mel = np.asarray(mel, dtype=np.float64)
    above = np.maximum(mel, KNEE_MEL) - KNEE_MEL
    return np.where(mel < KNEE_MEL, mel * HZ_PER_MEL, KNEE_HZ * np.exp(above * LOG_STEP))


def mel_corners(num_mels: int, high_hz: float) -> NDArray[np.float64]:
    """Returns the corners of `num_mels` triangles between 0 and `high_hz` in Hz: `[num_mels + 2]`, ends included."""
    return mel_to_hz(np.linspace(0.0, hz_to_mel(high_hz), num_mels + 2))


@lru_cache
def mel_filters(sample_rate: int, fft_size: int, num_mels: int) -> Floats:
    """Returns unit-area triangles on Slaney's scale up to half the sample rate: `[num_mels, fft_size // 2 + 1]`."""
    corners = mel_corners(num_mels, sample_rate / 2)
    bins = np.fft.rfftfreq(fft_size, 1.0 / sample_rate)
    distance = corners[:, None] - bins[None]  # [num_mels + 2, bins]
    width = np.diff(corners)[:, None]
    rising, falling = -distance[:-2] / width[:-1], distance[2:] / width[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2.0 / (corners[2:] - corners[:-2])[:, None]).astype(np.float32)


def mel_power(samples: Floats, sample_rate: int, fft_size: int, hop_length: int, num_mels: int) -> Floats:
    """Returns the mel power spectrogram `[1 + S // hop_length, num_mels]` of `samples [S]`, frames centered on hops."""
    window = np.hanning(fft_size + 1)[:-1].astype(np.float32)
    padded = np.pad(samples.astype(np.float32), fft_size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft_size)[::hop_length]  # [frames, fft_size]
    power = np.abs(np.fft.rfft(frames * window, axis=-1)) ** 2  # [frames, bins]
    mels: Floats = (power @ mel_filters(sample_rate, fft_size, num_mels).T).astype(np.float32)
    return mels
