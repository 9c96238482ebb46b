"""The convolutional networks of the semantic branch, one before the quantizer and one after it."""

from torch import Tensor, nn

from higgs_audio.codec.config import HiggsAudioTokenizerConfig


class ResidualUnit(nn.Module):
    """ELU, dilated convolution, ELU, 1x1 convolution, plus the input, on `[B, D, F]`."""

    def __init__(self, width: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.activation = nn.ELU()
        padding = (kernel_size - 1) // 2 * dilation
        self.conv1 = nn.Conv1d(width, width, kernel_size, padding=padding, dilation=dilation, bias=False)
        self.conv2 = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.activation(self.conv1(self.activation(x))))


class SemanticBlock(nn.Module):
    """Residual units and one convolution, which is last in the encoder and first in the decoder."""

    def __init__(self, config: HiggsAudioTokenizerConfig, conv_first: bool) -> None:
        super().__init__()
        width = config.semantic.hidden_size
        units = [ResidualUnit(width, config.unit_kernel_size, d) for d in config.block_dilations]
        self.res_units = nn.ModuleList(units)
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.conv_first = conv_first

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_first:
            x = self.conv(x)
        for unit in self.res_units:
            x = unit(x)
        return x if self.conv_first else self.conv(x)


class SemanticEncoder(nn.Module):
    """Maps HuBERT's features `[B, D, F]` to the semantic half `[B, D, F]` of the quantizer's input."""

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        width, kernel = config.semantic.hidden_size, config.kernel_size
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)
        self.conv_blocks = nn.ModuleList(SemanticBlock(config, conv_first=False) for _ in range(config.num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for block in self.conv_blocks:
            x = block(x)
        return x


class SemanticDecoder(nn.Module):
    """Reconstructs HuBERT's features `[B, D, F]` from quantized ones `[B, D, F]`; used in training only."""

    def __init__(self, config: HiggsAudioTokenizerConfig) -> None:
        super().__init__()
        width, kernel = config.semantic.hidden_size, config.kernel_size
        self.conv1 = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)
        self.conv_blocks = nn.ModuleList(SemanticBlock(config, conv_first=True) for _ in range(config.num_blocks))
        self.conv2 = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.conv_blocks:
            x = block(x)
        return self.conv2(x)
