"""The prompt format: special tokens, chat messages, and the one renderer from messages to pieces of a prompt.

A prompt is a list of pieces, not a string: a special token is a piece of its own, made by the renderer, and what
somebody wrote is text, never read for special tokens. So no text can open a turn or ask for audio that is not there.
The string that a tokenizer would see is the pieces' content, joined.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

from higgs_audio.audio.sources import AUDIO_KEYS, AUDIO_OPTIONS, AudioSource
from higgs_audio.errors import OptionError, PromptError, nearest
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
    INSTRUCTION_START,
    RECIPIENT,
    SCENE_END,
    SCENE_START,
    SOUND_TAGS,
    SPECIAL_TOKENS,
)
from higgs_audio.text.phonemes import phonemize, spell_marks
from higgs_audio.text.written import is_speakable

_INSTRUCTION_TAGS = (INSTRUCTION_START, INSTRUCTION_END)
_SYSTEM_TAGS = (SCENE_START, SCENE_END, *_INSTRUCTION_TAGS)
_SPECIAL_SHAPE = re.compile(r"<\|[^<>|\s]+\|>")

_OTHERWISE = "Change the conversation, or use style='original'"
_SPEAKER_TAG = re.compile(r"(\[SPEAKER\d+\] ?|\n)")

ROLES_WITH_AUDIO = ("system", "user", "assistant", "scene")
MESSAGE_KEYS = ("role", "content", "recipient")
CONTENT_TYPES = ("text", "audio")

# How a conversation becomes a prompt: as Boson's own code does it, or as the template published for transformers does.
STYLES = ("original", "transformers")

Speak = Callable[[str, bool], str]  # a text, and whether it stands beside tags -> what the model reads


@dataclass(frozen=True)
class Piece:
    """A part of a prompt: one special token, one text, or one audio (its placeholder, not yet one per column)."""

    kind: Literal["special", "text", "audio"]
    content: str
    trained: bool = False  # whether these tokens are labels
    source: AudioSource | None = None  # of an audio


@dataclass(frozen=True)
class Message:
    """One turn. `index` is its place in the conversation as it was given."""

    role: str
    items: tuple[str | AudioSource, ...]
    index: int
    recipient: str = ""


def join(pieces: Sequence[Piece]) -> str:
    """The prompt as one string, one placeholder for each audio."""
    return "".join(piece.content for piece in pieces)


# Chat messages -> Message.


def read_conversation(
    conversation: Sequence[Mapping[str, Any]], allow_special: bool = False, style: str = "original"
) -> tuple[Message, ...]:
    """Chat messages in either style -> turns, a role `scene` folded into the system turn.

    Args:
        conversation: messages `{"role", "content", "recipient"}`; content is a string or a list of
            `{"type": "text", "text": ...}` and `{"type": "audio", ...}` with one of `AUDIO_KEYS`. A conversation with
            a `scene` message is of the Hugging Face style: all its texts are trimmed, as that template does.
        allow_special: whether texts may hold special tokens where they are forbidden otherwise (see `render`).
        style: one of `STYLES`. In that of transformers all texts are trimmed, scene message or not, and what its
            template drops in silence or refuses is refused.

    Raises:
        PromptError: an empty conversation, an unknown key, role or content type, a special token typed in a text, or
            what the style has no form for.
        OptionError: another style.
    """
    if style not in STYLES:
        raise OptionError(f"style={style!r}; {nearest(str(style), STYLES)}")
    if not isinstance(conversation, Sequence) or isinstance(conversation, (str, bytes)) or not conversation:
        raise PromptError(f"the conversation is {conversation!r:.60}; give a list with at least one message")
    messages = [_read_message(message, index) for index, message in enumerate(conversation)]
    if not allow_special:
        for message in messages:
            _refuse_special(message)
    if style == "transformers":
        _refuse_untemplated(messages)
        messages = [_trim(message) for message in messages]
    return tuple(_fold_scene(messages, _space_published_scene if style == "transformers" else _space_scene))


def _read_message(message: Mapping[str, Any], index: int) -> Message:
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is a {type(message).__name__}; give a dict with 'role' and 'content'")
    if unknown := [key for key in message if key not in MESSAGE_KEYS]:
        raise PromptError(f"{where} has the key {unknown[0]!r}; {nearest(str(unknown[0]), MESSAGE_KEYS)}")
    role, content, recipient = message.get("role"), message.get("content"), message.get("recipient") or ""
    if not isinstance(role, str) or not role:
        raise PromptError(f"{where} has the role {role!r}; give a name: {', '.join(ROLES_WITH_AUDIO)}")
    if not isinstance(recipient, str) or (recipient and role != "assistant"):
        raise PromptError(f"{where} ({role}) has the recipient {recipient!r}; only assistant turns have one, a string")
    parts = [content] if isinstance(content, (str, Mapping)) else content
    if not isinstance(parts, Sequence) or not parts:
        raise PromptError(f"{where} ({role}) has the content {content!r:.60}; give a string or a list of items")
    items = tuple(_read_item(part, f"{where} ({role})") for part in parts)
    if role not in ROLES_WITH_AUDIO and any(not isinstance(item, str) for item in items):
        raise PromptError(f"{where} has audio in the role {role!r}; {nearest(role, ROLES_WITH_AUDIO)}")
    return Message(role, items, index, recipient)


def _read_item(item: str | Mapping[str, Any], where: str) -> str | AudioSource:
    """A text as it is, or the keys of an audio that are set."""
    if isinstance(item, str):
        return item
    kind = item.get("type") if isinstance(item, Mapping) else item
    if kind not in CONTENT_TYPES:
        raise PromptError(f"{where} has content of type {kind!r:.60}; {nearest(str(kind), CONTENT_TYPES)}")
    allowed = ("type", "text") if kind == "text" else ("type", *AUDIO_KEYS, *AUDIO_OPTIONS)
    if unknown := [key for key in item if key not in allowed]:
        raise PromptError(f"{where} has {kind} with the key {unknown[0]!r}; {nearest(str(unknown[0]), allowed)}")
    if kind == "text":
        if not isinstance(item.get("text"), str):
            raise PromptError(f"{where} has a text item whose 'text' is {item.get('text')!r:.60}; give a string")
        return str(item["text"])
    # The original examples write audio_url="placeholder" (or "") beside raw_audio.
    return {key: value for key, value in item.items() if key != "type" and not _is_unset(key, value)}


def _is_unset(key: str, value: Any) -> bool:
    return value is None or (key == "audio_url" and isinstance(value, str) and value in ("", "placeholder"))


def _refuse_special(message: Message) -> None:
    allowed = _SYSTEM_TAGS if message.role == "system" else ()
    texts = (message.role, message.recipient, *(item for item in message.items if isinstance(item, str)))
    found = [token for text in texts for token in _SPECIAL_SHAPE.findall(text) if token not in allowed]
    if found:
        raise PromptError(
            f"message {message.index} ({message.role}) holds the special token {found[0]}; allowed there: "
            f"{', '.join(allowed) or 'none'}. Take it out, or pass allow_special=True: generation instructions are "
            "then tokens, and everything else is read as plain text"
        )


def _refuse_untemplated(messages: Sequence[Message]) -> None:
    """Raises where transformers' template would raise, or leave something out without a word."""
    if messages[0].role != "system" or len(messages[0].items) != 1 or not isinstance(messages[0].items[0], str):
        raise PromptError(
            f"message 0 is not a system message of one text; style='transformers' needs one. {_OTHERWISE}"
        )
    for message in messages[1:]:
        where = f"message {message.index} ({message.role})"
        is_audio = [not isinstance(item, str) for item in message.items]
        if message.recipient:
            raise PromptError(f"{where} has a recipient, and style='transformers' has none. {_OTHERWISE}")
        if message.role == "assistant" and is_audio != [True]:
            raise PromptError(f"{where} is not one audio item, as style='transformers' needs it. {_OTHERWISE}")
        if message.role not in ("assistant", "scene") and any(is_audio):
            raise PromptError(f"{where} has audio, and style='transformers' reads none there. {_OTHERWISE}")


