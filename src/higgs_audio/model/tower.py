"""The audio tower of the understanding variant: a Whisper encoder whose positions are joined in pairs; its projector.

A frame of the mel spectrum is 10 ms, a position behind the convolutions 20 ms, a feature 40 ms: as many features a
second as the audio tokenizer has frames.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from higgs_audio.config import HiggsAudioEncoderConfig
from higgs_audio.errors import PromptError

MIN_MELS = 3  # the shortest sound with a feature

Count = TypeVar("Count", int, Tensor)


def num_encoded(num_mels: Count) -> Count:
    """Positions behind the convolutions of so many mel frames; 1500 of 3000. Also of a tensor of counts."""
    return (num_mels - 1) // 2 + 1


def num_features(num_mels: Count) -> Count:
    """Features of so many mel frames; 750 of 3000. Also of a tensor of counts.

    >>> [num_features(n) for n in (2, 3, 6, 7, 3000)]
    [0, 1, 1, 2, 750]
    """
    return (num_encoded(num_mels) - 2) // 2 + 1


def sinusoids(num_positions: int, width: int) -> Tensor:
    """Whisper's positions `[num_positions, width]`: sines, then cosines, at rates from 1 to 1 / 10,000."""
    rates = 10000.0 ** -(torch.arange(width // 2) / max(1, width // 2 - 1))  # [width / 2]
    angles = torch.arange(num_positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class FrozenPositions(nn.Module):
    """Positions that no training moves: a buffer, because loading makes every parameter trainable again."""

    weight: Tensor

    def __init__(self, num_positions: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", sinusoids(num_positions, width))

    def forward(self, length: int) -> Tensor:
        """The first positions, `[length, D]`."""
        return self.weight[:length]


class AudioTower(nn.Module):
    """Log-mel frames to features, 25 a second.

    >>> config = HiggsAudioEncoderConfig(d_model=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=8)
    >>> AudioTower(config)(torch.zeros(1, 128, 3000), torch.tensor([3000])).shape
    torch.Size([1, 750, 8])
    """

    def __init__(self, config: HiggsAudioEncoderConfig) -> None:
        super().__init__()
        layer_config: Any = config  # it has all that a Whisper layer reads
        self.config, width = config, config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = FrozenPositions(config.max_source_positions, width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(layer_config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, mels: Tensor, counts: Tensor) -> Tensor:
        """Windows `[N, mel bins, M]`, of which `counts [N]` frames are real, to `[N, M // 4, D]`.

        Padding is hidden from the attention. Of a window's features the first `num_features(count)` are real.
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
        """Real frames of each window, `[N]`.

        Raises:
            PromptError: windows of another shape, a mask that does not fit them, or a window with too little in it.
        """
        bins, most = self.config.num_mel_bins, 2 * self.config.max_source_positions
        if mels.dim() != 3 or 0 in mels.shape or mels.shape[1] != bins or mels.shape[2] > most:
            raise PromptError(
                f"input_features of shape {tuple(mels.shape)}: expected [windows, {bins}, at most {most} frames], one "
                "window at least; leave them out where nothing is heard"
            )
        if mask is None:
            mask = torch.ones_like(mels[:, 0])
        mask = mask.bool()
        counts = mask.sum(1)  # [N]
        if mask.shape != mels.shape[::2] or not torch.equal(mask, _first(counts, mels.shape[2])):
            raise PromptError(
                f"feature_attention_mask {tuple(mask.shape)} does not fit input_features {tuple(mels.shape)}, or hides "
                "frames before real ones; it is [windows, frames], true on the first frames of each window"
            )
        if bool((counts < MIN_MELS).any()):
            raise PromptError(f"windows with {counts.tolist()} mel frames; each needs {MIN_MELS} real ones at least")
        return counts


class FeatureProjector(nn.Module):
    """Features `[..., D_tower]` to the width of the language model, `[..., D]`."""

    def __init__(self, config: HiggsAudioEncoderConfig, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(config.d_model, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


def real_features(features: Tensor, counts: Tensor) -> Tensor:
    """The real ones of the features `[N, P, D]` of windows with `counts [N]` mel frames, in order: `[sum, D]`."""
    return features[_first(num_features(counts), features.shape[1])]


def check_places(places: Tensor, heard: Tensor, counts: Tensor) -> None:
    """Features stand at the beginning of runs of audio-in placeholders, and each run of them holds whole windows.

    Args:
        places: `[B, T]`, positions that take features.
        heard: `[B, T]`, positions of audio-in placeholders, whether they take features or columns.
        counts: `[N]`, mel frames of the windows.

    Raises:
        PromptError: one does not: a shift would go unheard until much later.
    """
    places = places.bool()
    before = F.pad(heard & ~places, (1, 0))[:, :-1]  # whether a column's placeholder stands one position earlier
    if bool((places & before).any()):
        raise PromptError(
            "feature_positions has features behind codes of the same audio: they take the first placeholders of each, "
            "and codes the rest; pass what the processor returns"
        )
    edges = F.pad(places.long(), (1, 1)).diff(dim=1)  # [B, T + 1]
    runs = ((edges == -1).nonzero()[:, 1] - (edges == 1).nonzero()[:, 1]).cumsum(0).tolist()
    windows = num_features(counts).cumsum(0).tolist()
    if runs[-1:] != windows[-1:] or not set(runs) <= set(windows):
        raise PromptError(
            f"feature_positions has runs that end after {runs} positions, the windows end after {windows} features: "
            "each run must hold whole windows, in order"
        )


def _first(counts: Tensor, length: int) -> Tensor:
    """True on the first `counts [N]` of `length` places: `[N, length]`."""
    return torch.arange(length, device=counts.device) < counts[:, None]
