"""Classifier-free guidance: amplifies the effect of the prompt's text on the logits.

The unconditional (negative) prompt is the prompt with its last text masked. Guidance requires a model that was trained
with a tenth of its prompts masked. Masked tokens are replaced by padding, so both prompts have the same length.

Source: classifier-free guidance, Ho and Salimans 2022.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_audio.errors import OptionError, PromptError
from higgs_audio.special_tokens import END_OF_MESSAGE, END_OF_TURN, PAD, SPEAKER_TAG, USER_HEADER

_TAG_AND_SPACE = re.compile(SPEAKER_TAG.pattern + r"\s?")
_MAX_TAG_TOKENS = 8


def mask_last_text(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Returns token ids `[T]` with the text of the last user turn, except its speaker tag, replaced by padding.

    Raises:
        PromptError: the prompt has no user turn.
    """
    start, end = last_text(ids, tokenizer)
    start += _tag_length(ids[start:end], tokenizer)
    masked = ids.clone()
    masked[start:end] = _id(tokenizer, PAD)
    return masked


def negative_prompts(ids: Tensor, scale: float, options: Mapping[str, Any]) -> Tensor | None:
    """Returns the unconditional prompts `[B, T]` for the prompts `ids [B, T]`, or None if guidance is off.

    They are the option `negative_prompt_ids` if given, else `ids` with their last texts masked. Guidance is off at
    scale 1. It is also off if the scale comes from the checkpoint, not from the call, and `options` have neither
    `negative_prompt_ids` nor a tokenizer.

    Args:
        ids: the conditional prompts.
        scale: the guidance scale.
        options: options of the call; `negative_prompt_ids`, `tokenizer` and `text_guidance_scale` are read.

    Raises:
        OptionError: neither prompts nor a tokenizer to mask the texts with.
        PromptError: prompts of another shape, or without a user turn.
    """
    given: Any = options.get("negative_prompt_ids")
    tokenizer: Any = options.get("tokenizer")
    can_mask = callable(getattr(tokenizer, "decode", None))
    if scale == 1 or (given is None and not can_mask and "text_guidance_scale" not in options):
        return None
    if given is None:
        if not can_mask:
            raise OptionError(
                f"text_guidance_scale={scale} needs tokenizer=processor.tokenizer, or negative_prompt_ids of the same "
                "shape as input_ids, to run the model without the text"
            )
        return torch.stack([mask_last_text(row, tokenizer) for row in ids])
    if not isinstance(given, Tensor) or given.shape != ids.shape:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise PromptError(f"negative_prompt_ids is {shape}; it must have the shape of input_ids, {tuple(ids.shape)}")
    return given


def duplicate_batch(inputs: Mapping[str, Tensor], negative_ids: Tensor | None = None) -> dict[str, Tensor]:
    """Returns the inputs of the batch twice, `[2 B]` rows; `negative_ids`, if given, replace the second `input_ids`."""
    doubled = {name: torch.cat([value, value]) for name, value in inputs.items()}
    if negative_ids is not None:
        doubled["input_ids"] = torch.cat([inputs["input_ids"], negative_ids])
    return doubled


def apply_guidance(logits: Tensor, scale: float | Tensor, eos: int) -> Tensor:
    """Returns guided logits `[B, ..., V]`: unconditional + scale * (conditional - unconditional).

    The id `eos` keeps its conditional probability; with a guided probability, sentences ended at their pauses.

    Args:
        logits: `[2 B, ..., V]`, conditional rows first, unconditional rows second.
        scale: one scale for all rows, or `[B, 1, 1]` with as many dimensions as the logits.
        eos: id of stream eos.
    """
    conditional, negative = logits.float().chunk(2)
    guided = negative + scale * (conditional - negative)
    guided[..., eos] = float("-inf")
    log_odds = conditional[..., eos] - _exclude(conditional, eos).logsumexp(-1)
    guided[..., eos] = log_odds + guided.logsumexp(-1)
    return guided


def _exclude(logits: Tensor, id: int) -> Tensor:
    """Returns the logits with `id` set to -inf."""
    return logits.index_fill(-1, torch.tensor([id], device=logits.device), float("-inf"))


def last_text(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Returns the start and the end, in `ids [T]`, of the text of the last user turn.

    Raises:
        PromptError: the prompt has no user turn.
    """
    header = torch.tensor(_user_header_ids(tokenizer), device=ids.device)
    windows = ids.unfold(0, min(len(header), len(ids)), 1)
    headers = torch.eq(windows, header[: windows.shape[1]]).all(1).nonzero()
    if len(ids) < len(header) or not len(headers):
        raise PromptError("the prompt has no user turn whose text could be masked; add one, or omit guidance")
    start = int(headers[-1]) + len(header)
    end_ids = torch.tensor([_id(tokenizer, end) for end in (END_OF_TURN, END_OF_MESSAGE)], device=ids.device)
    ends = torch.isin(ids[start:], end_ids).nonzero()
    return start, start + int(ends[0]) if len(ends) else len(ids)


def _tag_length(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the number of tokens of the speaker tag at the start of a text, 0 without one."""
    starts = [str(tokenizer.decode(ids[:count].tolist())) for count in range(_MAX_TAG_TOKENS + 1)]
    return max((count for count, start in enumerate(starts) if _TAG_AND_SPACE.fullmatch(start)), default=0)


@lru_cache
def _user_header_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns the token ids at the start of every user turn."""
    return tuple(tokenizer(USER_HEADER, add_special_tokens=False)["input_ids"])


@lru_cache
def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number
