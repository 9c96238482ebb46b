"""Pitch tracking of recordings by autocorrelation, and the losses of a predicted pitch.

Viterbi finds the smoothest path through the best candidates of every hop.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from higgs_audio.codec.autocorrelation import HIGHEST_HZ, autocorrelation, voice_windows
from higgs_audio.codec.harmonic import CENTER_HZ, NOISE_PERIOD, PhaseState, Pitch

NUM_CANDIDATES = 6
OCTAVE_COST = 0.03  # per octave of lag: the correlation is as high at twice the period
JUMP_COST = 0.4  # per octave between two hops
VOICED_CORRELATION = 0.5
MIN_VOICED_RMS = 3e-3
NO_PEAK = -9.0  # score of a lag without a peak


def track_pitch(waveform: Tensor, hop: int, sample_rate: int) -> Pitch:
    """Tracks the pitch of waveforms `[B, S]`, S a multiple of `hop`, at the center of every hop, `[B, S / hop]`.

    In unvoiced hops `hz` is interpolated between the voiced neighbors.
    """
    windows = voice_windows(waveform, hop, sample_rate)  # [B, T, W]
    correlation = autocorrelation(windows, sample_rate)  # [B, T, lags]
    lags, scores = _candidates(correlation, math.ceil(sample_rate / HIGHEST_HZ))  # [B, T, n] each
    path = _smoothest_path(-scores, torch.log2(sample_rate / lags.float()))  # [B, T]
    lag = lags.gather(2, path[..., None])  # [B, T, 1]
    left, peak, right = (correlation.gather(2, lag + step)[..., 0] for step in (-1, 0, 1))
    curvature = (left - 2 * peak + right).clamp(max=-1e-6)
    hz = sample_rate / (lag[..., 0] + (0.5 * (left - right) / curvature).clamp(-0.5, 0.5))  # vertex of the parabola
    is_peak = scores.gather(2, path[..., None])[..., 0] > NO_PEAK / 2
    voiced = (peak > VOICED_CORRELATION) & (windows.pow(2).mean(-1).sqrt() > MIN_VOICED_RMS) & is_peak
    return Pitch(_interpolated(hz, voiced), voiced.float())


def _candidates(correlation: Tensor, shortest: int) -> tuple[Tensor, Tensor]:
    """Returns the lags of the highest peaks from lag `shortest` on, and their scores, `[B, T, NUM_CANDIDATES]` each."""
    inner = correlation[..., shortest:-1]
    is_peak = (inner >= correlation[..., shortest - 1 : -2]) & (inner > correlation[..., shortest + 1 :])
    lags = torch.arange(shortest, shortest + inner.shape[-1], device=correlation.device)
    scores = torch.where(is_peak, inner - OCTAVE_COST * torch.log2(lags / shortest), NO_PEAK)
    best = scores.topk(NUM_CANDIDATES, dim=-1)
    return best.indices + shortest, best.values


def _smoothest_path(costs: Tensor, octaves: Tensor) -> Tensor:
    """Returns the candidate of each hop on the cheapest path, `[B, T]`, given `costs` and `octaves [B, T, n]`."""
    total, predecessors = costs[:, 0], []
    for t in range(1, costs.shape[1]):
        jumps = JUMP_COST * (octaves[:, t - 1, :, None] - octaves[:, t, None]).abs()  # [B, from, to]
        cheapest = (total[:, :, None] + jumps).min(1)
        predecessors.append(cheapest.indices)
        total = cheapest.values + costs[:, t]
    path = [total.argmin(1)]
    for indices in reversed(predecessors):
        path.append(indices.gather(1, path[-1][:, None])[:, 0])
    return torch.stack(path[::-1], dim=1)


def _interpolated(hz: Tensor, voiced: Tensor) -> Tensor:
    """Interpolates `hz [B, T]` between voiced hops and extends the first and last; unchanged if none is voiced."""
    length = hz.shape[1]
    times = torch.arange(length, device=hz.device).expand_as(hz)
    previous = torch.where(voiced, times, -1).cummax(1).values  # nearest voiced hop up to here
    following = torch.where(voiced, times, length).flip(1).cummin(1).values.flip(1)
    unvoiced = ~voiced.any(1, keepdim=True)
    left, right = torch.where(previous < 0, following, previous), torch.where(following == length, previous, following)
    left_hz, right_hz = (hz.gather(1, index.clamp(0, length - 1)) for index in (left, right))
    weight = (times - left) / (right - left).clamp(min=1)
    return torch.where(unvoiced, hz, left_hz + weight.clamp(0, 1) * (right_hz - left_hz))


def random_phase(count: int, generator: torch.Generator, device: torch.device) -> PhaseState:
    """Draws the state of a harmonic head at the start of `count` crops: random phases of pulses and noise."""
    cycles = torch.rand(count, generator=generator, dtype=torch.float64)
    hz = torch.full((count,), CENTER_HZ)
    return PhaseState(cycles.to(device), hz.to(device), int(torch.randint(NOISE_PERIOD, (), generator=generator)))


def pitch_losses(predicted: Tensor, target: Pitch) -> dict[str, Tensor]:
    """Returns the losses of `HarmonicHead.pitch` `[B, T, 2]`: the pitch error in octaves, the voicing cross-entropy."""
    octaves, voicing_logits = predicted.unbind(-1)
    error = (octaves - torch.log2(target.hz / CENTER_HZ)).abs() * target.voiced
    return {
        "pitch": error.sum() / target.voiced.sum().clamp(min=1),
        "voicing": F.binary_cross_entropy_with_logits(voicing_logits, target.voiced),
    }
