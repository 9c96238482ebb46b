"""Tests of a decoder's linear maps and of the work of a harmonic head: C against torch."""

import shutil

import pytest
import torch

from higgs_audio import NANO, HiggsAudioTokenizer
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.codec.harmonic import HarmonicHead, Pitch
from higgs_audio.codec.native_head import NativeHead
from higgs_audio.codec.projections import NativeProjections, Projections, decoder_projections
from higgs_audio.codec.vocos import VocosDecoder
from higgs_audio.native import native_library

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is here")
pytestmark = needs_compiler
N_FFT, HOP, BINS = 960, 240, 481


@pytest.fixture
def head():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HarmonicHead(32, N_FFT, HOP, 24000)


def make_pitch(num_spectra):
    """Returns a pitch from 50 to 550 Hz, in part unvoiced, and a phase."""
    generator = torch.Generator().manual_seed(num_spectra)
    hz = 50 + 500 * torch.rand(1, num_spectra, generator=generator)
    voiced = (torch.rand(1, num_spectra, generator=generator) * 2 - 0.5).clamp(0, 1)
    return torch.rand(1, num_spectra, generator=generator) - 0.5, Pitch(hz, voiced)


@torch.no_grad()
@pytest.mark.parametrize("num_spectra", [1, 7, 300])
def test_pulses_in_c_are_as_close_to_float64_as_those_in_torch(head, num_spectra):
    cycles, pitch = make_pitch(num_spectra)
    window = torch.hann_window(N_FFT)
    exact = head.windowed_pulses(cycles.double(), Pitch(pitch.hz.double(), pitch.voiced.double()), window.double())
    native = NativeHead(head, native_library())
    errors = [(kind.windowed_pulses(cycles, pitch, window) - exact).abs().max() for kind in (native, head)]
    assert float(errors[0]) <= max(1.5 * float(errors[1]), 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("num_spectra", [1, 7, 300])
def test_spectra_mixed_in_c_equal_those_of_torch(head, num_spectra):
    generator = torch.Generator().manual_seed(num_spectra)
    filters = 3 * torch.randn(1, num_spectra, 3 * BINS, generator=generator)
    pulses = torch.randn(1, num_spectra, BINS, dtype=torch.complex64, generator=generator)
    numbers = 200 + torch.arange(num_spectra)  # beyond the period of the noise
    expected = head.mix(filters, pulses, numbers)
    mixed = NativeHead(head, native_library()).mix(filters, pulses, numbers)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("num_rows", [1, 2, 3, 50])
def test_linear_maps_of_nano_in_c_equal_those_of_torch(num_rows):
    decoder = HiggsAudioTokenizer.from_pretrained(NANO / "codec").acoustic_decoder
    native, plain = decoder_projections(decoder), Projections(decoder)
    assert isinstance(native, NativeProjections) and isinstance(native.head, NativeHead)
    generator = torch.Generator().manual_seed(num_rows)
    for name, width in (("embed", decoder.embed.in_channels), ("upsample", decoder.up.in_channels)):
        rows = torch.randn(num_rows, width, generator=generator)
        torch.testing.assert_close(getattr(native, name)(rows), getattr(plain, name)(rows), rtol=1e-4, atol=1e-5)
    hidden = torch.randn(1, num_rows, decoder.head.filters.in_features, generator=generator)
    torch.testing.assert_close(native.head.filters(hidden), decoder.head.filters(hidden), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_changed_weights_take_effect():
    decoder = VocosDecoder(HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocos"}))
    rows = torch.randn(5, decoder.up.in_channels, generator=torch.Generator().manual_seed(0))
    before = decoder_projections(decoder).upsample(rows)
    decoder.up.weight.mul_(-2)
    after = decoder_projections(decoder).upsample(rows)
    torch.testing.assert_close(after, -2 * before, rtol=1e-5, atol=1e-5)
    decoder.double()
    assert type(decoder_projections(decoder)) is Projections
