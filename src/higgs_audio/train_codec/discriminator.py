"""Discriminators: networks that tell recorded sound from decoded sound, and what both sides learn from them.

Spectra alone leave a decoder blurred between harmonics: every phase and every fine structure that a mean cannot show
costs it nothing. Two kinds of judges see it: one looks at a waveform folded by a prime number of samples (HiFi-GAN,
arXiv 2010.05646), one at complex spectra (UnivNet and EnCodec, arXiv 2106.07889 and 2210.13438). Sizes are small: on
two CPU cores they are most of a training step.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1  # of the leaky rectifiers
PERIODS = (2, 3, 5, 7, 11)  # samples; primes, so that no two see the same folds
SPECTRA = ((2048, 512), (1024, 256), (512, 128))  # n_fft, hop
MIN_SAMPLES = 2048  # a waveform must fill the longest window

Maps = list[Tensor]  # of one discriminator: the outputs of its layers, the last its score


class PeriodDiscriminator(nn.Module):
    """Judges a waveform folded into rows of `period` samples: `[B, S]` to maps `[B, C, rows, period]`."""

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
    """Judges complex spectra: `[B, S]` to maps `[B, C, T, bins]`, the bins halved from layer to layer."""

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
    """All judges of a recipe; `[B, S]` to one list of maps each.

    Args:
        period_channels, spectrum_channels: widths of either kind's first layer; 0 leaves that kind out.
    """

    def __init__(self, period_channels: int = 8, spectrum_channels: int = 16) -> None:
        super().__init__()
        periods = [PeriodDiscriminator(p, period_channels) for p in PERIODS if period_channels]
        spectra = [SpectrumDiscriminator(n, hop, spectrum_channels) for n, hop in SPECTRA if spectrum_channels]
        self.judges = nn.ModuleList([*periods, *spectra])

    def forward(self, waveform: Tensor) -> list[Maps]:
        assert waveform.shape[-1] >= MIN_SAMPLES
        return [judge(waveform) for judge in self.judges]


def judging_loss(real: Sequence[Maps], made: Sequence[Maps]) -> Tensor:
    """What the judges learn from: recorded sound scores 1, decoded sound 0 (least squares), mean over judges."""
    errors = [(1 - r[-1].float()).pow(2).mean() + m[-1].float().pow(2).mean() for r, m in zip(real, made, strict=True)]
    return torch.stack(errors).mean()


def deceiving_loss(made: Sequence[Maps]) -> Tensor:
    """What the decoder learns from: its sound scores 1. 1 where every judge sees through it, 0 where none does."""
    return torch.stack([(1 - maps[-1].float()).pow(2).mean() for maps in made]).mean()


def feature_loss(real: Sequence[Maps], made: Sequence[Maps]) -> Tensor:
    """Distance of the judges' inner maps, relative to those of the recorded sound, mean over layers and judges."""
    distances = [
        (a.detach() - b).abs().mean().float() / a.detach().abs().mean().float().clamp(min=1e-4)
        for one, other in zip(real, made, strict=True)
        for a, b in zip(one[:-1], other[:-1], strict=True)
    ]
    return torch.stack(distances).mean()
