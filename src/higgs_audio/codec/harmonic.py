"""Harmonic synthesis: pulses at a predicted pitch plus noise, each through a filter that changes 100 times a second.

A head that predicts magnitudes and phases has to find phases that match from spectrum to spectrum; a small one does
not learn to, and sounds rough. This head predicts the pitch and integrates it to a phase, so harmonics are continuous
by construction and only smooth filters are left to learn. Pulses and noise are made as one spectrum per window, so
synthesis needs no look-ahead.

Source: neural source-filter models (arXiv 1810.11946) and harmonics plus filtered noise (DDSP, arXiv 2001.04643).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

MIDDLE_HZ = 120.0  # the pitch of a new head
OCTAVES = (-1.25, 2.2)  # range of the pitch around MIDDLE_HZ: 50 to 550 Hz
LOG_CEILING = 6.0  # exp(6) = 403 times as loud as pulses or noise of power 1
NOISE_PERIOD = 211  # spectra, 2.1 s at 100 Hz; a prime, so that it matches no rhythm of speech
PIECE = 256  # spectra per operation: 1 MB of samples; 2,240 of them take 42 ms, and 70 ms in one operation
EDGE = 1e-6  # sines below are taken for 0


@dataclass(frozen=True)
class Pitch:
    """The pitch at the middle of every spectrum: `hz`, and `voiced` from 0 to 1, both `[B, T]`."""

    hz: Tensor
    voiced: Tensor


@dataclass(frozen=True)
class PhaseState:
    """The state after the last spectrum of a stream: `cycles` of the pitch and its `hz`, `[B]`, and `num_spectra`."""

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
        self.pitch = nn.Linear(width, 2)  # octaves above MIDDLE_HZ, and log odds of voicing

    def forward(
        self, hidden: Tensor, window: Tensor, pitch: Pitch | None = None, start: PhaseState | None = None
    ) -> tuple[Tensor, PhaseState]:
        """Hidden states `[B, T, W]`, T >= 1, to spectra `[B, T, bins]` of frames under `window [n_fft]`.

        Args:
            hidden, window: as above.
            pitch: used instead of the predicted pitch, in training.
            start: the state that an earlier call returned; None at the beginning of a stream.

        Returns:
            The spectra, and the state after them.
        """
        pitch = self.predict_pitch(hidden) if pitch is None else pitch
        cycles, end = self.advance_phase(pitch, start)
        return self._spectra(hidden, window, pitch, cycles, _spectrum_numbers(hidden.shape[1], start)), end

    def forward_packed(
        self, hidden: Tensor, window: Tensor, sizes: Sequence[int], starts: Sequence[PhaseState | None]
    ) -> tuple[Iterator[Tensor], list[PhaseState]]:
        """`forward` for several streams that follow one another in `hidden [1, T, W]`.

        Args:
            hidden, window: as for `forward`.
            sizes: number of hidden states of every stream, each at least 1.
            starts: state of every stream.

        Returns:
            The spectra in pieces along T that fit a CPU's cache, and the states after them.
        """
        pitch = self.predict_pitch(hidden)
        pitches = map(Pitch, pitch.hz.split(list(sizes), 1), pitch.voiced.split(list(sizes), 1))
        advanced = [self.advance_phase(part, start) for part, start in zip(pitches, starts, strict=True)]
        cycles = torch.cat([part for part, _ in advanced], dim=1)
        numbers = torch.cat([_spectrum_numbers(size, start) for size, start in zip(sizes, starts, strict=True)])
        spans = [slice(first, first + PIECE) for first in range(0, hidden.shape[1], PIECE)]
        pieces = [Pitch(pitch.hz[:, span], pitch.voiced[:, span]) for span in spans]
        spectra = (
            self._spectra(hidden[:, span], window, piece, cycles[:, span], numbers[span])
            for span, piece in zip(spans, pieces, strict=True)
        )
        return spectra, [end for _, end in advanced]

    def _spectra(self, hidden: Tensor, window: Tensor, pitch: Pitch, cycles: Tensor, numbers: Tensor) -> Tensor:
        """Spectra from the phase `cycles [B, T]` and the `numbers [T]` of the spectra in their streams."""
        pulse_gain, noise_gain, phase = self.filters(hidden).chunk(3, dim=-1)  # [B, T, bins] each
        pulses = torch.fft.rfft(self.pulses(cycles, pitch) * window)
        noise = noise_spectra(self.n_fft, self.hop)[numbers % NOISE_PERIOD].to(pulses)  # [T, bins]
        voice = torch.polar(pulse_gain.clamp(max=LOG_CEILING).exp(), phase) * pulses
        return voice + noise_gain.clamp(max=LOG_CEILING).exp() * noise

    def predict_pitch(self, hidden: Tensor) -> Pitch:
        """The pitch that the head predicts from hidden states `[B, T, W]`."""
        octaves, odds = self.pitch(hidden).unbind(-1)
        return Pitch(MIDDLE_HZ * 2 ** octaves.clamp(*OCTAVES), (odds + 0.5).clamp(0, 1))

    def advance_phase(self, pitch: Pitch, start: PhaseState | None) -> tuple[Tensor, PhaseState]:
        """Integrates the pitch: cycles `[B, T]` at the middle of every spectrum, -0.5 to 0.5, and the state after them.

        Every voiced stretch begins at 0, so rounding errors of the pitch accumulate over a stretch, not over a text.
        In float64, because a hundred harmonics multiply the error by a hundred.
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
        """Frames `[B, T, n_fft]` of all harmonics below the highest frequency, as loud as noise of power 1.

        The sum of cosines has a closed form, the Dirichlet kernel.
        """
        offsets = torch.arange(self.n_fft, device=cycles.device, dtype=cycles.dtype) - self.n_fft // 2
        angle = cycles[..., None] + pitch.hz[..., None] * (offsets / self.sample_rate)
        angle = math.pi * (angle - angle.round())
        count = (self.sample_rate / 2 / pitch.hz).floor()[..., None] - 1
        sine = torch.sin(angle)
        is_edge = sine.abs() < EDGE
        ratio = torch.sin((2 * count + 1) * angle) / torch.where(is_edge, 1.0, sine)
        total = torch.where(is_edge, count, (ratio - 1) / 2)
        return total * (pitch.voiced[..., None] * (2 / count).sqrt())


def _spectrum_numbers(size: int, start: PhaseState | None) -> Tensor:
    """Numbers `[size]` of the next spectra of a stream."""
    first = 0 if start is None else start.num_spectra
    return torch.arange(first, first + size)


@lru_cache(maxsize=4)
def noise_spectra(n_fft: int, hop: int) -> Tensor:
    """Spectra `[NOISE_PERIOD, bins]` of a stretch of noise that repeats without a seam, complex64, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(1)
    noise = torch.randn(NOISE_PERIOD * hop, generator=generator, device="cpu")
    frames = torch.cat([noise, noise[:n_fft]]).unfold(0, n_fft, hop)[:NOISE_PERIOD]
    return torch.fft.rfft(frames * torch.hann_window(n_fft, device="cpu"))
