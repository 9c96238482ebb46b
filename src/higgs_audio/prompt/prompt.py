"""What is to be said and in whose voice, as plain data: Voice, Turn, Prompt; scripts to turns, prompts to messages.

The messages are those of the published examples: a system turn with the scene and the speakers, then each recording
that the model continues from as a user turn (its text) and an assistant turn (its codes), then the text to speak.
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
from higgs_audio.text.written import contains_special, is_unicode

Codes = NDArray[np.int64]

# The system texts of the original examples.
SINGLE_SPEAKER = "Generate audio following instruction."
MULTI_SPEAKER = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
DEFAULT_PROFILES = ("feminine", "masculine")  # of speakers without a voice, in turn

_SPEAKER = re.compile(r"SPEAKER(0|[1-9]\d*)")
_TAG = re.compile(r"\[\s*SPEAKER\s*(\d+)\s*\]", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Voice:
    """What a speaker sounds like: a reference (codes and the transcript of what they say), or a profile in words.

    One without either is nobody's voice: the model chooses.

    Args:
        name: for people; it changes nothing.
        transcript: the text of the reference, exactly as spoken.
        codes: [K, F] integers, the reference's sound; copied as int64.
        profile: a line such as "feminine", or the name of a voice that the checkpoint knows.

    Raises:
        VoiceError: both, or codes without their transcript, or a transcript without codes.
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
            raise VoiceError(f"{who} has codes without their transcript; give the text that the recording says")
        if self.codes is None and self.transcript is not None:
            raise VoiceError(f"{who} has a transcript without codes; encode its recording")
        if self.profile is not None:
            _check_line(self.profile, f"the profile of {who}", VoiceError)
        object.__setattr__(self, "codes", _check_codes(self.codes, who))

    @property
    def key(self) -> str:
        """Hash of what is heard and said, without the name: equal for voices that sound the same."""
        return _hash(self.transcript, self.profile, self.codes)


@dataclass(frozen=True, eq=False)
class Turn:
    """One contribution of one speaker.

    Args:
        text: what is said.
        speaker: "SPEAKER0", "SPEAKER1", ...; None where there is only one.
        codes: [K, F] integers, the turn's own sound, where it is known: of a reference, of a turn spoken before, or of
            the answer that is trained. A turn without codes is to be spoken.

    Raises:
        TextError: no text.
        PromptError: a speaker of another form.
        CodesError: codes of another shape or type.
    """

    text: str
    speaker: str | None = None
    codes: Codes | None = None

    def __post_init__(self) -> None:
        where = f"the turn of {self.speaker}" if self.speaker else "the turn"
        if not isinstance(self.text, str) or not self.text.strip():
            raise TextError(f"{where} has the text {self.text!r:.60}; give what it says")
        if self.speaker is not None:
            _check_speaker(self.speaker)
        object.__setattr__(self, "codes", _check_codes(self.codes, where))


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation: turns with their sound, then turns to be spoken, or in training an answer that has its sound.

    Args:
        turns: at least one; those without codes stand last.
        scene: where and how it was recorded.
        profiles: speaker -> a line of words, or the codes [K, F] of a reference that stands in the scene.
        system: the text of the system turn; "" for no system turn, None for what the original examples would write
            (see `to_messages`).

    Raises:
        PromptError: no turns, a turn with codes after one without, a special token in the scene or a profile, a scene
            or profiles without a system turn to stand in.
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
        spoken = [turn.codes is not None for turn in self.turns]
        if sorted(spoken, reverse=True) != spoken:
            raise PromptError(f"turn {spoken.index(False)} has no codes and turns after it have; speak it first")
        _check_codebooks([*(turn.codes for turn in self.turns), *self.profiles.values()])
        if self.scene and not is_unicode(self.scene):
            raise PromptError(f"the scene {self.scene!r:.60} holds half of a character; decode it as UTF-8")
        if self.scene and (found := contains_special(self.scene)):
            raise PromptError(f"the scene holds the special token {found[0]}; give its text alone, the tags are added")
        if self.system == "" and (self.scene or self.profiles):
            raise PromptError("a scene and profiles stand in the system turn; give system=None or a text")

    @property
    def speakers(self) -> tuple[str, ...]:
        """All speakers, of turns and profiles, by number."""
        named = {turn.speaker for turn in self.turns if turn.speaker} | set(self.profiles)
        return tuple(sorted(named, key=_number))


