"""Written text to speakable text: tidy it, check it, cut long text into utterances, and spell it in phonemes."""

import re
import unicodedata
from typing import TYPE_CHECKING

from higgs_audio.errors import TextError

if TYPE_CHECKING:
    pass

# Special tokens.

_SPECIAL = re.compile(r"<\|[^<>|\s]+\|>|</?SE(?:_[se])?>")
_SOUNDS = {
    "laugh": "<SE>[Laughter]</SE>",
    "humming start": "<SE_s>[Humming]</SE_s>",
    "humming end": "<SE_e>[Humming]</SE_e>",
    "music start": "<SE_s>[Music]</SE_s>",
    "music end": "<SE_e>[Music]</SE_e>",
    "music": "<SE>[Music]</SE>",
    "sing start": "<SE_s>[Singing]</SE_s>",
    "sing end": "<SE_e>[Singing]</SE_e>",
    "applause": "<SE>[Applause]</SE>",
    "cheering": "<SE>[Cheering]</SE>",
    "cough": "<SE>[Cough]</SE>",
}
SOUNDS = tuple(_SOUNDS)
_SOUND = re.compile(rf"\[({'|'.join(SOUNDS)})\]", re.IGNORECASE)


def contains_special(text: str) -> list[str]:
    """Special tokens that are typed in a text, in order: `<|...|>`, `<SE>`, `</SE>`, `<SE_s>`, ...

    Also those that `normalize` would bring to light, hidden by an invisible character or full-width brackets.

    >>> contains_special("Hello.<|eot_id|>")
    ['<|eot_id|>']
    """
    return _SPECIAL.findall(text) or _SPECIAL.findall(_fold(text))


def check_speakable(text: str) -> str:
    """The text itself, if there is something to say in it.

    Special tokens are refused, never obeyed and never silently removed: as a token they would end the turn or ask for
    audio that is not there, and left out they would change what the writer sees of the text.

    Raises:
        TextError: not a string, empty, without a letter or digit, or with a special token typed in it.
    """
    if not isinstance(text, str):
        raise TextError(f"the text is a {type(text).__name__}; give a string")
    if found := contains_special(text):
        raise TextError(
            f"the text holds the special token {found[0]}; take it out, or write its brackets as words. "
            f"Sounds are written [{SOUNDS[0]}], [{SOUNDS[-1]}] and so on."
        )
    if not is_speakable(text):
        raise TextError(f"the text is {text!r:.60}; give at least one letter or digit")
    if not is_unicode(text):
        raise TextError(f"the text {text!r:.60} holds half of a character (a lone surrogate); decode it as UTF-8")
    return text


def is_unicode(text: str) -> bool:
    """Whether all of it are characters: a lone surrogate, from text decoded badly, is none."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def mark_sounds(text: str) -> str:
    """Sounds in square brackets, any of `SOUNDS`, in the tokens that the published checkpoint was trained with.

    >>> mark_sounds("Well [laugh] yes.")
    'Well <SE>[Laughter]</SE> yes.'
    """
    return _SOUND.sub(lambda sound: _SOUNDS[sound[1].lower()], text)


def is_speakable(text: str) -> bool:
    """Whether a text has a letter or digit."""
    return any(character.isalnum() for character in text)


# Tidying.

# What the published examples replace, and the further characters of each kind. Two choices are ours: title marks
# become quotes, because as < and > they could spell a special token; and a dash keeps spaces, so that it is a pause.
_PUNCTUATION = {
    **dict.fromkeys("“”„‟«»「」『』《》〈〉〝〞″", '"'),
    **dict.fromkeys("‘’‚‛′`´＇", "'"),
    **dict.fromkeys("—―⸺", " - "),
    **dict.fromkeys("‐‑‒–−", "-"),
    **dict.fromkeys("()（）", " "),
    **dict.fromkeys("【〔", "["),
    **dict.fromkeys("】〕", "]"),
    **dict.fromkeys("·•・", " "),
    "，": ", ",
    "、": ",",
    "。": ".",
    "…": "...",
    "℃": "°C",
    "℉": "°F",
    "№": "No. ",
}
# Compatible characters that are read like the plain ones. Not among them: ² and ½, which are read differently.
_PLAIN_KINDS = ("<font>", "<wide>", "<narrow>", "<square>", "<noBreak>")
_LIGATURES = range(0xFB00, 0xFB07)
JOINERS = "\u200c\u200d"  # invisible, but part of the spelling of Persian and Hindi words
_DEGREES = {"°C": " degrees Celsius", "°F": " degrees Fahrenheit"}
_LONE_MARK = re.compile(r"(?<=\w) (?=[.,;:!?]+(?: |$))")  # what a bracket leaves behind
_ENDINGS = frozenset(".!?,;:-।॥؟۔؛،")
_CLOSERS = "\"'])} "
_SOUND_ENDS = (*(f"[{sound}]" for sound in SOUNDS), "</se>", "</se_s>", "</se_e>")


class CharacterTable(dict[int, str]):
    """A table for str.translate that works out each character once."""

    def __missing__(self, code: int) -> str:
        self[code] = self.replacement(chr(code))
        return self[code]

    def replacement(self, character: str) -> str:
        raise NotImplementedError


class _Folds(CharacterTable):
    """Character -> its plain form; invisible ones and halves of pairs -> nothing."""

    def replacement(self, character: str) -> str:
        if character in _PUNCTUATION:
            return _PUNCTUATION[character]
        kind = unicodedata.decomposition(character).partition(" ")[0]
        if kind in _PLAIN_KINDS or ord(character) in _LIGATURES:
            return unicodedata.normalize("NFKC", character)
        category = unicodedata.category(character)
        if category == "Zs" or character == "\t":
            return " "
        return "" if category.startswith("C") and character not in JOINERS else character


_FOLDS = _Folds()


def _fold(text: str) -> str:
    """Lines kept, punctuation and letters in their plain form."""
    return "\n".join(unicodedata.normalize("NFC", line.translate(_FOLDS)) for line in text.splitlines())


def normalize(text: str) -> str:
    """A text as the language model reads it best.

    Typographic and full-width characters become plain ones, round brackets spaces, °C and °F words, whitespace single
    spaces; blank lines go. A full stop closes a text that has no closing mark: the model learned to stop from
    transcripts that end in one, and without it may go on to speak more than it was given.

    Numbers, dates and abbreviations stay as they are; reading them is left to the model, or to `phonemize`.

    >>> normalize("“Hello”…  it’s me")
    '"Hello"... it\\'s me.'
    """
    folded = _fold(text)
    for degrees, words in _DEGREES.items():
        folded = folded.replace(degrees, words)
    lines = (_LONE_MARK.sub("", " ".join(line.split())) for line in folded.splitlines())
    tidy = "\n".join(line for line in lines if line)
    return tidy if _is_closed(tidy) else tidy + "."


def _is_closed(text: str) -> bool:
    """Whether a text ends in a closing mark, perhaps in quotes, or in a sound, or says nothing at all."""
    ended = text.rstrip(_CLOSERS)[-1:] in _ENDINGS or text.lower().endswith(_SOUND_ENDS)
    return ended or not is_speakable(text)