def _fold_scene(messages: Sequence[Message], space: "_Spacing") -> Sequence[Message]:
    """System message + `scene` message -> one system message with the scene block in it."""
    scenes = [number for number, message in enumerate(messages) if message.role == "scene"]
    if not scenes:
        return messages
    if scenes != [1] or messages[0].role != "system":
        raise PromptError(f"a scene stands at message {scenes[-1]}; give one, as message 1, after a system message")
    system, scene, *others = [_trim(message) for message in messages]
    block = (f"\n\n{SCENE_START}\n", *space(scene.items), f"\n{SCENE_END}")
    return [Message("system", (*system.items, *block), system.index), *others]


def _trim(message: Message) -> Message:
    return replace(message, items=tuple(item.strip() if isinstance(item, str) else item for item in message.items))


def _space_scene(items: Sequence[str | AudioSource]) -> Iterator[str | AudioSource]:
    """The items of a scene: a blank line after a first text, a line each for the others, one space before an audio."""
    for number, (item, following) in enumerate(zip_longest(items, items[1:])):
        yield item
        if following is None:
            return
        if isinstance(item, str) and not isinstance(following, str):
            yield " "
        else:
            yield "\n\n" if number == 0 and isinstance(item, str) else "\n"


def _space_published_scene(items: Sequence[str | AudioSource]) -> Iterator[str | AudioSource]:
    """The same as transformers' template has it: a blank line after a first text even before its audio, a space before
    every audio, and a line end after it."""
    for number, (item, following) in enumerate(zip_longest(items, items[1:])):
        if not isinstance(item, str):
            yield " "
        yield item
        if following is None:
            return
        if isinstance(item, str) and number == 0:
            yield "\n\n"
        elif not isinstance(item, str) or isinstance(following, str):
            yield "\n"


