"""Discriminators of real and decoded audio, and the losses of discriminators and decoder.

With spectral losses alone, decoded audio is blurred between harmonics, because they do not penalize phase and fine
structure. There are two kinds of discriminators: over a waveform folded by a prime number of samples (HiFi-GAN, arXiv
2010.05646) and over complex spectra (UnivNet and EnCodec, arXiv 2106.07889 and 2210.13438). They are small, because on
two CPU cores they take most of a training step.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1  # of the leaky ReLUs
PERIODS = (2, 3, 5, 7, 11)  # samples; primes, so that no two discriminators have the same columns as input
SPECTRA = ((2048, 512), (1024, 256), (512, 128))  # n_fft, hop
MIN_SAMPLES = max(n_fft for n_fft, _ in SPECTRA)

Maps = list[Tensor]  # feature maps of one discriminator's layers, then its score map


class PeriodDiscriminator(nn.Module):
    """Discriminator of a waveform folded into rows of `period` samples: maps `[B, S]` to `[B, C, rows, period]`."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = (1, channels, 2 * channels, 4 * channels, 8 * channels)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), padding=(2, 0))) for a, b in itertools.pairwise(widths)
        )
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> Maps:
        missing = -waveform.shape[-1] % self.period
        x = F.pad(waveform, (0, missing)).unflatten(-1, (-1, self.period))[:, None]  # [B, 1, rows, period]
        return _maps(self.layers, self.score, x)


class SpectrumDiscriminator(nn.Module):
    """Discriminator of complex spectra: maps `[B, S]` to `[B, C, T, bins]`; each layer halves the bins."""

    window: Tensor

    def __init__(self, n_fft: int, hop: int, channels: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        first = weight_norm(nn.Conv2d(2, channels, (3, 9), (1, 2), padding=(1, 4)))
        rest = (weight_norm(nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(1, 4))) for _ in range(3))
        self.layers = nn.ModuleList([first, *rest])
        self.score = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, waveform: Tensor) -> Maps:
        spectrum = torch.stft(waveform, self.n_fft, self.hop, window=self.window, return_complex=True, normalized=True)
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # [B, 2, T, bins]
        return _maps(self.layers, self.score, x)


def _maps(layers: nn.ModuleList, score: nn.Module, x: Tensor) -> Maps:
    maps = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        maps.append(x)
    return [*maps, score(x)]


class Discriminators(nn.Module):
    """All discriminators of a recipe; returns the feature maps of each for waveforms `[B, S]`.

    Args:
        period_channels, spectrum_channels: width of the first layer of each kind; 0 omits that kind.
    """

    def __init__(self, period_channels: int = 8, spectrum_channels: int = 16) -> None:
        super().__init__()
        periods = [PeriodDiscriminator(p, period_channels) for p in PERIODS if period_channels]
        spectra = [SpectrumDiscriminator(n, hop, spectrum_channels) for n, hop in SPECTRA if spectrum_channels]
        self.judges = nn.ModuleList([*periods, *spectra])  # the name is a key of saved states

    def forward(self, waveform: Tensor) -> list[Maps]:
        assert waveform.shape[-1] >= MIN_SAMPLES
        return [discriminator(waveform) for discriminator in self.judges]


def discriminator_loss(real: Sequence[Maps], decoded: Sequence[Maps]) -> Tensor:
    """Returns the mean least-squares loss of the discriminators; the targets are 1 for real and 0 for decoded audio."""
    errors = [
        (1 - real_maps[-1].float()).pow(2).mean() + decoded_maps[-1].float().pow(2).mean()
        for real_maps, decoded_maps in zip(real, decoded, strict=True)
    ]
    return torch.stack(errors).mean()


def generator_loss(decoded: Sequence[Maps]) -> Tensor:
    """Returns the least-squares loss of the decoder, with a target score of 1; the mean over discriminators."""
    return torch.stack([(1 - maps[-1].float()).pow(2).mean() for maps in decoded]).mean()


def feature_loss(real: Sequence[Maps], decoded: Sequence[Maps]) -> Tensor:
    """Returns the L1 distance of feature maps, relative to those of real audio; the mean over all layers."""
    distances = [
        (a.detach() - b).abs().mean().float() / a.detach().abs().mean().float().clamp(min=1e-4)
        for real_maps, decoded_maps in zip(real, decoded, strict=True)
        for a, b in zip(real_maps[:-1], decoded_maps[:-1], strict=True)
    ]
    return torch.stack(distances).mean()
