"""Spectral losses of waveforms: log-mel distance and spectral convergence at several resolutions."""

from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

# (n_fft, hop, mel bands): the longest window is near a phone, the shortest near a pitch period
RESOLUTIONS = ((2048, 512, 100), (1024, 256, 80), (384, 96, 40))
MEL_FLOOR = 1e-5


def spectral_losses(decoded: Tensor, recorded: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Returns the mean L1 distance of log10 mel magnitudes and the mean spectral convergence of waveforms `[B, S]`."""
    mel, convergence = decoded.new_zeros(()), decoded.new_zeros(())
    for n_fft, hop, bands in RESOLUTIONS:
        a, b = magnitude(decoded, n_fft, hop), magnitude(recorded, n_fft, hop)  # [B, bins, T]
        filters = mel_filters(n_fft, bands, sample_rate).to(a.device)  # [bands, bins]
        mel = mel + (log_mel(a, filters) - log_mel(b, filters)).abs().mean()
        convergence = convergence + (a - b).norm() / b.norm().clamp(min=1e-4)
    return mel / len(RESOLUTIONS), convergence / len(RESOLUTIONS)


def magnitude(waveform: Tensor, n_fft: int, hop: int) -> Tensor:
    """Returns STFT magnitudes `[B, n_fft / 2 + 1, T]` of `[B, S]`, with a Hann window and reflection padding."""
    window = torch.hann_window(n_fft, device=waveform.device)
    spectrum = torch.stft(waveform, n_fft, hop, window=window, return_complex=True)
    return (spectrum.real.pow(2) + spectrum.imag.pow(2) + 1e-10).sqrt()


def log_mel(magnitudes: Tensor, filters: Tensor) -> Tensor:
    """Returns log10 of the mel magnitudes `[B, bands, T]`, which are clamped to at least MEL_FLOOR."""
    return (filters @ magnitudes).clamp(min=MEL_FLOOR).log10()


@lru_cache
def mel_filters(n_fft: int, bands: int, sample_rate: int) -> Tensor:
    """Returns Slaney mel filters `[bands, n_fft / 2 + 1]`."""
    filters = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=bands,
        min_frequency=0.0,
        max_frequency=sample_rate / 2,
        sampling_rate=sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters.T).float()
