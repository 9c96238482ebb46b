"""Voice, Turn and Prompt: a conversation as plain data; converts scripts to turns, and prompts to chat messages.

The messages follow the published examples: a system turn with the scene and the speakers; then, for each reference, a
user turn (its text) and an assistant turn (its codes); then the text to generate.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType, NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from higgs_audio.errors import CodesError, PromptError, TextError, VoiceError
from higgs_audio.special_tokens import SCENE_END, SCENE_START
from higgs_audio.text.markup import find_special_tokens, is_unicode

Codes = NDArray[np.int64]

# The system texts of the original examples.
SINGLE_SPEAKER = "Generate audio following instruction."
MULTI_SPEAKER = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
DEFAULT_PROFILES = ("feminine", "masculine")  # for speakers without a voice, alternating

_SPEAKER = re.compile(r"SPEAKER(0|[1-9]\d*)")
_TAG = re.compile(r"\[\s*SPEAKER\s*(\d+)\s*\]", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Voice:
    """The voice of a speaker: a reference recording (codes and their transcript), or a profile in words.

    With neither, the model chooses a voice.

    Args:
        name: a name for users; it is not part of the prompt.
        transcript: the text of the reference, exactly as spoken.
        codes: [K, F] integers, the codes of the reference; copied as int64.
        profile: a line such as "feminine", or the profile of a named voice of the checkpoint.

    Raises:
        VoiceError: codes and a profile, codes without their transcript, or a transcript without codes.
        CodesError: codes of another shape or type.
    """

    name: str | None = None
    transcript: str | None = None
    codes: Codes | None = None
    profile: str | None = None

    def __post_init__(self) -> None:
        who = f"the voice {self.name!r}" if self.name else "the voice"
        if self.codes is not None and self.profile is not None:
            raise VoiceError(f"{who} has both codes and a profile; give one of them")
        if self.codes is not None and not (isinstance(self.transcript, str) and self.transcript.strip()):
            raise VoiceError(f"{who} has codes without their transcript; give the text spoken in the recording")
        if self.codes is None and self.transcript is not None:
            raise VoiceError(f"{who} has a transcript without codes; encode its recording")
        if self.profile is not None:
            _check_line(self.profile, f"the profile of {who}", VoiceError)
        object.__setattr__(self, "codes", _check_codes(self.codes, who))

    @property
    def key(self) -> str:
        """Hash of transcript, profile and codes, without the name: equal for voices that sound the same."""
        return _hash(self.transcript, self.profile, self.codes)


@dataclass(frozen=True, eq=False)
class Turn:
    """One contribution of one speaker.

    Args:
        text: text of the turn.
        speaker: "SPEAKER0", "SPEAKER1", ...; None if there is only one speaker.
        codes: [K, F] integers, the turn's audio: a reference, an earlier generated turn, or a training target. None for
            a turn to generate.

    Raises:
        TextError: no text.
        PromptError: a speaker name of another form.
        CodesError: codes of another shape or type.
    """

    text: str
    speaker: str | None = None
    codes: Codes | None = None

    def __post_init__(self) -> None:
        where = f"the turn of {self.speaker}" if self.speaker else "the turn"
        if not isinstance(self.text, str) or not self.text.strip():
            raise TextError(f"{where} has the text {self.text!r:.60}; give the text to speak")
        if self.speaker is not None:
            _check_speaker(self.speaker)
        object.__setattr__(self, "codes", _check_codes(self.codes, where))


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation: turns with codes, then turns to generate. In training, the last turn has codes too.

    Args:
        turns: at least one; turns without codes come last.
        scene: the scene description: where and how the audio was recorded.
        profiles: speaker -> a line of words, or the codes [K, F] of a reference that is placed in the scene.
        system: the text of the system turn; "" for no system turn, None for the text of the original examples (see
            `to_messages`).

    Raises:
        PromptError: no turns, a turn with codes after a turn without, a special token in the scene or a profile, or a
            scene or profiles without a system turn.
        CodesError: codes with different numbers of codebooks.
    """

    turns: tuple[Turn, ...]
    scene: str | None = None
    profiles: Mapping[str, str | Codes] = field(default_factory=dict)
    system: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", _check_turns(self.turns))
        for name in ("scene", "system"):
            if not isinstance(getattr(self, name), (str, NoneType)):
                raise PromptError(f"the {name} is a {type(getattr(self, name)).__name__}; give a text, or None")
        object.__setattr__(self, "scene", (self.scene or "").strip() or None)
        object.__setattr__(self, "profiles", MappingProxyType(_check_profiles(self.profiles)))
        if not self.turns:
            raise PromptError("the prompt has no turns; give at least the text to speak")
        has_codes = [turn.codes is not None for turn in self.turns]
        if sorted(has_codes, reverse=True) != has_codes:
            raise PromptError(f"turn {has_codes.index(False)} has no codes, but turns after it have; generate it first")
        _check_codebooks([*(turn.codes for turn in self.turns), *self.profiles.values()])
        if self.scene and not is_unicode(self.scene):
            raise PromptError(
                f"the scene {self.scene!r:.60} contains half of a character (a lone surrogate); decode it as UTF-8"
            )
        if self.scene and (found := find_special_tokens(self.scene)):
            raise PromptError(f"the scene contains the special token {found[0]}; give plain text, scene tags are added")
        if self.system == "" and (self.scene or self.profiles):
            raise PromptError("a scene and profiles require a system turn; give system=None or a text")

    @property
    def speakers(self) -> tuple[str, ...]:
        """All speakers of turns and profiles, in the order of their numbers."""
        named = {turn.speaker for turn in self.turns if turn.speaker} | set(self.profiles)
        return tuple(sorted(named, key=_number))


