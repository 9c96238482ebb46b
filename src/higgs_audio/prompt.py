"""What is to be spoken, as data: voices, turns, prompts; scripts with speaker tags; and the chat messages they become."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from higgs_audio.errors import CodesError, TextError, VoiceError

SYSTEM_TEXT = "Generate audio following instruction."
MULTI_SPEAKER_TEXT = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
SCENE_START, SCENE_END = "<|scene_desc_start|>", "<|scene_desc_end|>"  # typed in the system text, as in the originals

_TAG = re.compile(r"\[(SPEAKER\d+)\]\s*")


@dataclass(frozen=True, eq=False)
class Voice:
    """What a speaker sounds like: a reference (`codes` with their `transcript`), or a `profile` in words, or nobody's.

    Attributes:
        name: how people call it.
        transcript: what is said in the reference, word for word.
        codes: of the reference, integers `[K, F]`.
        profile: a text profile that the model knows, such as "feminine".

    Raises:
        VoiceError: codes without a transcript, or a transcript without codes. CodesError: codes of another shape.
    """

    name: str | None = None
    transcript: str | None = None
    codes: NDArray[np.int64] | None = None
    profile: str | None = None

    def __post_init__(self) -> None:
        if (self.codes is None) != (self.transcript is None):
            given = "codes without a transcript" if self.transcript is None else "a transcript without codes"
            raise VoiceError(f"a voice with {given}: a reference needs both, the recording's codes and what it says")
        if self.transcript is not None and not self.transcript.strip():
            raise VoiceError("a voice with an empty transcript: give what the recording says, word for word")
        if self.codes is not None:
            _check_codes(self.codes)

    @cached_property
    def key(self) -> str:
        """A hash of what the voice is made of, for caches; the name is not part of it."""
        digest = hashlib.sha256(repr((self.transcript, self.profile)).encode())
        if self.codes is not None:
            digest.update(repr(self.codes.shape).encode() + np.ascontiguousarray(self.codes, np.int64).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Turn:
    """One speaker's contribution. `codes [K, F]` are its sound where that is known: a reference, or a training target."""

    text: str
    speaker: str | None = None
    codes: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.codes is not None:
            _check_codes(self.codes)


@dataclass(frozen=True, eq=False)
class Prompt:
    """Turns in order, with what surrounds them.

    Attributes:
        turns: those with codes are references (or training targets), those without are to be spoken.
        scene: where it is recorded, in words.
        profiles: speaker ("SPEAKER0") -> text profile.
        system: the system text, where it is not to follow from the rest.
    """

    turns: tuple[Turn, ...]
    scene: str | None = None
    profiles: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None


def _check_codes(codes: NDArray[Any]) -> None:
    if not isinstance(codes, np.ndarray) or codes.ndim != 2 or codes.dtype.kind not in "iu":
        given = f"{codes.dtype} {codes.shape}" if isinstance(codes, np.ndarray) else type(codes).__name__
        raise CodesError(f"codes are {given}: expected an integer array [codebooks, frames]")
    if codes.shape[0] == 0 or codes.shape[1] == 0:
        raise CodesError(f"codes of shape {codes.shape}: expected at least one codebook and one frame")


def parse_script(text: str) -> list[Turn]:
    """A script with speaker tags as turns; text before the first tag has no speaker.

    Raises:
        TextError: a tag with nothing behind it, or nothing at all.

    >>> [(turn.speaker, turn.text) for turn in parse_script("[SPEAKER0] Hello.\\n[SPEAKER1] Hi!")]
    [('SPEAKER0', 'Hello.'), ('SPEAKER1', 'Hi!')]
    """
    before, *tagged = _TAG.split(text)
    turns = [Turn(before.strip())] if before.strip() else []
    for speaker, said in zip(tagged[::2], tagged[1::2], strict=True):
        if not said.strip():
            raise TextError(f"[{speaker}] says nothing: put its text behind the tag")
        turns.append(Turn(said.strip(), speaker))
    if not turns:
        raise TextError("the script is empty: write [SPEAKER0] and a text, one line a turn")
    return turns


def to_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as chat messages: a system turn where there is something to say in it, then for every known turn
    its text and its sound, then, in one user turn, all that is to be spoken.

    A speaker's tag is written where there is more than one speaker. Reference turns alone, without a scene or a
    profile, need no system turn; the original prompts have none there.
    """
    messages = []
    known = [turn for turn in prompt.turns if turn.codes is not None]
    wanted = [turn for turn in prompt.turns if turn.codes is None]
    tagged = len({turn.speaker for turn in prompt.turns if turn.speaker}) > 1
    system = _system_text(prompt, bool(known), tagged)
    if system is not None:
        messages.append({"role": "system", "content": system})
    for turn in known:
        messages.append({"role": "user", "content": _said(turn, tagged)})
        messages.append({"role": "assistant", "content": [{"type": "audio", "codes": turn.codes}]})
    if wanted:
        messages.append({"role": "user", "content": "\n".join(_said(turn, tagged) for turn in wanted)})
    return messages


def _said(turn: Turn, tagged: bool) -> str:
    return f"[{turn.speaker}] {turn.text}" if tagged and turn.speaker else turn.text


def _system_text(prompt: Prompt, has_reference: bool, tagged: bool) -> str | None:
    """The system turn's text, None where there is no such turn."""
    scene = _scene_block(prompt.scene, prompt.profiles)
    if prompt.system is None and scene is None and has_reference:
        return None
    default = MULTI_SPEAKER_TEXT if tagged and not has_reference else SYSTEM_TEXT
    text = default if prompt.system is None else prompt.system
    return text if scene is None else f"{text}\n\n{scene}"


def _scene_block(scene: str | None, profiles: Mapping[str, str]) -> str | None:
    """The scene between its tags: the description, a blank line, a line for each speaker."""
    lines = "\n".join(f"{speaker}: {profile}" for speaker, profile in sorted(profiles.items()))
    parts: Sequence[str] = [part for part in (scene, lines) if part]
    return "\n".join((SCENE_START, "\n\n".join(parts), SCENE_END)) if parts else None
