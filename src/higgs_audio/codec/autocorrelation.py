"""Normalized autocorrelation of windows of a waveform: near 1 at the period of a voice.

The autocorrelation is divided by the autocorrelation of the window (Boersma 1993, "Accurate short-term analysis of the
fundamental frequency").
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

HIGHEST_HZ, LOWEST_HZ = 480.0, 55.0  # of voices
WINDOW_SECONDS = 0.06  # three periods of LOWEST_HZ


def voice_windows(waveform: Tensor, hop: int, sample_rate: int) -> Tensor:
    """Returns windows of `WINDOW_SECONDS` around the center of every hop, with their mean removed, `[B, S / hop, W]`.

    Args:
        waveform: `[B, S]`, S a multiple of `hop`.
        hop: in samples.
        sample_rate: in Hz.
    """
    width = round(WINDOW_SECONDS * sample_rate)
    before = width // 2 - hop // 2
    windows = F.pad(waveform, (before, width)).unfold(1, width, hop)[:, : waveform.shape[1] // hop]
    return windows - windows.mean(-1, keepdim=True)


def autocorrelation(windows: Tensor, sample_rate: int) -> Tensor:
    """Returns the autocorrelation `[B, T, lags]` of `windows [B, T, W]`: 1 at lag 0, near 0 for noise.

    The longest lag exceeds the period of `LOWEST_HZ`.
    """
    width, num_lags = windows.shape[-1], math.ceil(sample_rate / LOWEST_HZ) + 1
    size = 2 ** math.ceil(math.log2(width + num_lags))
    hann = torch.hann_window(width, device=windows.device)
    powers = (torch.fft.rfft(x, size).abs() ** 2 for x in (windows * hann, hann))
    correlations = (torch.fft.irfft(power, size)[..., :num_lags] for power in powers)
    of_windows, of_hann = (x / x[..., :1].clamp(min=1e-9) for x in correlations)
    return of_windows / of_hann


def pitch_lags(count: int, sample_rate: int) -> Tensor:
    """Returns `count` lags in samples, evenly spaced in octaves from the period of `HIGHEST_HZ` to that of `LOWEST_HZ`.

    >>> pitch_lags(4, 24000).tolist()
    [50, 103, 212, 436]
    """
    octaves = torch.linspace(math.log2(HIGHEST_HZ), math.log2(LOWEST_HZ), count, dtype=torch.float64)
    return (sample_rate / 2**octaves).round().long()