# Checks.


def read_codes(codes: Any, where: str) -> Codes:
    """An array, a tensor or nested lists -> a copy as int64 [K, F]; F may be 0.

    Raises:
        CodesError: another shape or type, or a negative number; the message begins with `where`.
    """
    try:
        array = np.asarray(codes.detach().cpu() if hasattr(codes, "detach") else codes)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, types that numpy has not
        raise CodesError(f"{where} has codes in a {type(codes).__name__}; give integers [K, F]: {error}") from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise CodesError(f"{where} has codes of {array.dtype} {list(array.shape)}; give integers [K, F]")
    read = np.array(array, dtype=np.int64, order="C")  # [K, F]
    if read.size and int(read.min()) < 0:
        raise CodesError(f"{where} has the code {int(read.min())}; codes start at 0")
    return read


def _check_codes(codes: Any, where: str) -> Codes | None:
    """A copy, at least a frame of it."""
    if codes is None:
        return None
    read = read_codes(codes, where)
    if not read.size:
        raise CodesError(f"{where} has codes of the shape {list(read.shape)}; give integers [K, F], F at least 1")
    return read


def _check_codebooks(given: Iterable[str | Codes | None]) -> None:
    counts = {codes.shape[0] for codes in given if isinstance(codes, np.ndarray)}
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
            raise PromptError(f"the profile of {speaker} is None; leave it out, or give a line of words or codes")
        checked[speaker] = profile
    return checked


def _check_voices(voices: Any) -> dict[str, Voice]:
    given = {} if voices is None else voices
    if not isinstance(given, Mapping) or not all(isinstance(voice, Voice) for voice in given.values()):
        raise PromptError(f"the voices are {voices!r:.60}; give a Voice, or a dict: speaker to Voice")
    return dict(given)


def _check_line(text: str, what: str, error: type[Exception]) -> None:
    if not isinstance(text, str) or not text.strip() or len(text.splitlines()) != 1:
        raise error(f"{what} is {text!r:.60}; give one line of words")
    if found := contains_special(text):
        raise error(f"{what} holds the special token {found[0]}; take it out")


def _check_speaker(speaker: str) -> re.Match[str]:
    matched = _SPEAKER.fullmatch(speaker) if isinstance(speaker, str) else None
    if not matched:
        raise PromptError(f"the speaker is {speaker!r}; speakers are called SPEAKER0, SPEAKER1 and so on")
    return matched


def _number(speaker: str) -> int:
    return int(_check_speaker(speaker)[1])


