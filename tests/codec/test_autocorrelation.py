"""Tests of the autocorrelation of windows, and of the encoder that hears it."""

import copy
import math

import pytest
import torch
from oracle import make_tokenizer

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.codec.autocorrelation import autocorrelation, pitch_lags, voice_windows

RATE, HOP = 24_000, 240


@pytest.fixture(scope="module")
def hearing():
    """A tokenizer whose encoder hears the autocorrelation at 32 lags."""
    return make_tokenizer("vocos with lags")


def pulses(hz, seconds=0.4):
    """Returns pulses of `hz`, `[1, S]`."""
    cycles = torch.arange(round(seconds * RATE), dtype=torch.float64) * hz / RATE
    return 0.1 * sum(torch.cos(2 * math.pi * k * cycles) for k in range(1, 12)).float()[None]


@pytest.mark.parametrize("hz", [60.0, 75.0, 150.0, 400.0])
def test_the_autocorrelation_is_one_at_lag_zero_and_at_the_period(hz):
    correlation = autocorrelation(voice_windows(pulses(hz), HOP, RATE), RATE)[0, 8:-8]  # [T, lags]
    torch.testing.assert_close(correlation[:, 0], torch.ones(len(correlation)))
    assert float(correlation[:, round(RATE / hz)].min()) > 0.97
    half = correlation[:, round(RATE / hz / 2)]
    assert float(half.max()) < 0.7


def test_the_fast_autocorrelation_equals_the_sum_of_products():
    windows = voice_windows(torch.randn(1, 960, generator=torch.Generator().manual_seed(0)), HOP, RATE)
    hann = torch.hann_window(windows.shape[-1])
    fast = autocorrelation(windows, RATE)
    for lag in (0, 1, 50, 436):
        products, weights = (
            (x[..., : x.shape[-1] - lag] * x[..., lag:]).sum(-1) / (x * x).sum(-1) for x in (windows * hann, hann)
        )
        torch.testing.assert_close(fast[..., lag], products / weights, rtol=0, atol=1e-4)


def test_pitch_lags_are_evenly_spaced_in_octaves_between_the_highest_and_the_lowest_voice():
    lags = pitch_lags(80, RATE)
    assert (int(lags[0]), int(lags[-1])) == (50, 436)
    steps = torch.log2(lags[1:] / lags[:-1])
    assert float(steps.min()) > 0 and float(steps.max()) < 0.08


def test_an_encoder_whose_lags_have_weight_zero_has_the_codes_of_one_without(hearing):
    deaf = copy.deepcopy(hearing.config)
    deaf.acoustic_model_config["pitch_lags"] = 0
    state = hearing.state_dict()
    plain = HiggsAudioTokenizer(deaf)
    plain.load_state_dict({name: value for name, value in state.items() if "embed_lags" not in name}, strict=True)
    silent = copy.deepcopy(hearing)
    torch.nn.init.zeros_(silent.acoustic_encoder.embed_lags.weight)
    wave = pulses(75.0)[None]
    assert torch.equal(silent.eval().encode(wave).audio_codes, plain.eval().encode(wave).audio_codes)
    with torch.no_grad():
        with_lags, without = hearing.acoustic_encoder(wave), plain.acoustic_encoder(wave)
    assert float((with_lags - without).abs().max()) > 1e-3


def test_a_saved_tokenizer_that_hears_pitch_is_loaded_with_the_same_codes(hearing, tmp_path):
    hearing.save_pretrained(tmp_path)
    wave = pulses(90.0)[None]
    loaded = HiggsAudioTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(wave).audio_codes, hearing.eval().encode(wave).audio_codes)
