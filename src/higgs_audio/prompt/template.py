"""The prompt format: the only renderer from messages to pieces of a prompt, and the parser of rendered strings.

A prompt is a list of pieces, not a string. The renderer makes each special token a separate piece, and user text is
never parsed for special tokens, so no text can open a turn or insert an audio placeholder. The joined contents of the
pieces are the equivalent string.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

from higgs_audio.audio.sources import AudioSource
from higgs_audio.errors import PromptError
from higgs_audio.prompt.conversation import INSTRUCTION_TAGS, SYSTEM_TAGS, Item, Message
from higgs_audio.special_tokens import (
    AUDIO_BOS,
    AUDIO_DELAY,
    AUDIO_EOS,
    AUDIO_IN,
    AUDIO_OUT,
    AUDIO_OUT_BOS,
    BEGIN,
    END_OF_MESSAGE,
    END_OF_TURN,
    HEADER_END,
    HEADER_START,
    INSTRUCTION_END,
    RECIPIENT,
    SCENE_END,
    SOUND_TAGS,
    SPECIAL_TOKENS,
)

# Functions that convert or check a text; the flag is whether the message of the text also has sound tags.
TextFrontend = Callable[[str, bool], str]
TextCheck = Callable[[str, bool], None]


@dataclass(frozen=True)
class Piece:
    """A part of a prompt: one special token, one text, or one audio (a single placeholder, repeated when encoded).

    Attributes:
        kind: kind of the part.
        content: the token, the text, or the placeholder.
        trained: whether its tokens are labels.
        source: the audio item of an audio piece.
        opens: role of the turn whose body begins after this piece, the last piece of a header; "" for other pieces.
        closes: whether this piece ends the body of a turn.
    """

    kind: Literal["special", "text", "audio"]
    content: str
    trained: bool = False
    source: AudioSource | None = None
    opens: str = ""
    closes: bool = False


def join(pieces: Sequence[Piece]) -> str:
    """Returns the prompt as one string with one placeholder for each audio."""
    return "".join(piece.content for piece in pieces)


# Message -> Piece.


def render(
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    force_audio: bool = False,
    start_index: int | None = None,
    text_frontend: TextFrontend | None = None,
    style: str = "original",
) -> tuple[Piece, ...]:
    """Renders turns to the pieces of a prompt.

    Sound tags (<SE> ...) are tokens in every role; scene and instruction tags are tokens in the system turn,
    instruction tags also in other turns. Any other special token in a text is encoded as plain text.

    Args:
        messages: from `read_conversation`.
        add_generation_prompt: whether to end the prompt with an assistant header.
        force_audio: whether to add the token that opens an audio segment to that header.
        start_index: index of the first trained message; all assistant turns are trained when None. In a trained turn
            the text, the audio with the tokens around it, and the closing token are labels; a recipient always is.
        text_frontend: converts the text of user turns outside of tags; None keeps it unchanged.
        style: one of `STYLES`. With "transformers" the generation prompt always opens an audio segment, every turn
            ends with <|eot_id|>, and the audio of a scene has the tokens of an assistant's audio.
    """
    published = style == "transformers"
    pieces = [_special(BEGIN)]
    for message, following in zip_longest(messages, messages[1:]):
        continues = message.role == "assistant" and following is not None and following.role == "assistant"
        end = END_OF_MESSAGE if continues and not published else END_OF_TURN
        trained = message.role == "assistant" and (start_index is None or message.index >= start_index)
        pieces += _header(message.role, opens=message.role)
        if message.recipient:
            pieces += [_text(message.recipient, True), _special(RECIPIENT, True)]
        for item in message.items:
            pieces += _render_item(item, message.role, trained, text_frontend, published)
        pieces.append(Piece("special", end, trained, closes=True))
    if add_generation_prompt:
        pieces += [*_header("assistant"), *([_special(AUDIO_OUT_BOS)] if force_audio or published else [])]
    return tuple(pieces)


def check_texts(messages: Sequence[Message], check: TextCheck) -> None:
    """Calls `check` with every text that `render` would pass to a text front end."""
    texts = [item for message in messages if message.role == "user" for item in message.items if isinstance(item, str)]
    for text in texts:
        parts = _split_tags(text, "user")
        for part, kind in parts:
            if kind == "text":
                check(part, len(parts) > 1)


def _special(token: str, trained: bool = False) -> Piece:
    return Piece("special", token, trained)


def _text(text: str, trained: bool = False) -> Piece:
    return Piece("text", text, trained)


def _header(role: str, opens: str = "") -> list[Piece]:
    return [_special(HEADER_START), _text(role), _special(HEADER_END), Piece("text", "\n\n", opens=opens)]


def _render_item(
    item: Item, role: str, trained: bool, text_frontend: TextFrontend | None, published: bool
) -> list[Piece]:
    if isinstance(item, str):
        return _render_text(item, role, trained, text_frontend if role == "user" else None)
    is_output = role == "assistant" or published
    opening, placeholder = (AUDIO_OUT_BOS, AUDIO_OUT) if is_output else (AUDIO_BOS, AUDIO_IN)
    audio = Piece("audio", placeholder, trained, item)
    return [_special(opening, trained), audio, _special(AUDIO_EOS, trained)]


def _render_text(text: str, role: str, trained: bool, text_frontend: TextFrontend | None) -> list[Piece]:
    parts = _split_tags(text, role)
    pieces = []
    for part, kind in parts:
        if kind == "text" and text_frontend is not None:
            part = text_frontend(part, len(parts) > 1)
        pieces.append(_special(part, trained) if kind == "tag" else _text(part, trained))
    return pieces


def _split_tags(text: str, role: str) -> list[tuple[str, Literal["tag", "enclosed", "text"]]]:
    """Splits a text at the tags that are tokens in this role; text between a pair of tags is of the kind "enclosed"."""
    tags = (*SOUND_TAGS, *(SYSTEM_TAGS if role == "system" else INSTRUCTION_TAGS))
    parts: list[tuple[str, Literal["tag", "enclosed", "text"]]] = []
    enclosed = False
    for part in _split(text, tags):
        parts.append((part, "tag" if part in tags else "enclosed" if enclosed else "text"))
        if part in tags:
            enclosed = not (part.startswith("</") or part in (INSTRUCTION_END, SCENE_END))
    return parts


def _split(text: str, tokens: Sequence[str]) -> Iterator[str]:
    """Splits a text at tokens; the tokens are parts too."""
    pattern = "(" + "|".join(map(re.escape, tokens)) + ")"
    return (part for part in re.split(pattern, text) if part)


# A rendered string -> Piece.


def parse(prompt: str) -> tuple[Piece, ...]:
    """Splits a rendered prompt into its pieces; the bodies of closed assistant turns are trained.

    Only for strings that a program rendered: every special token in them is parsed as a token.

    Raises:
        PromptError: a placeholder token that only the processor may write.
    """
    pieces: list[Piece] = []
    for part in _split(prompt, SPECIAL_TOKENS):
        if pieces and pieces[-1].content == HEADER_END and part.startswith("\n\n"):
            pieces.append(_text("\n\n"))
            part = part[2:]
        if part:
            pieces.append(_parse_part(part))
        if part in (END_OF_TURN, END_OF_MESSAGE):
            _close_turn(pieces)
    return tuple(pieces)


def _parse_part(part: str) -> Piece:
    if part == AUDIO_DELAY:
        raise PromptError(f"the prompt contains {AUDIO_DELAY}; write one {AUDIO_IN} or {AUDIO_OUT} for each audio")
    if part in (AUDIO_IN, AUDIO_OUT):
        return Piece("audio", part, source={})
    return _special(part) if part in SPECIAL_TOKENS else _text(part)


def _close_turn(pieces: list[Piece]) -> None:
    """Marks the body of the turn that the last piece closes; the body of an assistant turn is trained."""
    headers = [number for number, piece in enumerate(pieces) if piece.content == HEADER_END]
    if not headers or headers[-1] == 0:
        return
    role, last = pieces[headers[-1] - 1].content, headers[-1]
    last += pieces[last + 1].content == "\n\n"  # part of the header
    trained = role == "assistant"
    body = [replace(piece, trained=trained) for piece in pieces[last + 1 :]]
    pieces[last:] = [replace(pieces[last], opens=role), *body[:-1], replace(body[-1], closes=True)]