# Checks of arguments.


def read_codes(codes: Any, where: str) -> Codes:
    """Copies an array, a tensor or nested lists as int64 [K, F]; F may be 0.

    Raises:
        CodesError: another shape or type, or a negative number; the message begins with `where`.
    """
    try:
        array = np.asarray(codes.detach().cpu() if hasattr(codes, "detach") else codes)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, types that numpy lacks
        raise CodesError(f"{where} has codes in a {type(codes).__name__}; give integers [K, F]: {error}") from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise CodesError(f"{where} has codes of {array.dtype} {list(array.shape)}; give integers [K, F]")
    read = np.array(array, dtype=np.int64, order="C")  # [K, F]
    if read.size and int(read.min()) < 0:
        raise CodesError(f"{where} has the code {int(read.min())}; codes start at 0")
    return read


def _check_codes(codes: Any, where: str) -> Codes | None:
    """Copies codes of at least one frame."""
    if codes is None:
        return None
    read = read_codes(codes, where)
    if not read.size:
        raise CodesError(f"{where} has codes of the shape {list(read.shape)}; give integers [K, F], F at least 1")
    return read


def _check_codebooks(values: Iterable[str | Codes | None]) -> None:
    counts = {codes.shape[0] for codes in values if isinstance(codes, np.ndarray)}
    if len(counts) > 1:
        raise CodesError(f"the prompt mixes codes of {sorted(counts)} codebooks; encode all with one audio tokenizer")


def _check_turns(turns: Any) -> tuple[Turn, ...]:
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Turn) for turn in turns):
        raise PromptError(f"the turns are {turns!r:.60}; give a list of Turn, or parse_script(text)")
    return tuple(turns)


def _check_profiles(profiles: Mapping[str, Any]) -> dict[str, str | Codes]:
    if not isinstance(profiles, Mapping):
        raise PromptError(f"the profiles are a {type(profiles).__name__}; give a dict: speaker to words or codes")
    checked: dict[str, str | Codes] = {}
    for speaker in sorted(profiles, key=_number):
        profile = profiles[speaker]
        if isinstance(profile, str):
            _check_line(profile, f"the profile of {speaker}", PromptError)
        elif (profile := _check_codes(profile, f"the profile of {speaker}")) is None:
            raise PromptError(f"the profile of {speaker} is None; omit it, or give a line of words or codes")
        checked[speaker] = profile
    return checked


