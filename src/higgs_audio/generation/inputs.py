"""The checked input tensors of a batch, and the model's inputs for each step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.delay import Column
from higgs_audio.errors import CodesError, PromptError
from higgs_audio.generation.checks import check_audio_tower, check_ids
from higgs_audio.generation.output import Step


@dataclass(frozen=True)
class Inputs:
    """The tensors of a batch, with defaults filled in; without audio, F is 0.

    Attributes:
        input_ids, attention_mask: `[B, T]`.
        columns: `[B, F, K]` delayed columns.
        columns_mask: `[B, F]` bool, True where a column is not padding.
        features: inputs of the audio tower by name; may be empty.
        config: config of the model.
    """

    input_ids: Tensor
    attention_mask: Tensor
    columns: Tensor
    columns_mask: Tensor
    features: Mapping[str, Tensor]
    config: HiggsAudioConfig = field(repr=False)

    @property
    def pad_token_id(self) -> int:
        """The padding id; 0 if the config has none, since padding never changes a result."""
        return self.config.pad_token_id or 0

    def open_segment(self, row: int) -> Sequence[Column]:
        """Returns the columns, from the bos column on, of the segment in which the row's prompt ends.

        Empty if the prompt does not end inside a segment.

        Raises:
            CodesError: the prompt ends inside a segment, but none of its columns is a bos column.
        """
        placeholders = (self.config.audio_out_token_idx, self.config.audio_delay_token_id)
        if int(self.input_ids[row, -1]) not in placeholders:
            return []
        columns = [tuple(column) for column in self.columns[row][self.columns_mask[row]].tolist()]
        bos = (self.config.audio_stream_bos_id,) * self.config.audio_num_codebooks
        if bos not in columns:
            raise CodesError(f"row {row} ends inside a segment, but audio_input_ids has no bos column for it; add one")
        start = len(columns) - 1 - columns[::-1].index(bos)
        return columns[start:]

    def prompt_inputs(self) -> dict[str, Tensor]:
        """Returns the model's inputs for the prompts. Only these include features."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.columns.shape[1]:
            inputs |= {"audio_input_ids": self.columns, "audio_input_ids_mask": self.columns_mask}
        return inputs | dict(self.features)

    def step_inputs(self, steps: Sequence[Step]) -> dict[str, Tensor]:
        """Returns the model's inputs for one position per row: the token or column of an active row, else padding.

        If every active row is in audio, only columns are passed. Otherwise a row in audio passes its placeholder and
        column, a row in text its token.

        Args:
            steps: the last step of each active row.
        """
        config, device = self.config, self.input_ids.device
        num_rows = len(self.input_ids)
        tokens = torch.full((num_rows, 1), self.pad_token_id, device=device)  # [B, 1]
        columns = torch.full((num_rows, 1, config.audio_num_codebooks), config.audio_stream_eos_id, device=device)
        in_audio = torch.zeros(num_rows, 1, dtype=torch.bool, device=device)
        for step in steps:
            tokens[step.row] = step.token
            if step.column is not None:
                columns[step.row, 0] = torch.tensor(step.column, device=device)
                in_audio[step.row] = True
        if all(step.column is not None for step in steps):
            return {"audio_input_ids": columns}
        if not in_audio.any():
            return {"input_ids": tokens}
        return {"input_ids": tokens, "audio_input_ids": columns, "audio_input_ids_mask": in_audio}


def check_inputs(
    config: HiggsAudioConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    audio_input_ids: Tensor | None,
    audio_input_ids_mask: Tensor | None,
    features: Mapping[str, Tensor | None],
) -> Inputs:
    """Checks the tensors of a batch and fills in defaults.

    Args:
        config: config of the model.
        input_ids, attention_mask, audio_input_ids, audio_input_ids_mask: as in `generate`.
        features: inputs of the audio tower by name; None if not given.

    Raises:
        PromptError: token ids or an attention mask of the wrong shape or type, right padding, or features that do not
            fit the model or `feature_positions`.
        CodesError: columns or a column mask of the wrong shape.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or 0 in input_ids.shape:
        shape = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise PromptError(f"input_ids is {shape}; it must be a tensor [B, T] with at least one token per row")
    check_ids(input_ids, config)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape or not bool(attention_mask[:, -1].all()):
        raise PromptError(
            f"attention_mask {tuple(attention_mask.shape)} does not fit input_ids {tuple(input_ids.shape)}, or pads on "
            "the right; pad shorter prompts on the left"
        )
    columns, columns_mask = _check_columns(config, input_ids, audio_input_ids, audio_input_ids_mask)
    given = {name: tensor for name, tensor in features.items() if tensor is not None}
    _check_features(config, given)
    return Inputs(input_ids, attention_mask, columns, columns_mask, given, config)


def _check_columns(
    config: HiggsAudioConfig, input_ids: Tensor, columns: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Checks the shapes of the columns `[B, F, K]` and their mask `[B, F]`, and returns both."""
    shape = (len(input_ids), 0, config.audio_num_codebooks)
    columns = input_ids.new_zeros(shape) if columns is None else columns
    if columns.dim() != 3 or columns.shape[::2] != shape[::2]:
        raise CodesError(f"audio_input_ids is {tuple(columns.shape)}; it must be [B, F, K] with B, K = {shape[::2]}")
    all_real = torch.ones(columns.shape[:2], dtype=torch.bool, device=columns.device)
    mask = all_real if mask is None else mask.bool()
    if mask.shape != columns.shape[:2]:
        raise CodesError(f"audio_input_ids_mask is {tuple(mask.shape)}; it must be {tuple(columns.shape[:2])}")
    return columns, mask


def _check_features(config: HiggsAudioConfig, given: Mapping[str, Tensor]) -> None:
    """Raises PromptError for features without an audio tower or positions, or positions without features."""
    has_features, positions = "input_features" in given, given.get("feature_positions")
    if has_features:
        check_audio_tower(config)
    if has_features != (positions is not None and bool(positions.any())):
        raise PromptError("pass input_features and feature_positions together, as the processor returns them")
