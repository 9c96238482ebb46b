"""A prompt whose last text is hidden: what a model says without having read it.

Trained on a tenth of such prompts, a model can be guided: what the text changes in its logits is made larger. Hidden
tokens become padding in their places, so that both prompts are of one length.

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
from higgs_audio.special_tokens import END_OF_MESSAGE, END_OF_TURN, HEADER_END, HEADER_START, PAD

_SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]\s?")
_LONGEST_TAG = 8  # tokens


def mask_last_text(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Token ids `[T]` with the text of the last user turn replaced by padding, its speaker's tag left.

    Raises PromptError where there is no user turn.
    """
    start, end = last_text(ids, tokenizer)
    start += _tag_length(ids[start:end], tokenizer)
    hidden = ids.clone()
    hidden[start:end] = _id(tokenizer, PAD)
    return hidden


def negative_prompts(ids: Tensor, scale: float, options: Mapping[str, Any]) -> Tensor | None:
    """The prompts `[B, T]` that guidance compares `ids [B, T]` with: given, or with hidden texts.

    None at scale 1, and where a scale that the call did not ask for (the checkpoint's own) has nothing to hide texts
    with: `options` of the call have no tokenizer.

    Raises:
        OptionError: neither prompts nor a tokenizer to hide the texts with.
        PromptError: prompts of another shape, or without a user turn.
    """
    given: Any = options.get("negative_prompt_ids")
    tokenizer: Any = options.get("tokenizer")
    can_hide = callable(getattr(tokenizer, "decode", None))
    if scale == 1 or (given is None and not can_hide and "text_guidance_scale" not in options):
        return None
    if given is None:
        if not can_hide:
            raise OptionError(
                f"text_guidance_scale={scale} needs tokenizer=processor.tokenizer, or negative_prompt_ids of the same "
                "shape as input_ids, to run the model without the text"
            )
        return torch.stack([mask_last_text(row, tokenizer) for row in ids])
    if not isinstance(given, Tensor) or given.shape != ids.shape:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise PromptError(f"negative_prompt_ids is {shape}; it must be of the shape of input_ids, {tuple(ids.shape)}")
    return given


def duplicate_batch(feed: Mapping[str, Any], unread: Tensor | None = None) -> dict[str, Any]:
    """A model's inputs for a batch and the same batch behind it, whose token ids are `unread` where given."""
    tensors = {name: value for name, value in feed.items() if isinstance(value, Tensor)}
    doubled = {name: torch.cat([value, value]) for name, value in tensors.items()}
    if unread is not None:
        doubled["input_ids"] = torch.cat([feed["input_ids"], unread])
    return {**feed, **doubled}


def apply_guidance(logits: Tensor, scale: float | Tensor, end: int) -> Tensor:
    """Logits `[2 B, ..., V]` of prompts read and unread to `[B, ..., V]`, what reading changes taken `scale` times.

    A scale for each is `[B, 1, 1]`, of as many dimensions as the logits.
    The id `end` stays as likely as it is to who reads: guided, sentences ended at their pauses.
    """
    read, unread = logits.float().chunk(2)
    others = unread + scale * (read - unread)
    others[..., end] = float("-inf")
    ends = read[..., end] - _without(read, end).logsumexp(-1)  # log odds
    others[..., end] = ends + others.logsumexp(-1)
    return others


def _without(logits: Tensor, id: int) -> Tensor:
    """The logits with `id` impossible."""
    return logits.index_fill(-1, torch.tensor([id], device=logits.device), float("-inf"))


def last_text(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Where in `ids [T]` the text of the last user turn starts and ends."""
    header = torch.tensor(_user_header(tokenizer), device=ids.device)
    windows = ids.unfold(0, min(len(header), len(ids)), 1)
    headers = torch.eq(windows, header[: windows.shape[1]]).all(1).nonzero()
    if len(ids) < len(header) or not len(headers):
        raise PromptError("the prompt has no user turn whose text could be hidden")
    start = int(headers[-1]) + len(header)
    marks = torch.tensor([_id(tokenizer, mark) for mark in (END_OF_TURN, END_OF_MESSAGE)], device=ids.device)
    ends = torch.isin(ids[start:], marks).nonzero()
    return start, start + int(ends[0]) if len(ends) else len(ids)


def _tag_length(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the speaker's tag that a text begins with."""
    starts = [str(tokenizer.decode(ids[:count].tolist())) for count in range(_LONGEST_TAG + 1)]
    return max((count for count, start in enumerate(starts) if _SPEAKER_TAG.fullmatch(start)), default=0)


@lru_cache
def _user_header(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    text = HEADER_START + "user" + HEADER_END + "\n\n"
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@lru_cache
def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number