def _check_voices(voices: Any) -> dict[str, Voice]:
    by_speaker = {} if voices is None else voices
    if not isinstance(by_speaker, Mapping) or not all(isinstance(voice, Voice) for voice in by_speaker.values()):
        raise PromptError(f"the voices are {voices!r:.60}; give a Voice, or a dict: speaker to Voice")
    return dict(by_speaker)


def _check_line(text: str, what: str, error: type[Exception]) -> None:
    if not isinstance(text, str) or not text.strip() or len(text.splitlines()) != 1:
        raise error(f"{what} is {text!r:.60}; give one line of words")
    if found := find_special_tokens(text):
        raise error(f"{what} contains the special token {found[0]}; remove it")


def _check_speaker(speaker: str) -> re.Match[str]:
    match = _SPEAKER.fullmatch(speaker) if isinstance(speaker, str) else None
    if not match:
        raise PromptError(f"the speaker is {speaker!r}; speakers are named SPEAKER0, SPEAKER1 and so on")
    return match


def _number(speaker: str) -> int:
    return int(_check_speaker(speaker)[1])


def _hash(*parts: str | Codes | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else (part or "").encode("utf-8", "surrogatepass")
        digest.update(f"{getattr(part, 'shape', type(part).__name__)} {len(data)} ".encode() + data)
    return digest.hexdigest()


# Scripts to turns, turns to a Prompt, a Prompt to messages.


def parse_script(text: str) -> list[Turn]:
    """Parses a script with speaker tags to turns without codes.

    A tag starts a turn anywhere in a line, in upper or lower case, with or without spaces inside; text before the first
    tag has no speaker. A turn keeps its line breaks, without blank lines.

    Raises:
        TextError: no text, or a tag without text after it.

    >>> [(turn.speaker, turn.text) for turn in parse_script("[SPEAKER0] Hello.\\n[SPEAKER1] Hi.")]
    [('SPEAKER0', 'Hello.'), ('SPEAKER1', 'Hi.')]
    """
    if not isinstance(text, str):
        raise TextError(f"the script is a {type(text).__name__}; give a text")
    first, *rest = _TAG.split(text)
    turns = [Turn(_tidy(first))] if first.strip() else []
    for number, text_of_turn in zip(rest[::2], rest[1::2], strict=True):
        turns.append(Turn(_tidy(text_of_turn), f"SPEAKER{int(number)}"))
    if not turns:
        raise TextError(f"the script is {text!r:.60}; give some text, such as '[SPEAKER0] Hello.'")
    return turns


def _tidy(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def compose(
    turns: Sequence[Turn],
    voices: Voice | Mapping[str, Voice] | None = None,
    *,
    scene: str | None = None,
    previous: Sequence[Turn] = (),
) -> Prompt:
    """Composes turns and voices into a `Prompt` as in the original examples.

    References become turns before all others. If some voices are references and some are profiles, the references are
    placed in the scene instead, beside the profiles. With several speakers and no reference, speakers without a profile
    get `DEFAULT_PROFILES`, alternating.

    Args:
        turns: turns to generate.
        voices: speaker -> voice; a single voice belongs to SPEAKER0.
        scene: the scene description.
        previous: generated turns of the same conversation, with codes; they change neither the system turn nor the
            tags.

    Raises:
        PromptError: as `Prompt`; or voices of another type.
        CodesError: codes with different numbers of codebooks.
    """
    voices = {"SPEAKER0": voices} if isinstance(voices, Voice) else _check_voices(voices)
    previous, turns = _check_turns(previous), _check_turns(turns)
    references: list[Turn] = []
    profiles: dict[str, str | Codes] = {}
    in_scene = any(voice.profile is not None for voice in voices.values())
    for speaker in sorted(voices, key=_number):
        voice = voices[speaker]
        if voice.profile is not None:
            profiles[speaker] = voice.profile
        elif voice.codes is not None and in_scene:
            profiles[speaker] = voice.codes
        elif voice.codes is not None:
            references.append(Turn(voice.transcript or "", speaker, voice.codes))
    without_codes = [replace(turn, codes=None) for turn in previous]
    system, lines = _choose_system(Prompt((*references, *without_codes, *turns), scene, profiles))
    return Prompt((*references, *previous, *turns), scene, lines, system)


def to_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """Converts a prompt to chat messages; codes are content `{"type": "audio", "codes": [K, F]}`.

    If `prompt.system` is None, the system turn is as in the original examples: none before reference turns without
    scene or profiles; `MULTI_SPEAKER` for several speakers without a reference, with `DEFAULT_PROFILES` for speakers
    without a profile; otherwise `SINGLE_SPEAKER`. With several speakers, texts begin with the speaker's tag. The turns
    to generate are one user message, one line each.

    A last turn with codes counts as the turn to generate, so a training example begins with the same messages as its
    prompt.
    """
    system, profiles = _choose_system(prompt)
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": _join(_write_system(system, prompt.scene, profiles))})
    tagged = len({*prompt.speakers, *profiles}) > 1
    lines: list[str] = []
    for turn in prompt.turns:
        lines.append(f"[{turn.speaker}] {turn.text}" if tagged and turn.speaker else turn.text)
        if turn.codes is not None:
            messages.append({"role": "user", "content": lines.pop()})
            messages.append({"role": "assistant", "content": [_audio(turn.codes)]})
    if lines:
        messages.append({"role": "user", "content": "\n".join(lines)})
    return messages


def _choose_system(prompt: Prompt) -> tuple[str, Mapping[str, str | Codes]]:
    """Returns the system text, "" for no system turn, and the profiles."""
    if prompt.system is not None:
        return prompt.system, prompt.profiles
    has_references = any(turn.codes is not None for turn in prompt.turns[:-1])
    if has_references and not (prompt.scene or prompt.profiles):
        return "", {}
    has_references = has_references or any(isinstance(profile, np.ndarray) for profile in prompt.profiles.values())
    if has_references or len(prompt.speakers) < 2:
        return SINGLE_SPEAKER, prompt.profiles
    defaults = {
        speaker: DEFAULT_PROFILES[place % len(DEFAULT_PROFILES)] for place, speaker in enumerate(prompt.speakers)
    }
    return MULTI_SPEAKER, {**defaults, **prompt.profiles}


def _write_system(system: str, scene: str | None, profiles: Mapping[str, str | Codes]) -> list[str | Codes]:
    """Returns the texts and codes of the system turn, in order."""
    parts: list[str | Codes] = [system]
    if not scene and not profiles:
        return parts
    parts += [f"\n\n{SCENE_START}\n", scene or "", "\n\n" if scene and profiles else ""]
    for place, (speaker, profile) in enumerate(profiles.items()):
        parts += ["\n" if place else "", f"{speaker}: ", profile]
    return [*parts, f"\n{SCENE_END}"]


def _join(parts: Iterable[str | Codes]) -> str | list[dict[str, Any]]:
    """Joins adjacent texts; returns a plain string if there is nothing else."""
    items: list[dict[str, Any]] = []
    for part in parts:
        if not isinstance(part, str):
            items.append(_audio(part))
        elif items and items[-1]["type"] == "text":
            items[-1]["text"] += part
        else:
            items.append({"type": "text", "text": part})
    return str(items[0]["text"]) if len(items) == 1 else items


def _audio(codes: Codes) -> dict[str, Any]:
    return {"type": "audio", "codes": codes}
