"""Sound as a voice makes it: pulses at a pitch, and noise, each through a filter that changes a hundred times a second.

A head that says magnitudes and phases has to invent phases that fit from spectrum to spectrum; a small one does not
learn to, and sounds rough. Here the pitch is said and integrated, so harmonics go on by construction, and what is left
to learn are smooth filters. Pulses and noise are made as spectra, one for each window, so nothing waits for what comes
next.

Source: neural source-filter models (arXiv 1810.11946) and harmonics plus filtered noise (DDSP, arXiv 2001.04643).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

MIDDLE_HZ = 120.0  # the pitch of a new head
OCTAVES = (-1.25, 2.2)  # of the pitch around it: 50 to 550 Hz
LOG_CEILING = 6.0  # exp(6) = 403 times as loud as pulses or noise of power 1
NOISE_PERIOD = 211  # spectra, 2.1 s at 100 Hz; a prime, which no rhythm of speech has
PIECE = 256  # spectra made at once: 1 MB of samples; 42 ms for 2,240 of them, all at once 70
EDGE = 1e-6  # sines below are taken for 0


@dataclass(frozen=True)
class Pitch:
    """What a voice does at the middle of every spectrum: `hz` and how `voiced` it is, 0 to 1, both `[B, T]`."""

    hz: Tensor
    voiced: Tensor


@dataclass(frozen=True)
class PhaseState:
    """Where sound stands behind its last spectrum: `cycles` of the pitch and `hz`, `[B]`, and spectra so far."""

    cycles: Tensor
    hz: Tensor
    num_spectra: int


class HarmonicHead(nn.Module):
    """Hidden states to spectra.

    Args:
        width: of the hidden states.
        n_fft, hop: of the spectra, in samples.
        sample_rate: in Hz.
    """

    def __init__(self, width: int, n_fft: int, hop: int, sample_rate: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.sample_rate = n_fft, hop, sample_rate
        self.filters = nn.Linear(width, 3 * (n_fft // 2 + 1))  # log gain of pulses, of noise, and the pulses' phase
        self.pitch = nn.Linear(width, 2)  # octaves above MIDDLE_HZ, and log odds of a voice

    def forward(
        self, hidden: Tensor, window: Tensor, pitch: Pitch | None = None, before: PhaseState | None = None
    ) -> tuple[Tensor, PhaseState]:
        """Hidden states `[B, T, W]` to spectra `[B, T, bins]` of frames under `window [n_fft]`.

        Args:
            hidden, window: as above; T is at least 1.
            pitch: to sing at, in training; what the hidden states say when None.
            before: where the last piece ended; a beginning when None.
        """
        pitch = self.said(hidden) if pitch is None else pitch
        cycles, position = self._go_on(pitch, before)
        return self._spectra(hidden, window, pitch, cycles, self._counted(hidden.shape[1], before)), position

    def of_several(
        self, hidden: Tensor, window: Tensor, sizes: Sequence[int], before: Sequence[PhaseState | None]
    ) -> tuple[Iterator[Tensor], list[PhaseState]]:
        """The same of several sounds one after another in `hidden [1, T, W]`: of each so many, and where it stood.

        No size is 0. The spectra come in pieces, along T, that a CPU keeps in its cache.
        """
        pitch = self.said(hidden)
        parts = map(Pitch, pitch.hz.split(list(sizes), 1), pitch.voiced.split(list(sizes), 1))
        gone = [self._go_on(part, start) for part, start in zip(parts, before, strict=True)]
        cycles = torch.cat([cycles for cycles, _ in gone], dim=1)
        counts = torch.cat([self._counted(size, start) for size, start in zip(sizes, before, strict=True)])
        spans = [slice(start, start + PIECE) for start in range(0, hidden.shape[1], PIECE)]
        said = [Pitch(pitch.hz[:, span], pitch.voiced[:, span]) for span in spans]
        spectra = (
            self._spectra(hidden[:, span], window, part, cycles[:, span], counts[span])
            for span, part in zip(spans, said, strict=True)
        )
        return spectra, [position for _, position in gone]

    def _spectra(self, hidden: Tensor, window: Tensor, pitch: Pitch, cycles: Tensor, counts: Tensor) -> Tensor:
        """Spectra whose pulses are `cycles [B, T]` on, the `counts [T]`-th of their sounds."""
        pulse_gain, noise_gain, phase = self.filters(hidden).chunk(3, dim=-1)  # [B, T, bins] each
        pulses = torch.fft.rfft(self._pulses(cycles, pitch) * window)
        noise = noise_spectra(self.n_fft, self.hop)[counts % NOISE_PERIOD].to(pulses)  # [T, bins]
        voice = torch.polar(pulse_gain.clamp(max=LOG_CEILING).exp(), phase) * pulses
        return voice + noise_gain.clamp(max=LOG_CEILING).exp() * noise

    @staticmethod
    def _counted(size: int, before: PhaseState | None) -> Tensor:
        """The numbers of so many spectra."""
        first = 0 if before is None else before.num_spectra
        return torch.arange(first, first + size)

    def said(self, hidden: Tensor) -> Pitch:
        """The pitch in hidden states."""
        octaves, odds = self.pitch(hidden).unbind(-1)
        return Pitch(MIDDLE_HZ * 2 ** octaves.clamp(*OCTAVES), (odds + 0.5).clamp(0, 1))

    def _go_on(self, pitch: Pitch, before: PhaseState | None) -> tuple[Tensor, PhaseState]:
        """Cycles at the middle of every spectrum `[B, T]`, -0.5 to 0.5, and where the last one is.

        Each voice begins at 0, so that what rounding does to a pitch adds up over a voice, not over a text. In float64,
        as a hundred harmonics make a hundred times the error.
        """
        hz = pitch.hz
        rate = hz.double() * (self.hop / self.sample_rate)  # cycles a hop
        last = rate[:, :1] if before is None else before.hz.double()[:, None] * (self.hop / self.sample_rate)
        gone = torch.cat([last, rate], dim=1)
        start = 0.0 if before is None else before.cycles[:, None]
        total = start + ((gone[:, 1:] + gone[:, :-1]) / 2).cumsum(1)
        times = torch.arange(hz.shape[1], device=hz.device)
        silent = torch.where(pitch.voiced > 0, -1, times).cummax(1).values  # the last spectrum without a voice, so far
        since = torch.where(silent < 0, 0.0, total.gather(1, silent.clamp(min=0)))
        cycles = (total - since).remainder(1)
        count = hz.shape[1] + (0 if before is None else before.num_spectra)
        return (cycles - cycles.round()).to(hz), PhaseState(cycles[:, -1], hz[:, -1], count)

    def _pulses(self, cycles: Tensor, pitch: Pitch) -> Tensor:
        """Frames `[B, T, n_fft]` of all harmonics below the highest frequency, as loud as noise of power 1.

        The sum of cosines has a closed form, the kernel of Dirichlet.
        """
        places = torch.arange(self.n_fft, device=cycles.device, dtype=cycles.dtype) - self.n_fft // 2
        angle = cycles[..., None] + pitch.hz[..., None] * (places / self.sample_rate)
        angle = math.pi * (angle - angle.round())
        count = (self.sample_rate / 2 / pitch.hz).floor()[..., None] - 1
        sine = torch.sin(angle)
        is_edge = sine.abs() < EDGE
        ratio = torch.sin((2 * count + 1) * angle) / torch.where(is_edge, 1.0, sine)
        total = torch.where(is_edge, count, (ratio - 1) / 2)
        return total * (pitch.voiced[..., None] * (2 / count).sqrt())


@lru_cache(maxsize=4)
def noise_spectra(n_fft: int, hop: int) -> Tensor:
    """Spectra `[NOISE_PERIOD, bins]` of a stretch of noise that begins anew without a seam, complex64, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(1)
    noise = torch.randn(NOISE_PERIOD * hop, generator=generator, device="cpu")
    frames = torch.cat([noise, noise[:n_fft]]).unfold(0, n_fft, hop)[:NOISE_PERIOD]
    return torch.fft.rfft(frames * torch.hann_window(n_fft, device="cpu"))
