"""Tests of the spectral losses."""

import torch
from corpus import RATE, TEXTS, make_tones

from higgs_audio.train_codec.spectral import spectral_losses


def test_spectral_losses_are_zero_for_equal_waveforms_and_grow_with_the_difference():
    waveform = torch.from_numpy(make_tones(TEXTS[0])[0])[None]
    assert [float(loss) for loss in spectral_losses(waveform, waveform, RATE)] == [0, 0]
    noise = torch.randn(waveform.shape, generator=torch.Generator().manual_seed(0))
    errors = [torch.stack(spectral_losses(waveform + level * noise, waveform, RATE)) for level in (0.01, 0.1)]
    assert bool((errors[0] > 0).all())
    assert bool((errors[1] > errors[0]).all())
