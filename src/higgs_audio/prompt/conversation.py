"""Reads chat messages: validates a conversation once and converts both prompt styles to one form."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from higgs_audio.audio.sources import AUDIO_KEYS, AUDIO_OPTIONS, AudioSource
from higgs_audio.errors import OptionError, PromptError, nearest
from higgs_audio.special_tokens import INSTRUCTION_END, INSTRUCTION_START, SCENE_END, SCENE_START, SPECIAL_TOKEN_PATTERN

INSTRUCTION_TAGS = (INSTRUCTION_START, INSTRUCTION_END)
SYSTEM_TAGS = (SCENE_START, SCENE_END, *INSTRUCTION_TAGS)  # special tokens that a system text may contain

ROLES_WITH_AUDIO = ("system", "user", "assistant", "scene")
MESSAGE_KEYS = ("role", "content", "recipient")
CONTENT_TYPES = ("text", "audio")

# The prompts of Boson's own code, or of the chat template published for transformers.
STYLES = ("original", "transformers")
_USE_ORIGINAL = "Change the conversation, or use style='original'"

Item = str | AudioSource  # item of a message: a text, or the keys of an audio item that are set
Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Message:
    """One turn; `index` is the position of its message in the conversation of the caller."""

    role: str
    items: tuple[Item, ...]
    index: int
    recipient: str = ""


def read_conversation(
    conversation: Conversation, allow_special: bool = False, style: str = "original"
) -> tuple[Message, ...]:
    """Validates chat messages of either style, and merges a `scene` message into the system turn.

    Args:
        conversation: messages `{"role", "content", "recipient"}`; content is a string or a list of
            `{"type": "text", "text": ...}` and `{"type": "audio", ...}` with one of `AUDIO_KEYS`. All texts of a
            conversation with a `scene` message are trimmed, as the Hugging Face template does.
        allow_special: whether texts may contain special tokens that are otherwise rejected (see `template.render`).
        style: one of `STYLES`. With "transformers" all texts are trimmed, and content that its template rejects or
            silently drops is an error.

    Raises:
        PromptError: an empty conversation, an unknown key, role or content type, a special token in a text, or a
            message that the style cannot express.
        OptionError: an unknown style.
    """
    if style not in STYLES:
        raise OptionError(f"style={style!r}; {nearest(str(style), STYLES)}")
    if not isinstance(conversation, Sequence) or isinstance(conversation, (str, bytes)) or not conversation:
        raise PromptError(f"the conversation is {conversation!r:.60}; give a list with at least one message")
    messages = [_read_message(message, index) for index, message in enumerate(conversation)]
    if not allow_special:
        for message in messages:
            _check_special(message)
    if style == "transformers":
        _check_published(messages)
        messages = [_trim(message) for message in messages]
    return tuple(_merge_scene(messages, _format_published_scene if style == "transformers" else _format_scene))


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


def _read_item(item: str | Mapping[str, Any], where: str) -> Item:
    """Returns the string of a text item, or the keys of an audio item that are set."""
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


def _check_special(message: Message) -> None:
    allowed = SYSTEM_TAGS if message.role == "system" else ()
    texts = (message.role, message.recipient, *(item for item in message.items if isinstance(item, str)))
    forbidden = [token for text in texts for token in SPECIAL_TOKEN_PATTERN.findall(text) if token not in allowed]
    if forbidden:
        raise PromptError(
            f"message {message.index} ({message.role}) contains the special token {forbidden[0]}; allowed there: "
            f"{', '.join(allowed) or 'none'}. Remove it, or pass allow_special=True: generation instructions are then "
            "tokens, and all other special tokens plain text"
        )


def _check_published(messages: Sequence[Message]) -> None:
    """Raises PromptError if transformers' template would raise or silently drop content."""
    if messages[0].role != "system" or len(messages[0].items) != 1 or not isinstance(messages[0].items[0], str):
        raise PromptError(
            f"message 0 is not a system message of one text, which style='transformers' requires. {_USE_ORIGINAL}"
        )
    for message in messages[1:]:
        where = f"message {message.index} ({message.role})"
        is_audio = [not isinstance(item, str) for item in message.items]
        if message.recipient:
            raise PromptError(f"{where} has a recipient, which style='transformers' does not support. {_USE_ORIGINAL}")
        if message.role == "assistant" and is_audio != [True]:
            raise PromptError(f"{where} is not one audio item, which style='transformers' requires. {_USE_ORIGINAL}")
        if message.role not in ("assistant", "scene") and any(is_audio):
            raise PromptError(f"{where} has audio, which style='transformers' does not support there. {_USE_ORIGINAL}")


def _merge_scene(
    messages: Sequence[Message], format_scene: Callable[[Sequence[Item]], Iterator[Item]]
) -> Sequence[Message]:
    """Moves the `scene` message, as a scene block, to the end of the system message."""
    scenes = [number for number, message in enumerate(messages) if message.role == "scene"]
    if not scenes:
        return messages
    if scenes != [1] or messages[0].role != "system":
        raise PromptError(f"message {scenes[-1]} is a scene; give one scene, as message 1, after a system message")
    system, scene, *rest = [_trim(message) for message in messages]
    block = (f"\n\n{SCENE_START}\n", *format_scene(scene.items), f"\n{SCENE_END}")
    return [Message("system", (*system.items, *block), system.index), *rest]


def _trim(message: Message) -> Message:
    return replace(message, items=tuple(item.strip() if isinstance(item, str) else item for item in message.items))


def _format_scene(items: Sequence[Item]) -> Iterator[Item]:
    """Yields a scene with a blank line after a leading text, a line end after other items, and a space before audio."""
    for number, (item, following) in enumerate(zip_longest(items, items[1:])):
        yield item
        if following is None:
            return
        if isinstance(item, str) and not isinstance(following, str):
            yield " "
        else:
            yield "\n\n" if number == 0 and isinstance(item, str) else "\n"


def _format_published_scene(items: Sequence[Item]) -> Iterator[Item]:
    """Yields a scene as transformers' template formats it: a blank line after a leading text even before its audio, a
    space before every audio, and a line end after it."""
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
