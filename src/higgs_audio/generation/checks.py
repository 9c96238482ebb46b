"""Checks of the inputs of the language model: token ids, delayed columns of codes, features."""

from typing import Any

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import CodesError, PromptError


def audio_mask(input_ids: Tensor, config: HiggsAudioConfig) -> Tensor:
    """Returns a mask of the shape of `input_ids`, true at placeholders of columns of codes."""
    return torch.isin(input_ids, torch.tensor(config.audio_placeholder_ids, device=input_ids.device))


def vocabulary_size(config: HiggsAudioConfig) -> int:
    """Returns the number of text tokens, V_text."""
    text: Any = config.text_config
    return int(text.vocab_size)


def check_ids(input_ids: Tensor, config: HiggsAudioConfig, name: str = "input_ids") -> None:
    """Raises PromptError unless `input_ids` are integers within the vocabulary."""
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise PromptError(f"{name} has dtype {input_ids.dtype}; it must contain integers")
    low, high, num_ids = int(input_ids.min()), int(input_ids.max()), vocabulary_size(config)
    if low < 0 or high >= num_ids:
        raise PromptError(f"token ids from {low} to {high}; allowed: 0 to {num_ids - 1}. Use the model's own tokenizer")


def check_columns(columns: Tensor, config: HiggsAudioConfig, with_range: bool = True) -> None:
    """Checks the shape and type of `columns [B, F, K]`, and with `with_range` the range of their ids.

    A decode step skips the range check, which would synchronize the host with the device.

    Raises:
        CodesError: a check fails.
    """
    num_codebooks, num_rows = config.audio_num_codebooks, config.codebook_rows
    if columns.ndim != 3 or columns.shape[2] != num_codebooks:
        raise CodesError(f"audio_input_ids of shape {tuple(columns.shape)}: expected [batch, columns, {num_codebooks}]")
    if columns.is_floating_point():
        raise CodesError(f"audio_input_ids of {columns.dtype}: expected integers")
    if with_range and columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < num_rows:
        raise CodesError(
            f"audio_input_ids from {int(columns.min())} to {int(columns.max())}; allowed: 0 to {num_rows - 1}"
        )


def check_audio_tower(config: HiggsAudioConfig) -> None:
    """Raises PromptError if the model has no audio tower to encode features."""
    if config.skip_audio_tower:
        raise PromptError("input_features for a model without audio tower (skip_audio_tower=True); pass codes instead")
