"""Harmonic synthesis: pulses at a predicted pitch plus noise, each filtered by a filter that changes every 10 ms.

A head that predicts magnitudes and phases has to find phases that match from spectrum to spectrum; a small head does
not learn this, and sounds rough. This head predicts the pitch and integrates it to a phase, so harmonics are continuous
by construction and only smooth filters are left to learn. Pulses and noise are generated as one spectrum per window, so
synthesis needs no look-ahead.

Source: neural source-filter models (arXiv 1810.11946) and harmonics plus filtered noise (DDSP, arXiv 2001.04643).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

CENTER_HZ = 120.0  # pitch that an untrained head predicts
OCTAVES = (-1.25, 2.2)  # range of the pitch around CENTER_HZ: 50 to 550 Hz
LOG_CEILING = 6.0  # exp(6) = 403 times as loud as pulses or noise of power 1
NOISE_PERIOD = 211  # spectra, 2.1 s at 100 Hz; a prime, so that it matches no rhythm of speech
PIECE_SPECTRA = 256  # spectra per operation: 1 MB of samples; 2,240 spectra take 42 ms, and 70 ms in one operation
MIN_SINE = 1e-6  # smaller sines count as 0


@dataclass(frozen=True)
class Pitch:
    """The pitch at the center of every spectrum: `hz`, and `voiced` from 0 to 1, both `[B, T]`."""

    hz: Tensor
    voiced: Tensor


@dataclass(frozen=True)
class PhaseState:
    """The state after the last spectrum of a stream: phase in `cycles` and pitch in `hz`, `[B]` each; `num_spectra`."""

    cycles: Tensor
    hz: Tensor
    num_spectra: int


class HeadKernels(Protocol):
    """The work of a harmonic head on one stream or on several that are concatenated; `HarmonicHead` has it in torch."""

    def filters(self, hidden: Tensor, /) -> Tensor:
        """Maps hidden states `[1, T, W]` to filters `[1, T, 3 * bins]`."""

    def windowed_pulses(self, cycles: Tensor, pitch: Pitch, window: Tensor) -> Tensor:
        """Returns `HarmonicHead.pulses` times the window."""

    def mix(self, filters: Tensor, pulses: Tensor, numbers: Tensor) -> Tensor:
        """Filters spectra of pulses and of noise, and adds them."""


class HarmonicHead(nn.Module):
    """Maps hidden states to spectra.

    Args:
        width: width of the hidden states.
        n_fft, hop: window and hop of the spectra, in samples.
        sample_rate: in Hz.
    """

    def __init__(self, width: int, n_fft: int, hop: int, sample_rate: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.sample_rate = n_fft, hop, sample_rate
        self.filters = nn.Linear(width, 3 * (n_fft // 2 + 1))  # log gain of pulses, of noise, and the pulses' phase
        self.pitch = nn.Linear(width, 2)  # octaves above CENTER_HZ, and log odds of voicing

    def forward(
        self, hidden: Tensor, window: Tensor, pitch: Pitch | None = None, start: PhaseState | None = None
    ) -> tuple[Tensor, PhaseState]:
        """Returns the spectra of a stream, and the state after them.

        Args:
            hidden: hidden states `[B, T, W]`, T >= 1.
            window: `[n_fft]`, applied to the pulses.
            pitch: replaces the predicted pitch, in training.
            start: the state that an earlier call returned; None at the beginning of a stream.

        Returns:
            Spectra `[B, T, bins]`, and the state.
        """
        pitch = self.predict_pitch(hidden) if pitch is None else pitch
        cycles, end = self.advance_phase(pitch, start)
        numbers = _spectrum_numbers(hidden.shape[1], start)
        return self._spectra(self, hidden, window, pitch, cycles, numbers), end

    def forward_packed(
        self,
        hidden: Tensor,
        window: Tensor,
        sizes: Sequence[int],
        starts: Sequence[PhaseState | None],
        kernels: HeadKernels | None = None,
    ) -> tuple[Iterator[Tensor], list[PhaseState]]:
        """`forward` for several streams that are concatenated in `hidden [1, T, W]`.

        Args:
            hidden, window: as for `forward`.
            sizes: number of hidden states of every stream, each at least 1.
            starts: state of every stream.
            kernels: does the work of this head; None for itself.

        Returns:
            The spectra in pieces along T that fit a CPU's cache, and the states after them.
        """
        pitch = self.predict_pitch(hidden)
        pitches = map(Pitch, pitch.hz.split(list(sizes), 1), pitch.voiced.split(list(sizes), 1))
        advanced = [self.advance_phase(part, start) for part, start in zip(pitches, starts, strict=True)]
        cycles = torch.cat([part for part, _ in advanced], dim=1)
        numbers = torch.cat([_spectrum_numbers(size, start) for size, start in zip(sizes, starts, strict=True)])
        spans = [slice(first, first + PIECE_SPECTRA) for first in range(0, hidden.shape[1], PIECE_SPECTRA)]
        pieces = [Pitch(pitch.hz[:, span], pitch.voiced[:, span]) for span in spans]
        spectra = (
            self._spectra(kernels or self, hidden[:, span], window, piece, cycles[:, span], numbers[span])
            for span, piece in zip(spans, pieces, strict=True)
        )
        return spectra, [end for _, end in advanced]

    def _spectra(
        self, kernels: HeadKernels, hidden: Tensor, window: Tensor, pitch: Pitch, cycles: Tensor, numbers: Tensor
    ) -> Tensor:
        """Returns spectra for the phase `cycles [B, T]` and the indices `numbers [T]` of spectra in their streams."""
        pulses = torch.fft.rfft(kernels.windowed_pulses(cycles, pitch, window))  # [B, T, bins]
        return kernels.mix(kernels.filters(hidden), pulses, numbers)

    def windowed_pulses(self, cycles: Tensor, pitch: Pitch, window: Tensor) -> Tensor:
        """Returns `pulses` times the window `[n_fft]`."""
        return self.pulses(cycles, pitch) * window

    def mix(self, filters: Tensor, pulses: Tensor, numbers: Tensor) -> Tensor:
        """Filters the spectra of pulses and of noise, and adds them.

        Args:
            filters: `[B, T, 3 * bins]`, from `filters`.
            pulses: spectra `[B, T, bins]`.
            numbers: indices `[T]` of the spectra in their streams, which select the noise.

        Returns:
            Spectra `[B, T, bins]`.
        """
        pulse_gain, noise_gain, phase = filters.chunk(3, dim=-1)  # [B, T, bins] each
        noise = noise_spectra(self.n_fft, self.hop)[numbers % NOISE_PERIOD].to(pulses)  # [T, bins]
        voice = torch.polar(pulse_gain.clamp(max=LOG_CEILING).exp(), phase) * pulses
        return voice + noise_gain.clamp(max=LOG_CEILING).exp() * noise

    def predict_pitch(self, hidden: Tensor) -> Pitch:
        """Predicts the pitch from hidden states `[B, T, W]`."""
        octaves, odds = self.pitch(hidden).unbind(-1)
        return Pitch(CENTER_HZ * 2 ** octaves.clamp(*OCTAVES), (odds + 0.5).clamp(0, 1))

    def advance_phase(self, pitch: Pitch, start: PhaseState | None) -> tuple[Tensor, PhaseState]:
        """Integrates the pitch to a phase.

        The phase is 0 where a voiced stretch begins, so that rounding errors accumulate over a stretch, not over a
        text. It is computed in float64, because the hundredth harmonic multiplies its error by a hundred.

        Returns:
            Cycles `[B, T]`, -0.5 to 0.5, at the center of every spectrum, and the state after them.
        """
        hz = pitch.hz
        rate = hz.double() * (self.hop / self.sample_rate)  # cycles per hop
        last = rate[:, :1] if start is None else start.hz.double()[:, None] * (self.hop / self.sample_rate)
        rates = torch.cat([last, rate], dim=1)
        offset = 0.0 if start is None else start.cycles[:, None]
        total = offset + ((rates[:, 1:] + rates[:, :-1]) / 2).cumsum(1)
        times = torch.arange(hz.shape[1], device=hz.device)
        unvoiced = torch.where(pitch.voiced > 0, -1, times).cummax(1).values  # the last unvoiced spectrum so far
        begin = torch.where(unvoiced < 0, 0.0, total.gather(1, unvoiced.clamp(min=0)))
        cycles = (total - begin).remainder(1)
        num_spectra = hz.shape[1] + (0 if start is None else start.num_spectra)
        return (cycles - cycles.round()).to(hz), PhaseState(cycles[:, -1], hz[:, -1], num_spectra)

    def pulses(self, cycles: Tensor, pitch: Pitch) -> Tensor:
        """Returns frames `[B, T, n_fft]` with all harmonics below the Nyquist frequency, as loud as noise of power 1.

        The sum of cosines has a closed form, the Dirichlet kernel.
        """
        offsets = torch.arange(self.n_fft, device=cycles.device, dtype=cycles.dtype) - self.n_fft // 2
        angle = cycles[..., None] + pitch.hz[..., None] * (offsets / self.sample_rate)
        angle = math.pi * (angle - angle.round())
        count = (self.sample_rate / 2 / pitch.hz).floor()[..., None] - 1
        sine = torch.sin(angle)
        is_zero = sine.abs() < MIN_SINE
        ratio = torch.sin((2 * count + 1) * angle) / torch.where(is_zero, 1.0, sine)
        total = torch.where(is_zero, count, (ratio - 1) / 2)
        return total * (pitch.voiced[..., None] * (2 / count).sqrt())


def _spectrum_numbers(size: int, start: PhaseState | None) -> Tensor:
    """Returns the indices `[size]` of the next spectra of a stream."""
    first = 0 if start is None else start.num_spectra
    return torch.arange(first, first + size)


@lru_cache(maxsize=4)
def noise_spectra(n_fft: int, hop: int) -> Tensor:
    """Returns spectra `[NOISE_PERIOD, bins]` of periodic noise, complex64, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(1)
    noise = torch.randn(NOISE_PERIOD * hop, generator=generator, device="cpu")
    frames = torch.cat([noise, noise[:n_fft]]).unfold(0, n_fft, hop)[:NOISE_PERIOD]
    return torch.fft.rfft(frames * torch.hann_window(n_fft, device="cpu"))
