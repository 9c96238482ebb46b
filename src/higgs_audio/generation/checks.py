"""What every model here is given: token ids and delayed columns of codes. Where they are not its own, it says so."""

from typing import Any

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import CodesError, PromptError


def audio_mask(input_ids: Tensor, config: HiggsAudioConfig) -> Tensor:
    """Which token ids, of any shape, are placeholders that take a column of codes."""
    return torch.isin(input_ids, torch.tensor(config.audio_placeholder_ids, device=input_ids.device))


def check_ids(input_ids: Tensor, config: HiggsAudioConfig, name: str = "input_ids") -> None:
    """Raises PromptError where an id has no row in the table of embeddings."""
    text: Any = config.text_config
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise PromptError(f"{name} is of {input_ids.dtype}; it must hold integers")
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= text.vocab_size:
        raise PromptError(
            f"token ids from {low} to {high}; this model knows 0 to {text.vocab_size - 1}: use its own tokenizer"
        )


def check_columns(columns: Tensor, config: HiggsAudioConfig, with_range: bool = True) -> None:
    """Raises CodesError where `columns [B, F, K]` have another shape or type, or codes that no table has.

    The range is left alone in a decode step: reading it would make the host wait for the device.
    """
    num_codebooks, num_rows = config.audio_num_codebooks, config.codebook_rows
    if columns.ndim != 3 or columns.shape[2] != num_codebooks:
        raise CodesError(f"audio_input_ids of shape {tuple(columns.shape)}: expected [batch, columns, {num_codebooks}]")
    if columns.is_floating_point():
        raise CodesError(f"audio_input_ids of {columns.dtype}: expected integers")
    if with_range and columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < num_rows:
        raise CodesError(
            f"audio_input_ids between {int(columns.min())} and {int(columns.max())}: allowed are 0 to {num_rows - 1}"
        )
