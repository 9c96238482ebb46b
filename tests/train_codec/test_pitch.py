"""Tests of the pitch tracker on signals with a known pitch, and of the losses of the harmonic head."""

import math

import pytest
import torch

from higgs_audio.codec.harmonic import NOISE_PERIOD, PhaseState, Pitch
from higgs_audio.train_codec.pitch import pitch_losses, random_phase, track_pitch

RATE, HOP = 24_000, 240


def tone(hz, seconds=1.0, level=0.05):
    """Returns a sum of harmonics that fall by 6 dB per octave; `hz` is a number or `[S]`."""
    hz = torch.as_tensor(hz, dtype=torch.float64).expand(round(seconds * RATE))
    cycles = (hz / RATE).cumsum(0)
    return level * sum(torch.cos(2 * math.pi * k * cycles + k) / k for k in range(1, 20)).float()


@pytest.mark.parametrize("hz", [60.0, 90.0, 123.4, 201.7, 333.0, 450.0])
def test_the_pitch_of_a_steady_tone_is_tracked_within_a_tenth_of_a_percent(hz):
    pitch = track_pitch(tone(hz)[None], HOP, RATE)
    assert pitch.hz.shape == (1, RATE // HOP)
    inner = pitch.hz[0, 5:-5]
    assert float((inner / hz - 1).abs().max()) < 1e-3
    assert float(pitch.voiced[0, 5:-5].min()) == 1


def test_a_glide_is_tracked_at_the_middle_of_every_hop():
    hz = torch.linspace(100, 200, RATE)
    tracked = track_pitch(tone(hz)[None], HOP, RATE).hz[0]
    expected = hz[HOP // 2 :: HOP]
    assert float((tracked / expected - 1).abs()[5:-5].max()) < 5e-3


def test_noise_and_silence_are_unvoiced_and_their_pitch_is_interpolated():
    noise = 0.05 * torch.randn(RATE // 2, generator=torch.Generator().manual_seed(0))
    sound = torch.cat([tone(100.0, 0.5), noise, torch.zeros(RATE // 2), tone(200.0, 0.5)])
    pitch = track_pitch(torch.stack([sound, torch.zeros_like(sound)]), HOP, RATE)
    assert float(pitch.voiced[1].max()) == 0
    assert float(pitch.voiced[0, 55:145].mean()) < 0.05
    between = pitch.hz[0, 60:140]
    assert bool((between.diff() >= -1e-3).all())
    assert float(pitch.hz[0, 100]) == pytest.approx(150, abs=5)
    assert bool(pitch.hz.isfinite().all())


def test_the_pitch_losses_are_an_octave_distance_and_a_cross_entropy():
    target = Pitch(torch.tensor([[120.0, 240.0, 999.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    predicted = torch.tensor([[[0.0, 9.0], [0.5, 9.0], [0.0, -9.0]]])
    losses = pitch_losses(predicted, target)
    assert float(losses["pitch"]) == pytest.approx(0.25)
    assert float(losses["voicing"]) == pytest.approx(math.log1p(math.exp(-9)), rel=1e-2)


def test_every_crop_starts_at_a_phase_of_its_own():
    start = random_phase(3, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert len(set(start.cycles.tolist())) == 3
    assert isinstance(start, PhaseState)
    assert 0 <= start.num_spectra < NOISE_PERIOD