def _hash(*parts: str | Codes | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else (part or "").encode("utf-8", "surrogatepass")
        digest.update(f"{getattr(part, 'shape', type(part).__name__)} {len(data)} ".encode() + data)
    return digest.hexdigest()


# Script -> turns -> Prompt -> messages.


def parse_script(text: str) -> list[Turn]:
    """A script with speaker tags -> its turns, to be spoken.

    A tag begins a turn wherever it stands, in any case and with or without spaces in it; what precedes the first one
    has no speaker. A turn keeps its line breaks, without blank lines.

    Raises:
        TextError: no text, or a tag with none behind it.

    >>> [(turn.speaker, turn.text) for turn in parse_script("[SPEAKER0] Hello.\\n[SPEAKER1] Hi.")]
    [('SPEAKER0', 'Hello.'), ('SPEAKER1', 'Hi.')]
    """
    if not isinstance(text, str):
        raise TextError(f"the script is a {type(text).__name__}; give a text")
    first, *rest = _TAG.split(text)
    turns = [Turn(_tidy(first))] if first.strip() else []
    for number, said in zip(rest[::2], rest[1::2], strict=True):
        turns.append(Turn(_tidy(said), f"SPEAKER{int(number)}"))
    if not turns:
        raise TextError(f"the script is {text!r:.60}; give some text, such as '[SPEAKER0] Hello.'")
    return turns


def _tidy(said: str) -> str:
    return "\n".join(line.strip() for line in said.splitlines() if line.strip())


def compose(
    turns: Sequence[Turn],
    voices: Voice | Mapping[str, Voice] | None = None,
    *,
    scene: str | None = None,
    spoken: Sequence[Turn] = (),
) -> Prompt:
    """Turns and voices -> the Prompt that the original examples make of them.

    References become turns before all others. Where some voices are references and some are profiles, the references
    stand in the scene instead, beside the profiles. Several speakers without any reference have the profiles of
    `DEFAULT_PROFILES` in turn where they have no other.

    Args:
        turns: to be spoken.
        voices: speaker -> voice; one voice alone is that of SPEAKER0.
        scene: where and how it was recorded.
        spoken: turns of the same conversation that are spoken already, with codes; the system turn and the tags stay
            what they were without them.

    Raises:
        PromptError: as `Prompt`; or voices of another form.
    """
    voices = {"SPEAKER0": voices} if isinstance(voices, Voice) else _check_voices(voices)
    spoken, turns = _check_turns(spoken), _check_turns(turns)
    heard: list[Turn] = []
    profiles: dict[str, str | Codes] = {}
    in_scene = any(voice.profile is not None for voice in voices.values())
    for speaker in sorted(voices, key=_number):
        voice = voices[speaker]
        if voice.profile is not None:
            profiles[speaker] = voice.profile
        elif voice.codes is not None and in_scene:
            profiles[speaker] = voice.codes
        elif voice.codes is not None:
            heard.append(Turn(voice.transcript or "", speaker, voice.codes))
    unspoken = [replace(turn, codes=None) for turn in spoken]
    system, lines = _choose_system(Prompt((*heard, *unspoken, *turns), scene, profiles))
    return Prompt((*heard, *spoken, *turns), scene, lines, system)


def to_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """Prompt -> chat messages, as the processor takes them; codes are content `{"type": "audio", "codes": [K, F]}`.

    Where `prompt.system` is None, as the original examples have it: no system turn before reference turns without
    scene or profiles; `MULTI_SPEAKER` for several speakers of whom none is heard, with `DEFAULT_PROFILES` where they
    have none; otherwise `SINGLE_SPEAKER`. Texts begin with their speaker's tag if there are several speakers, and
    turns to be spoken make one user message, a line each.

    The last turn counts as the answer if it has codes, so a training example begins as the prompt that asks for it.
    """
    system, profiles = _choose_system(prompt)
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": _join(_write_system(system, prompt.scene, profiles))})
    tagged = len({*prompt.speakers, *profiles}) > 1
    asked: list[str] = []
    for turn in prompt.turns:
        asked.append(f"[{turn.speaker}] {turn.text}" if tagged and turn.speaker else turn.text)
        if turn.codes is not None:
            messages.append({"role": "user", "content": asked.pop()})
            messages.append({"role": "assistant", "content": [_audio(turn.codes)]})
    if asked:
        messages.append({"role": "user", "content": "\n".join(asked)})
    return messages


def _choose_system(prompt: Prompt) -> tuple[str, Mapping[str, str | Codes]]:
    """(system text, empty for no system turn; profiles)."""
    if prompt.system is not None:
        return prompt.system, prompt.profiles
    follows = any(turn.codes is not None for turn in prompt.turns[:-1])
    if follows and not (prompt.scene or prompt.profiles):
        return "", {}
    heard = follows or any(isinstance(profile, np.ndarray) for profile in prompt.profiles.values())
    if heard or len(prompt.speakers) < 2:
        return SINGLE_SPEAKER, prompt.profiles
    defaults = {
        speaker: DEFAULT_PROFILES[place % len(DEFAULT_PROFILES)] for place, speaker in enumerate(prompt.speakers)
    }
    return MULTI_SPEAKER, {**defaults, **prompt.profiles}


def _write_system(system: str, scene: str | None, profiles: Mapping[str, str | Codes]) -> list[str | Codes]:
    """The system turn's texts and codes, to be joined."""
    parts: list[str | Codes] = [system]
    if not scene and not profiles:
        return parts
    parts += [f"\n\n{SCENE_START}\n", scene or "", "\n\n" if scene and profiles else ""]
    for place, (speaker, profile) in enumerate(profiles.items()):
        parts += ["\n" if place else "", f"{speaker}: ", profile]
    return [*parts, f"\n{SCENE_END}"]


def _join(parts: Iterable[str | Codes]) -> str | list[dict[str, Any]]:
    """Neighbouring texts as one; a plain string where there is nothing else."""
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
