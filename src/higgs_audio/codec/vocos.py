"""The acoustic model "vocos": STFT in, ConvNeXt, inverse STFT out. 27 times cheaper than "dac" at the same rates.

A convolutional network at 25 and 100 Hz whose head predicts spectra needs no upsampling to 24 kHz, the expensive part
of a waveform decoder; the idea comes from Vocos (arXiv 2306.00814). The head is one linear layer ("spectrum"), or a
`HarmonicHead` ("harmonic"), whose voices are smoother.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.codec.autocorrelation import autocorrelation, pitch_lags, voice_windows
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.codec.harmonic import LOG_CEILING, HarmonicHead, HeadKernels, PhaseState, Pitch

LOG_FLOOR = 1e-3  # smaller magnitudes count as silence
WEIGHT_FLOOR = 1e-6  # minimum of the summed windows, by which overlapping frames are divided


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of `[B, D, T]`.

    Before the first block it bounds the scale of the input, which could otherwise exceed the output of the blocks:
    latents that had grown a million times larger once made the decoder linear.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvNeXt(nn.Module):
    """Depthwise convolution over time, then a two-layer perceptron per position, on `[B, D, T]`.

    `lookahead` positions of the kernel lie to the right of the center, the rest to the left.
    """

    def __init__(self, width: int, kernel_size: int, lookahead: int) -> None:
        super().__init__()
        self.pad = (kernel_size - 1 - lookahead, lookahead)
        self.depthwise = nn.Conv1d(width, width, kernel_size, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 3 * width)
        self.contract = nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.depthwise(F.pad(x, self.pad)), x)

    def mix(self, convolved: Tensor, x: Tensor) -> Tensor:
        """Adds the perceptron's output for `convolved [B, D, T]`, the convolution of `x`, to `x [B, D, T]`."""
        y = convolved.transpose(1, 2)  # [B, T, D]
        y = self.contract(F.gelu(self.expand(self.norm(y)), approximate="tanh"))
        return x + (self.scale * y).transpose(1, 2)


class Stage(nn.Sequential):
    """`depth` ConvNeXt blocks of one width."""

    def __init__(self, width: int, depth: int, kernel_size: int, lookahead: int) -> None:
        super().__init__(*(ConvNeXt(width, kernel_size, lookahead) for _ in range(depth)))


