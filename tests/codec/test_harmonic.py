"""Tests of the harmonic head against slow formulas."""

import itertools
import math

import pytest
import torch

from higgs_audio.codec import HiggsAudioTokenizerConfig
from higgs_audio.codec.harmonic import NOISE_PERIOD, PIECE_SPECTRA, HarmonicHead, Pitch, noise_spectra
from higgs_audio.errors import OptionError

RATE, N_FFT, HOP = 24_000, 960, 240


@pytest.fixture
def head():
    torch.manual_seed(0)
    return HarmonicHead(8, N_FFT, HOP, RATE).double()


def test_the_closed_form_of_pulses_is_the_sum_of_all_harmonics_below_the_highest_frequency(head):
    pitch = Pitch(torch.tensor([[100.0, 217.3, 480.0]]).double(), torch.tensor([[1.0, 0.5, 1.0]]).double())
    cycles = torch.tensor([[0.0, 0.3, -0.4]]).double()
    frames = head.pulses(cycles, pitch)
    times = (torch.arange(N_FFT).double() - N_FFT // 2) / RATE
    for number, (hz, voiced) in enumerate(zip(pitch.hz[0].tolist(), pitch.voiced[0].tolist(), strict=True)):
        count = int(RATE / 2 / hz) - 1
        angle = 2 * math.pi * (cycles[0, number] + hz * times)
        slow = sum(torch.cos(k * angle) for k in range(1, count + 1)) * voiced * math.sqrt(2 / count)
        torch.testing.assert_close(frames[0, number], slow, rtol=0, atol=1e-8)


def test_harmonics_are_continuous_from_spectrum_to_spectrum(head):
    """Where windows overlap, a constant pitch has the same pulses in both."""
    pitch = Pitch(torch.full((1, 9), 150.0).double(), torch.ones(1, 9).double())
    cycles, end = head.advance_phase(pitch, None)
    frames = head.pulses(cycles, pitch)[0]
    for earlier, later in itertools.pairwise(frames):
        torch.testing.assert_close(earlier[HOP:], later[:-HOP], rtol=0, atol=1e-7)
    assert float(end.cycles) == pytest.approx(9 * 150 * HOP / RATE % 1)


@torch.no_grad()
def test_packed_streams_in_pieces_equal_each_stream_alone(head):
    """Pieces end within a stream, and streams end within a piece; the first stream starts from an earlier state."""
    sizes, window = [PIECE_SPECTRA + 2, 1, PIECE_SPECTRA + 6], torch.hann_window(N_FFT).double()
    hidden = torch.randn(1, sum(sizes), 8).double()
    _, start = head(torch.randn(1, 6, 8).double(), window)
    starts = [start, None, None]
    spectra, ends = head.forward_packed(hidden, window, sizes, starts)
    parts = zip(hidden.split(sizes, dim=1), starts, strict=True)
    expected = [head(part, window, start=start) for part, start in parts]
    expected_spectra = torch.cat([part for part, _ in expected], 1)
    spectra = list(spectra)
    assert [piece.shape[1] for piece in spectra] == [PIECE_SPECTRA, PIECE_SPECTRA, 9]
    torch.testing.assert_close(torch.cat(spectra, 1), expected_spectra, rtol=0, atol=1e-9)
    assert [end.num_spectra for end in ends] == [end.num_spectra for _, end in expected]
    assert [end.num_spectra for end in ends] == [6 + sizes[0], *sizes[1:]]


def test_a_stream_in_pieces_continues_from_the_returned_state(head):
    hidden, window = torch.randn(2, 12, 8).double(), torch.hann_window(N_FFT).double()
    whole, end = head(hidden, window)
    pieces, state = [], None
    for piece in hidden.split([1, 4, 7], dim=1):
        spectra, state = head(piece, window, start=state)
        pieces.append(spectra)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-9)
    torch.testing.assert_close(state.cycles, end.cycles)
    assert state.num_spectra == end.num_spectra == 12
    without_state, _ = head(hidden[:, 5:], window)
    assert (without_state - whole[:, 5:]).abs().max() > 1e-2


def test_noise_repeats_without_a_seam():
    window = torch.hann_window(N_FFT)
    spectra = noise_spectra(N_FFT, HOP)
    frames = torch.fft.irfft(torch.cat([spectra, spectra[:4]]), n=N_FFT) / window.clamp(min=1e-3)
    middle = slice(HOP, N_FFT - HOP)  # where the window is not small
    for earlier, later in itertools.pairwise(frames[: NOISE_PERIOD + 1]):
        torch.testing.assert_close(earlier[middle][HOP:], later[middle][:-HOP], rtol=0, atol=1e-3)
    assert float(torch.fft.irfft(spectra, n=N_FFT).pow(2).mean() / window.pow(2).mean()) == pytest.approx(1, abs=0.02)


def test_an_unknown_decoder_head_names_the_nearest():
    with pytest.raises(OptionError, match="decoder_head'\\]='harmonics'; did you mean 'harmonic'"):
        HiggsAudioTokenizerConfig(acoustic_model_config={"body": "vocos", "decoder_head": "harmonics"})
