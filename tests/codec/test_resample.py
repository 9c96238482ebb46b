"""Tests of the resampler of the audio tokenizer against a slow formula and soxr."""

import numpy as np
import pytest
import soxr
import torch
from oracle import make_waveform

from higgs_audio.codec.resample import resample


def slow_resample(waveform, old, new):
    """Sums the windowed sinc of each output sample over all input samples, in float64."""
    base = 0.99 * min(old, new)
    times = np.arange(len(waveform)) / old
    out = np.empty(-(-len(waveform) * new // old))
    for i in range(len(out)):
        t = np.clip((times - i / new) * base, -6, 6)
        out[i] = np.sum(waveform * np.sinc(t) * np.cos(np.pi * t / 12) ** 2) * base / old
    return out


@pytest.mark.parametrize("num_samples", [1, 2, 3, 100, 301])
def test_resampling_equals_the_windowed_sinc_summed_sample_by_sample(num_samples):
    waveform = make_waveform(num_samples)[0, 0]
    expected = slow_resample(waveform.double().numpy(), 3, 2)
    out = resample(waveform, 24000, 16000)
    assert out.shape == (-(-2 * num_samples // 3),)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("source_rate", "target_rate"), [(16000, 24000), (48000, 24000), (44100, 24000)])
def test_resampling_works_for_other_pairs_of_rates(source_rate, target_rate):
    divisor = np.gcd(source_rate, target_rate)
    waveform = make_waveform(200)[0, 0]
    expected = slow_resample(waveform.double().numpy(), source_rate // divisor, target_rate // divisor)
    np.testing.assert_allclose(resample(waveform, source_rate, target_rate).numpy(), expected, atol=1e-6)


def test_resampling_agrees_with_soxr_below_the_cutoff():
    seconds = torch.arange(24000) / 24000
    waveform = sum(torch.sin(2 * torch.pi * f * seconds + f) for f in (110, 440, 1760, 5000)) / 4
    expected = torch.from_numpy(soxr.resample(waveform.numpy(), 24000, 16000))
    middle = slice(200, -200)
    torch.testing.assert_close(resample(waveform, 24000, 16000)[middle], expected[middle], rtol=0, atol=5e-3)


def test_resampling_keeps_the_leading_dimensions_and_passes_gradients():
    waveform = make_waveform(300, batch=2).requires_grad_()
    out = resample(waveform, 24000, 16000)
    out.pow(2).sum().backward()
    assert out.shape == (2, 1, 200)
    assert bool((waveform.grad != 0).all())
    assert resample(waveform, 24000, 24000) is waveform


def test_a_process_that_resampled_in_inference_mode_can_still_train():
    """The filter is cached. A filter created in inference mode, by the alignment of a clip, broke the next training
    run. No other test uses this pair of rates, so that the filter is created here."""
    with torch.inference_mode():
        resample(make_waveform(300), 24000, 11025)
    waveform = make_waveform(300).requires_grad_()
    resample(waveform, 24000, 11025).sum().backward()
    assert bool(waveform.grad.any())