class VocosEncoder(nn.Module):
    """Maps a waveform `[B, 1, S]`, S a multiple of the hop length, to features `[B, hidden, F]`.

    Spectra of 40 ms do not resolve the harmonics of voices below 100 Hz. With `pitch_lags` above 0, the encoder also
    hears the autocorrelation at that many lags.
    """

    window: Tensor

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        a = config.acoustic
        kernel, (fine, coarse) = a["kernel_size"], a["encoder_widths"]
        self.n_fft, self.hop = a["n_fft"], a["stft_hop"]
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.sample_rate = config.sample_rate
        self.embed = nn.Conv1d(self.n_fft // 2 + 1, fine, 1)
        self.embed_lags = nn.Conv1d(a["pitch_lags"], fine, 1, bias=False) if a["pitch_lags"] else None
        self.embed_norm = ChannelNorm(fine)
        self.fine = Stage(fine, a["encoder_depths"][0], kernel, kernel // 2)
        self.down = nn.Conv1d(fine, coarse, a["stride"], stride=a["stride"])
        self.coarse = Stage(coarse, a["encoder_depths"][1], kernel, kernel // 2)
        self.out = nn.Conv1d(coarse, a["hidden_size"], 1)

    def forward(self, waveform: Tensor) -> Tensor:
        pad = (self.n_fft - self.hop) // 2
        framed = F.pad(waveform[:, 0], (pad, pad)).unfold(-1, self.n_fft, self.hop)  # [B, T, n_fft]
        magnitude = torch.fft.rfft(framed * self.window).abs()
        spectrum = magnitude.clamp(min=LOG_FLOOR).log().transpose(1, 2)  # [B, bins, T]
        x = self.embed(spectrum)
        if self.embed_lags is not None:
            lags = pitch_lags(self.embed_lags.in_channels, self.sample_rate).to(waveform.device)
            correlation = autocorrelation(voice_windows(waveform[:, 0], self.hop, self.sample_rate), self.sample_rate)
            x = x + self.embed_lags(correlation[..., lags].transpose(1, 2))  # [B, fine, T]
        out: Tensor = self.out(self.coarse(self.down(self.fine(self.embed_norm(x)))))
        return out


class VocosDecoder(nn.Module):
    """Maps features `[B, hidden, F]` to the waveform `[B, 1, F * hop_length]`."""

    window: Tensor

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        a = config.acoustic
        kernel, (coarse, fine), ahead = a["kernel_size"], a["decoder_widths"], a["decoder_lookahead"]
        self.n_fft, self.hop = a["n_fft"], a["stft_hop"]
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.embed = nn.Conv1d(a["hidden_size"], coarse, 1)
        self.embed_norm = ChannelNorm(coarse)
        self.coarse = Stage(coarse, a["decoder_depths"][0], kernel, ahead)
        self.up = nn.ConvTranspose1d(coarse, fine, a["stride"], stride=a["stride"])
        self.fine = Stage(fine, a["decoder_depths"][1], kernel, ahead)
        self.norm = nn.LayerNorm(fine)
        self.head = (
            HarmonicHead(fine, self.n_fft, self.hop, config.sample_rate)
            if a["decoder_head"] == "harmonic"
            else nn.Linear(fine, self.n_fft + 2)
        )

    @property
    def overlap(self) -> int:
        """Samples that an STFT frame shares with the frames after it."""
        return self.n_fft - self.hop

    @property
    def trim(self) -> int:
        """Samples of the overlap-add before the first and after the last sample of the waveform."""
        return self.overlap // 2

    def forward(self, features: Tensor) -> Tensor:
        return self.synthesize(self.hidden_states(features))

    def hidden_states(self, features: Tensor) -> Tensor:
        """Maps features `[B, hidden, F]` to the input `[B, T, D]` of the head, one position per spectrum."""
        x = self.coarse(self.embed_norm(self.embed(features)))  # [B, D, F]
        return self.norm(self.fine(self.up(x)).transpose(1, 2))

    def synthesize(self, hidden: Tensor, pitch: Pitch | None = None, start: PhaseState | None = None) -> Tensor:
        """Maps hidden states to the waveform `[B, 1, T * hop]`.

        Args:
            hidden: `[B, T, D]`, from `hidden_states`.
            pitch: used by a harmonic head instead of its prediction.
            start: phase from which a harmonic head continues.
        """
        total, weights = self.overlap_add(self._head_frames(hidden, pitch, start))
        return (total / weights.clamp(min=WEIGHT_FLOOR))[..., self.trim : total.shape[-1] - self.trim]

    def _head_frames(self, hidden: Tensor, pitch: Pitch | None, start: PhaseState | None) -> Tensor:
        """Returns windowed STFT frames `[B, T, n_fft]` of samples."""
        if isinstance(self.head, HarmonicHead):
            return self._windowed(self.head(hidden, self.window, pitch, start)[0])
        return self._windowed(self._spectrum(hidden))

    def frames_packed(
        self,
        hidden: Tensor,
        sizes: Sequence[int],
        starts: Sequence[PhaseState | None],
        kernels: HeadKernels | None,
    ) -> tuple[Tensor, Sequence[PhaseState | None]]:
        """Returns the windowed STFT frames of several streams that are concatenated in time.

        Args:
            hidden: `[1, T, D]`.
            sizes: number of hidden states of every stream, each at least 1.
            starts: phase from which a harmonic head continues every stream.
            kernels: does the work of a harmonic head; None for itself.

        Returns:
            Frames `[1, T, n_fft]`, and the phase after every stream.
        """
        if not isinstance(self.head, HarmonicHead):
            return self._windowed(self._spectrum(hidden)), starts
        spectra, ends = self.head.forward_packed(hidden, self.window, sizes, starts, kernels)
        return torch.cat([self._windowed(piece) for piece in spectra], dim=1), ends

    def _spectrum(self, hidden: Tensor) -> Tensor:
        """Returns spectra `[B, T, bins]` of a head that predicts magnitudes and phases."""
        log_magnitude, phase = self.head(hidden).chunk(2, dim=-1)
        return torch.polar(log_magnitude.clamp(max=LOG_CEILING).exp(), phase)

    def _windowed(self, spectrum: Tensor) -> Tensor:
        """Converts spectra `[B, T, bins]` to windowed STFT frames `[B, T, n_fft]` of samples."""
        return torch.fft.irfft(spectrum, n=self.n_fft) * self.window

    def overlap_add(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Returns sums of overlapping windowed frames `[B, T, n_fft]` and of squared windows, `[B, 1, S]` each."""
        length = (frames.shape[1] - 1) * self.hop + self.n_fft
        weights = self.window.pow(2).expand(1, frames.shape[1], -1)
        return self._fold(frames, length), self._fold(weights, length)

    def _fold(self, frames: Tensor, length: int) -> Tensor:
        columns = frames.transpose(1, 2)  # [B, n_fft, T]
        return F.fold(columns, (1, length), (1, self.n_fft), stride=(1, self.hop))[:, 0]


def decoder_context(config: HiggsAudioTokenizerConfig) -> tuple[int, int]:
    """Returns how many frames before and after a frame its samples depend on.

    With a harmonic head the phase of the pulses also depends on all earlier frames.
    """
    a = config.acoustic
    kernel, ahead, (coarse, fine) = a["kernel_size"], a["decoder_lookahead"], a["decoder_depths"]
    overlap = -(-(a["n_fft"] - a["stft_hop"]) // 2 // a["stft_hop"])  # spectra that overlap the samples of another
    left_fine, right_fine = fine * (kernel - 1 - ahead) + overlap, fine * ahead + overlap
    left = coarse * (kernel - 1 - ahead) + -(-left_fine // a["stride"])
    right = coarse * ahead + -(-right_fine // a["stride"])
    return left, right
