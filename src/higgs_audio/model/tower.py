"""The audio tower of the understanding variant and its projector: a Whisper encoder with positions averaged in pairs.

A mel frame is 10 ms, a position after the convolutions 20 ms, a feature 40 ms: features have the frame rate of the
audio tokenizer.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from higgs_audio.config import HiggsAudioEncoderConfig
from higgs_audio.errors import PromptError

MIN_MEL_FRAMES = 3  # the shortest window with a feature

Count = TypeVar("Count", int, Tensor)


def num_encoded(num_mels: Count) -> Count:
    """Returns the number of positions after the convolutions for a number of mel frames; 1500 for 3000."""
    return (num_mels - 1) // 2 + 1


def num_features(num_mels: Count) -> Count:
    """Returns the number of features for a number of mel frames, or for each number of a tensor.

    >>> [num_features(n) for n in (2, 3, 6, 7, 3000)]
    [0, 1, 1, 2, 750]
    """
    return (num_encoded(num_mels) - 2) // 2 + 1


def sinusoids(num_positions: int, width: int) -> Tensor:
    """Returns Whisper's position embeddings `[num_positions, width]`: sines, then cosines, of rates 1 to 1 / 10,000."""
    rates = 10000.0 ** -(torch.arange(width // 2) / max(1, width // 2 - 1))  # [width / 2]
    angles = torch.arange(num_positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class FrozenPositions(nn.Module):
    """Position embeddings that are saved but not trained: a buffer, because loading makes every parameter trainable."""

    weight: Tensor

    def __init__(self, num_positions: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", sinusoids(num_positions, width))

    def forward(self, length: int) -> Tensor:
        """Returns the embeddings of the first positions, `[length, D]`."""
        return self.weight[:length]


class AudioTower(nn.Module):
    """Encodes log-mel frames into features, 25 per second.

    >>> config = HiggsAudioEncoderConfig(d_model=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=8)
    >>> AudioTower(config)(torch.zeros(1, 128, 3000), torch.tensor([3000])).shape
    torch.Size([1, 750, 8])
    """

    def __init__(self, config: HiggsAudioEncoderConfig) -> None:
        super().__init__()
        layer_config: Any = config  # has every field that a Whisper layer reads
        self.config, width = config, config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = FrozenPositions(config.max_source_positions, width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(layer_config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, mels: Tensor, counts: Tensor) -> Tensor:
        """Encodes windows of log-mel frames.

        Args:
            mels: `[N, mel bins, M]`.
            counts: `[N]`, the number of real frames in each window; the padding after them is masked in attention.

        Returns:
            Features `[N, M // 4, D]`, of which the first `num_features(count)` of each window are real.
        """
        mels = mels.to(self.conv1.weight.dtype)
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(mels)))).transpose(1, 2)  # [N, L, D]
        hidden = hidden + self.embed_positions(hidden.shape[1])
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        real = _first(num_encoded(counts), hidden.shape[1])  # [N, L]
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=real)
        for layer in self.layers:
            if not (self.training and torch.rand(()) < self.config.encoder_layerdrop):
                hidden = layer(hidden, attention_mask=mask)
        pooled = F.avg_pool1d(hidden.transpose(1, 2), kernel_size=2, stride=2)  # [N, D, L // 2]
        return self.layer_norm(pooled.transpose(1, 2))

    def count(self, mels: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the number of real frames in each window, `[N]`.

        Args:
            mels: `[N, mel bins, M]`.
            mask: `[N, M]`, true on the first frames of each window; all frames are real when None.

        Raises:
            PromptError: windows of the wrong shape, a mask that does not fit them, or a window with too few frames.
        """
        bins, most = self.config.num_mel_bins, 2 * self.config.max_source_positions
        if mels.dim() != 3 or 0 in mels.shape or mels.shape[1] != bins or mels.shape[2] > most:
            raise PromptError(
                f"input_features of shape {tuple(mels.shape)}: expected [windows, {bins}, at most {most} frames], with "
                "at least one window; omit them if there is no audio"
            )
        if mask is None:
            mask = torch.ones_like(mels[:, 0])
        mask = mask.bool()
        counts = mask.sum(1)  # [N]
        if mask.shape != mels.shape[::2] or not torch.equal(mask, _first(counts, mels.shape[2])):
            raise PromptError(
                f"feature_attention_mask {tuple(mask.shape)} does not fit input_features {tuple(mels.shape)}, or hides "
                "frames before real ones; it must be [windows, frames], true on the first frames of each window"
            )
        if bool((counts < MIN_MEL_FRAMES).any()):
            raise PromptError(
                f"windows with {counts.tolist()} mel frames; each must have at least {MIN_MEL_FRAMES} real frames"
            )
        return counts


class FeatureProjector(nn.Module):
    """Projects features `[..., D_tower]` to the width of the language model, `[..., D]`."""

    def __init__(self, config: HiggsAudioEncoderConfig, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(config.d_model, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


def real_features(features: Tensor, counts: Tensor) -> Tensor:
    """Returns the features of all windows in order, without features of padding.

    Args:
        features: `[N, P, D]`.
        counts: `[N]`, the number of real mel frames in each window.

    Returns:
        `[sum of num_features(counts), D]`.
    """
    return features[_first(num_features(counts), features.shape[1])]


def check_feature_positions(positions: Tensor, is_audio_in: Tensor, counts: Tensor) -> None:
    """Checks that features come first in each run of audio-in placeholders, and that they are whole windows.

    Without the check, shifted features would go unnoticed.

    Args:
        positions: `[B, T]`, true where a placeholder stands for a feature.
        is_audio_in: `[B, T]`, true on audio-in placeholders, whether they stand for features or columns.
        counts: `[N]`, the number of real mel frames in each window.

    Raises:
        PromptError: features follow columns of the same audio, or a run does not end where a window ends.
    """
    positions = positions.bool()
    after_column = F.pad(is_audio_in & ~positions, (1, 0))[:, :-1]
    if bool((positions & after_column).any()):
        raise PromptError(
            "feature_positions has features after codes of the same audio; features must come first. Pass the tensors "
            "that the processor returns"
        )
    edges = F.pad(positions.long(), (1, 1)).diff(dim=1)  # [B, T + 1]
    runs = ((edges == -1).nonzero()[:, 1] - (edges == 1).nonzero()[:, 1]).cumsum(0).tolist()
    windows = num_features(counts).cumsum(0).tolist()
    if runs[-1:] != windows[-1:] or not set(runs) <= set(windows):
        raise PromptError(
            f"feature_positions has runs that end after {runs} positions, the windows end after {windows} features: "
            "each run must consist of whole windows, in order"
        )


def _first(counts: Tensor, length: int) -> Tensor:
    """Returns a mask `[N, length]` that is true on the first `counts [N]` positions of each row."""
    return torch.arange(length, device=counts.device) < counts[:, None]