_Spacing = Callable[[Sequence[str | AudioSource]], Iterator[str | AudioSource]]


# Message -> Piece.


def render(
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    force_audio: bool = False,
    start_index: int | None = None,
    speak: Speak | None = None,
    style: str = "original",
) -> tuple[Piece, ...]:
    """Turns -> the pieces of the prompt.

    In every role the sound tags (<SE> ...) are tokens; in the system turn the scene and instruction tags too, in
    others the instruction tags. Any other special token in a text is spelled out as text.

    Args:
        messages: from `read_conversation`.
        add_generation_prompt: ends the prompt with an assistant header.
        force_audio: and with the token that opens an audio segment.
        start_index: index of the first message that is trained; every assistant turn is when None. Trained are, of
            such a turn, its text, its audio with the tokens around it, and its closing token; a recipient always is.
        speak: makes of what user turns say, outside of tags, what the model reads; as it is when None.
        style: one of `STYLES`. In that of transformers the generation prompt always opens an audio segment, every turn
            ends with <|eot_id|>, and the audio of a scene has the tokens of an answer.
    """
    published = style == "transformers"
    pieces = [_special(BEGIN)]
    for message, following in zip_longest(messages, messages[1:]):
        continues = message.role == "assistant" and following is not None and following.role == "assistant"
        continues = continues and not published
        trained = message.role == "assistant" and (start_index is None or message.index >= start_index)
        pieces += _header(message.role)
        if message.recipient:
            pieces += [_text(message.recipient, True), _special(RECIPIENT, True)]
        for item in message.items:
            pieces += _render_item(item, message.role, trained, speak, published)
        pieces.append(_special(END_OF_MESSAGE if continues else END_OF_TURN, trained))
    if add_generation_prompt:
        pieces += [*_header("assistant"), *([_special(AUDIO_OUT_BOS)] if force_audio or published else [])]
    return tuple(pieces)


def _special(token: str, trained: bool = False) -> Piece:
    return Piece("special", token, trained)


def _text(text: str, trained: bool = False) -> Piece:
    return Piece("text", text, trained)


