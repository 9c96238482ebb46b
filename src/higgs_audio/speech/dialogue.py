"""Dialogues: scripts of several speakers as lines, each with the voice of its speaker."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from higgs_audio.errors import PromptError, VoiceError, nearest
from higgs_audio.prompt.prompt import Voice, parse_script
from higgs_audio.special_tokens import SPEAKER_TAG
from higgs_audio.speech.request import SPEAKER, Line

Script = str | Sequence[tuple[str, str]]  # a text with speakers' names, or pairs of speaker and text
Cast = Mapping[str, Voice | str]  # speaker -> voice, or the name of one


def read_script(script: Script, speakers: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Returns the pairs of speaker and text of a script.

    Args:
        script: a text with tags such as [SPEAKER1], where text before the first tag belongs to SPEAKER0; a text whose
            lines begin with the name of a speaker and a colon, or continue the line before; or pairs of speaker and
            text.
        speakers: the names that can begin a line.

    Raises:
        TextError: no text, or a tag without text after it.
        PromptError: another form, no pairs, or text before the first name.

    >>> read_script("[SPEAKER0] Hello. [SPEAKER1] Hi.")
    [('SPEAKER0', 'Hello.'), ('SPEAKER1', 'Hi.')]
    >>> read_script("Ann: Hello,\\n  Ben.\\nBen: Hi.", ["Ann", "Ben"])
    [('Ann', 'Hello,\\n  Ben.'), ('Ben', 'Hi.')]
    """
    if isinstance(script, str):
        names = [re.escape(speaker) for speaker in speakers if isinstance(speaker, str) and speaker]
        is_play = names and not SPEAKER_TAG.search(script)
        return _read_play(script, names) if is_play else _read_tags(script)
    pairs = list(script) if isinstance(script, Iterable) else []
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise PromptError(f"the script has the line {pair!r:.60}; give pairs of speaker and text")
    if not pairs:
        raise PromptError(f"the script is {script!r:.60}; give a text that names its speakers, or pairs of both")
    return [(speaker, text) for speaker, text in pairs]


def _read_tags(script: str) -> list[tuple[str, str]]:
    return [(turn.speaker or SPEAKER, turn.text) for turn in parse_script(script)]


def _read_play(script: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs of a script whose lines begin with one of `names`, which are escaped patterns."""
    by_length = sorted(names, key=len, reverse=True)  # "Ann Lee" before "Ann"
    first, *rest = re.split(rf"^[ \t]*({'|'.join(by_length)})[ \t]*:", script, flags=re.MULTILINE)
    if not rest:
        return _read_tags(script)
    if first.strip():
        raise PromptError(f"the script begins with {first.strip()!r:.60}; begin each line with its speaker: 'Ann: Hi.'")
    return [(speaker, text.strip()) for speaker, text in zip(rest[::2], rest[1::2], strict=True)]


def cast_script(
    pairs: Sequence[tuple[str, str]],
    voices: Cast | None,
    names: Sequence[str],
    find: Callable[[str], Voice],
) -> list[Line]:
    """Returns the lines of a script with the voices of their speakers.

    Args:
        pairs: speaker and text of each line.
        voices: speaker -> voice, or name of a voice. None gives the speakers the named voices in order.
        names: names of the voices of the checkpoint.
        find: returns the voice of a name.

    Raises:
        VoiceError: a speaker without voice, a voice without speaker, no such voice, or fewer names than speakers.
        PromptError: voices of another form.
    """
    speakers = list(dict.fromkeys(speaker for speaker, _ in pairs))
    cast = _default_cast(speakers, names) if voices is None else _check_cast(speakers, voices)
    found = {speaker: find(voice) if isinstance(voice, str) else voice for speaker, voice in cast.items()}
    return [Line(text, found[speaker], speaker) for speaker, text in pairs]


def _default_cast(speakers: Sequence[str], names: Sequence[str]) -> dict[str, Voice | str | None]:
    if not names:  # the model chooses
        return dict.fromkeys(speakers)
    if len(speakers) > len(names):
        counts = f"{len(speakers)} speakers and the checkpoint {len(names)} voices"
        raise VoiceError(f"the script has {counts}; give voices= with one for each speaker")
    return dict(zip(speakers, names, strict=False))


def _check_cast(speakers: Sequence[str], voices: Cast) -> dict[str, Voice | str | None]:
    if not isinstance(voices, Mapping) or not all(isinstance(voice, Voice | str) for voice in voices.values()):
        raise PromptError(f"voices={voices!r:.60}; give a mapping of speakers to voices, or names of voices")
    if missing := [speaker for speaker in speakers if speaker not in voices]:
        raise VoiceError(f"the speaker {missing[0]!r:.60} has no voice; voices= has {', '.join(map(str, voices))}")
    if unknown := [speaker for speaker in voices if speaker not in speakers]:
        raise VoiceError(f"voices= has {unknown[0]!r:.60}, who says nothing; {nearest(str(unknown[0]), speakers)}")
    return dict(voices)
