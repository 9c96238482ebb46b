"""The pitch of recordings: the period at which a stretch of sound is most like itself, one a spectrum.

The likeness is the autocorrelation over that of the window (Boersma 1993, "Accurate short-term analysis of the
fundamental frequency"); among the best candidates of every moment the path with the smallest leaps is taken.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from higgs_audio.codec.harmonic import MIDDLE_HZ, NOISE_PERIOD, PhaseState, Pitch

HIGHEST_HZ, LOWEST_HZ = 480.0, 55.0
WINDOW_SECONDS = 0.06  # three periods of the lowest
CANDIDATES = 6
OCTAVE_COST = 0.03  # an octave lower is as like, always
LEAP_COST = 0.4  # for an octave between two moments
VOICED_LIKENESS = 0.5
QUIET = 3e-3  # RMS; softer is no voice
NO_PEAK = -9.0


def track_pitch(waveform: Tensor, hop: int, sample_rate: int) -> Pitch:
    """Waveforms `[B, S]`, S a multiple of `hop`, to their pitch at the middle of every hop, `[B, S / hop]`.

    Where nobody speaks, `hz` goes from the last voice to the next.
    """
    frames = _frames(waveform, hop, round(WINDOW_SECONDS * sample_rate))  # [B, T, W]
    likeness = _likeness(frames, math.ceil(sample_rate / LOWEST_HZ) + 1)  # [B, T, lags]
    lags, scores = _candidates(likeness, math.ceil(sample_rate / HIGHEST_HZ))  # [B, T, n] each
    path = _smoothest(-scores, torch.log2(sample_rate / lags.float()))  # [B, T]
    lag = lags.gather(2, path[..., None])  # [B, T, 1]
    before, best, behind = (likeness.gather(2, lag + step)[..., 0] for step in (-1, 0, 1))
    bend = (before - 2 * best + behind).clamp(max=-1e-6)
    hz = sample_rate / (lag[..., 0] + (0.5 * (before - behind) / bend).clamp(-0.5, 0.5))
    is_peak = scores.gather(2, path[..., None])[..., 0] > NO_PEAK / 2
    voiced = (best > VOICED_LIKENESS) & (frames.pow(2).mean(-1).sqrt() > QUIET) & is_peak
    return Pitch(_filled(hz, voiced), voiced.float())


def _frames(waveform: Tensor, hop: int, width: int) -> Tensor:
    """Stretches around the middle of every hop, without their mean."""
    before = width // 2 - hop // 2
    frames = F.pad(waveform, (before, width)).unfold(1, width, hop)[:, : waveform.shape[1] // hop]
    return frames - frames.mean(-1, keepdim=True)


def _likeness(frames: Tensor, num_lags: int) -> Tensor:
    """How like a stretch is to itself so many samples later: 1 at lag 0, 0 for noise; `[B, T, num_lags]`."""
    width = frames.shape[-1]
    size = 2 ** math.ceil(math.log2(width + num_lags))
    window = torch.hann_window(width, device=frames.device)
    powers = (torch.fft.rfft(x, size).abs() ** 2 for x in (frames * window, window))
    both = (torch.fft.irfft(power, size)[..., :num_lags] for power in powers)
    sound, own = (x / x[..., :1].clamp(min=1e-9) for x in both)
    return sound / own


def _candidates(likeness: Tensor, shortest: int) -> tuple[Tensor, Tensor]:
    """The lags of the highest peaks and their scores, `[B, T, CANDIDATES]` each."""
    inner = likeness[..., shortest:-1]
    is_peak = (inner >= likeness[..., shortest - 1 : -2]) & (inner > likeness[..., shortest + 1 :])
    lags = torch.arange(shortest, shortest + inner.shape[-1], device=likeness.device)
    scores = torch.where(is_peak, inner - OCTAVE_COST * torch.log2(lags / shortest), NO_PEAK)
    best = scores.topk(CANDIDATES, dim=-1)
    return best.indices + shortest, best.values


def _smoothest(costs: Tensor, octaves: Tensor) -> Tensor:
    """Which candidate `[B, T, n]` the cheapest path takes at every moment, `[B, T]` (Viterbi)."""
    total, came_from = costs[:, 0], []
    for moment in range(1, costs.shape[1]):
        leaps = LEAP_COST * (octaves[:, moment - 1, :, None] - octaves[:, moment, None]).abs()  # [B, from, to]
        least = (total[:, :, None] + leaps).min(1)
        came_from.append(least.indices)
        total = least.values + costs[:, moment]
    path = [total.argmin(1)]
    for step in reversed(came_from):
        path.append(step.gather(1, path[-1][:, None])[:, 0])
    return torch.stack(path[::-1], dim=1)


def _filled(hz: Tensor, voiced: Tensor) -> Tensor:
    """Straight lines between voices, and level before the first and behind the last; as it is where there is none."""
    times = torch.arange(hz.shape[1], device=hz.device).expand_as(hz)
    last = torch.where(voiced, times, -1).cummax(1).values  # of the voices so far
    after = torch.where(voiced, times, hz.shape[1]).flip(1).cummin(1).values.flip(1)
    none = ~voiced.any(1, keepdim=True)
    left, right = torch.where(last < 0, after, last), torch.where(after == hz.shape[1], last, after)
    low, high = (hz.gather(1, place.clamp(0, hz.shape[1] - 1)) for place in (left, right))
    share = (times - left) / (right - left).clamp(min=1)
    return torch.where(none, hz, low + share.clamp(0, 1) * (high - low))


def random_phase(count: int, generator: torch.Generator, device: torch.device) -> PhaseState:
    """Places in the middle of a sound, for crops: no two begin at the same point of a period or of the noise."""
    cycles = torch.rand(count, generator=generator, dtype=torch.float64)
    hz = torch.full((count,), MIDDLE_HZ)
    return PhaseState(cycles.to(device), hz.to(device), int(torch.randint(NOISE_PERIOD, (), generator=generator)))


def pitch_losses(said: Tensor, wanted: Pitch) -> dict[str, Tensor]:
    """What `HarmonicHead.pitch` said `[B, T, 2]` against the recording: octaves off, and the entropy of the voicing."""
    octaves, odds = said.unbind(-1)
    off = (octaves - torch.log2(wanted.hz / MIDDLE_HZ)).abs() * wanted.voiced
    return {
        "pitch": off.sum() / wanted.voiced.sum().clamp(min=1),
        "voicing": F.binary_cross_entropy_with_logits(odds, wanted.voiced),
    }