def _header(role: str) -> list[Piece]:
    return [_special(HEADER_START), _text(role), _special(HEADER_END), _text("\n\n")]


def _render_item(
    item: str | AudioSource, role: str, trained: bool, speak: Speak | None, published: bool
) -> list[Piece]:
    if isinstance(item, str):
        tags = (*SOUND_TAGS, *(_SYSTEM_TAGS if role == "system" else _INSTRUCTION_TAGS))
        return list(_split_tags(item, tags, trained, speak if role == "user" else None))
    is_output = role == "assistant" or published
    opening, placeholder = (AUDIO_OUT_BOS, AUDIO_OUT) if is_output else (AUDIO_BOS, AUDIO_IN)
    audio = Piece("audio", placeholder, trained, item)
    return [_special(opening, trained), audio, _special(AUDIO_EOS, trained)]


def _split_tags(text: str, tags: Sequence[str], trained: bool, speak: Speak | None) -> Iterator[Piece]:
    """A text's tags and what lies between them; `speak` changes only what no tag encloses."""
    parts, enclosed = _split(text, tags), False
    for part in parts:
        if part in tags:
            enclosed = not (part.startswith("</") or part in (INSTRUCTION_END, SCENE_END))
            yield _special(part, trained)
        else:
            yield _text(part if enclosed or speak is None else speak(part, len(parts) > 1), trained)


def to_phonemes(text: str, beside_tags: bool = False) -> str:
    """What a user turn says, as phonemes; speaker tags and line ends stay as they are.

    Marks without words stand for themselves where something is said on another line, or where the text is what lies
    beside tags: a laugh may end in a full stop.

    Raises:
        TextError: nothing in the text can be spoken.
    """
    parts = [(part, bool(_SPEAKER_TAG.fullmatch(part)) or not part.strip()) for part in _SPEAKER_TAG.split(text)]
    beside_words = beside_tags or any(is_speakable(part) for part, is_kept in parts if not is_kept)
    return "".join(
        part if is_kept else spell_marks(part) if beside_words and not is_speakable(part) else phonemize(part)
        for part, is_kept in parts
    )


def _split(text: str, tokens: Sequence[str]) -> list[str]:
    pattern = "(" + "|".join(map(re.escape, tokens)) + ")"
    return [part for part in re.split(pattern, text) if part]


# A rendered string -> Piece.


def parse(prompt: str) -> tuple[Piece, ...]:
    """A prompt that is already rendered, special tokens and all -> its pieces; the bodies of closed assistant turns
    are trained.

    Only for strings that a program made: every special token in them counts.

    Raises:
        PromptError: a placeholder token that only the processor writes.
    """
    pieces: list[Piece] = []
    for part in _split(prompt, SPECIAL_TOKENS):
        if pieces and pieces[-1].content == HEADER_END and part.startswith("\n\n"):
            pieces.append(_text("\n\n"))
            part = part[2:]
        if part:
            pieces.append(_parse_part(part))
        if part in (END_OF_TURN, END_OF_MESSAGE):
            _train_turn(pieces)
    return tuple(pieces)


def _parse_part(part: str) -> Piece:
    if part == AUDIO_DELAY:
        raise PromptError(f"the prompt holds {AUDIO_DELAY}; write one {AUDIO_IN} or {AUDIO_OUT} for each audio")
    if part in (AUDIO_IN, AUDIO_OUT):
        return Piece("audio", part, source={})
    return _special(part) if part in SPECIAL_TOKENS else _text(part)


def _train_turn(pieces: list[Piece]) -> None:
    """Marks the turn that the last piece closes as trained, if it is the assistant's."""
    headers = [number for number, piece in enumerate(pieces) if piece.content == HEADER_END]
    if not headers or headers[-1] == 0 or pieces[headers[-1] - 1].content != "assistant":
        return
    body = headers[-1] + 1
    body += pieces[body].content == "\n\n"
    pieces[body:] = [replace(piece, trained=True) for piece in pieces[body:]]
