"""The acoustic model "dac" of the published tokenizer: strided convolutions with Snake activations."""

import math

import torch
from torch import Tensor, nn

from higgs_audio.codec.config import HiggsAudioTokenizerConfig

DILATIONS = (1, 3, 9)
EDGE_KERNEL = 7  # of the encoder's first, the decoder's outer and the residual units' convolutions


class Snake1d(nn.Module):
    """`x + sin^2(alpha x) / alpha`, with one alpha per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x).pow(2) / (self.alpha + 1e-9)


class DacResidualUnit(nn.Module):
    """Snake, dilated convolution, Snake, 1x1 convolution, plus the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake1d(channels)
        self.conv1 = nn.Conv1d(channels, channels, EDGE_KERNEL, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class DacEncoderBlock(nn.Module):
    """Three residual units, then a strided convolution that doubles the channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (DacResidualUnit(channels, d) for d in DILATIONS)
        self.snake1 = Snake1d(channels)
        self.conv1 = nn.Conv1d(channels, 2 * channels, 2 * stride, stride=stride, padding=-(-stride // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(self.snake1(self.res_unit3(self.res_unit2(self.res_unit1(x)))))


class DacDecoderBlock(nn.Module):
    """A transposed convolution that halves the channels, then three residual units."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake1d(channels)
        self.conv_t1 = nn.ConvTranspose1d(
            channels, channels // 2, 2 * stride, stride=stride, padding=-(-stride // 2), output_padding=stride % 2
        )
        self.res_unit1, self.res_unit2, self.res_unit3 = (DacResidualUnit(channels // 2, d) for d in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_t1(self.snake1(x))
        return self.res_unit3(self.res_unit2(self.res_unit1(x)))


class DacEncoder(nn.Module):
    """Waveform `[B, 1, S]` to features `[B, hidden, T]`."""

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        a = config.acoustic
        channels, ratios = a["encoder_hidden_size"], a["downsampling_ratios"]
        self.conv1 = nn.Conv1d(1, channels, EDGE_KERNEL, padding=3)
        self.block = nn.ModuleList(DacEncoderBlock(channels << i, stride) for i, stride in enumerate(ratios))
        self.snake1 = Snake1d(channels << len(ratios))
        self.conv2 = nn.Conv1d(channels << len(ratios), a["hidden_size"], 3, padding=1)

    def forward(self, waveform: Tensor) -> Tensor:
        x = self.conv1(waveform)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))


class DacDecoder(nn.Module):
    """Features `[B, hidden, F]` to the waveform `[B, 1, F * hop_length]`; not clamped."""

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        a = config.acoustic
        channels, ratios = a["decoder_hidden_size"], a["upsampling_ratios"]
        self.conv1 = nn.Conv1d(a["hidden_size"], channels, EDGE_KERNEL, padding=3)
        self.block = nn.ModuleList(DacDecoderBlock(channels >> i, stride) for i, stride in enumerate(ratios))
        self.snake1 = Snake1d(channels >> len(ratios))
        self.conv2 = nn.Conv1d(channels >> len(ratios), 1, EDGE_KERNEL, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        x = self.conv1(features)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))


def encoder_frames(config: HiggsAudioTokenizerConfig, num_samples: int) -> int:
    """Returns the number of frames that `DacEncoder` outputs for a waveform, 0 if it is too short."""
    length = num_samples
    for stride in config.acoustic["downsampling_ratios"]:
        length = (length + 2 * -(-stride // 2) - 2 * stride) // stride + 1
    return max(0, length)


def decoder_context(config: HiggsAudioTokenizerConfig) -> tuple[int, int]:
    """Returns how many frames before and after a frame its samples depend on: 10 each at the published sizes.

    Computed exactly, from the first and last sample of frame 0 back through every convolution.
    """
    ratios = config.acoustic["upsampling_ratios"]
    first, last = -(EDGE_KERNEL // 2), math.prod(ratios) - 1 + EDGE_KERNEL // 2  # the last convolution
    for stride in reversed(ratios):
        reach = sum(EDGE_KERNEL // 2 * dilation for dilation in DILATIONS)  # the residual units
        padding = -(-stride // 2)
        # Input j of a transposed convolution affects output j * stride - padding and the 2 * stride - 1 after it.
        first, last = (first - reach + padding) // stride - 1, (last + reach + padding) // stride
    return EDGE_KERNEL // 2 - first, last + EDGE_KERNEL // 2
