"""Arguments of a processor that are one value or a list: conversations, prompts, the first trained message."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from higgs_audio.audio.sources import as_sources
from higgs_audio.errors import OptionError, PromptError, check_count
from higgs_audio.prompt import template
from higgs_audio.prompt.template import Piece


def is_list(value: Any) -> bool:
    """Whether a value is a sequence other than a string."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def is_batch(conversation: Any) -> bool:
    """Whether a value is a list of conversations instead of one."""
    return is_list(conversation) and len(conversation) > 0 and is_list(conversation[0])


def read_starts(start_index: Any, count: int) -> list[int | None]:
    """Returns one start index for each of `count` conversations.

    Raises:
        OptionError: a list of another length, or an index that is not a whole number of at least 0.
    """
    starts = list(start_index) if is_list(start_index) else [start_index] * count
    if len(starts) != count:
        raise OptionError(f"start_index has {len(starts)} entries for {count} conversations; give one for each")
    for start in starts:
        if start is not None:
            check_count("start_index", start, 0, None, "None to train every assistant turn")
    return starts


def parse_prompts(text: Any, audio: Any) -> list[list[Piece]]:
    """Parses one rendered prompt or several, and assigns the audio to their placeholders in order.

    Raises:
        PromptError: no prompt, or a number of audios that differs from the number of placeholders.
    """
    texts = [text] if isinstance(text, str) else text
    if not is_list(texts) or not texts or not all(isinstance(prompt, str) and prompt for prompt in texts):
        raise PromptError(f"the prompts are {text!r:.60}; give a non-empty string, or a list of non-empty strings")
    prompts = [template.parse(prompt) for prompt in texts]
    sources = as_sources(audio)
    num_placeholders = sum(piece.kind == "audio" for pieces in prompts for piece in pieces)
    if len(sources) != num_placeholders:
        raise PromptError(f"{len(sources)} audios for {num_placeholders} placeholders; give one for each")
    remaining = iter(sources)
    return [
        [replace(piece, source=next(remaining)) if piece.kind == "audio" else piece for piece in pieces]
        for pieces in prompts
    ]
