"""Sound tags and special tokens in user text, and the check that a text can be spoken."""

import re
import warnings

from higgs_audio.errors import TextError
from higgs_audio.special_tokens import SOUND_TAGS, SPECIAL_TOKEN_PATTERN
from higgs_audio.text.characters import fold

__all__ = [
    "SOUNDS",
    "check_speakable",
    "find_special_tokens",
    "is_speakable",
    "is_unicode",
    "pause_at_brackets",
    "remove_sounds",
    "sounds_to_tokens",
]

_SPECIAL_TOKEN = re.compile(rf"{SPECIAL_TOKEN_PATTERN.pattern}|{'|'.join(SOUND_TAGS)}")
_SOUND_TOKENS = {
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
SOUNDS = tuple(_SOUND_TOKENS)
_BRACKETS = re.compile(r"(?:^|(?<=\s))[(（]([^()（）]*[^\W\d_][^()（）]*)[)）]")
_SOUND_TAG = re.compile(rf"\[({'|'.join(SOUNDS)})\]", re.IGNORECASE)


def find_special_tokens(text: str) -> list[str]:
    """Returns the special tokens that a text contains, in order: `<|...|>`, `<SE>`, `</SE>`, `<SE_s>`, ...

    Also finds those that appear only after `normalize`, because an invisible character or full-width brackets hide
    them.

    >>> find_special_tokens("Hello.<|eot_id|>")
    ['<|eot_id|>']
    """
    return _SPECIAL_TOKEN.findall(text) or _SPECIAL_TOKEN.findall(fold(text))


def check_speakable(text: str) -> str:
    """Returns the text unchanged if it can be spoken.

    A text with a special token is rejected. Encoded as a token, it would end the turn or refer to audio that does not
    exist; removed, the spoken text would differ from the given one.

    Raises:
        TextError: not a string, empty, without a letter or digit, with a special token, or not valid Unicode.
    """
    if not isinstance(text, str):
        raise TextError(f"the text is a {type(text).__name__}; give a string")
    if found := find_special_tokens(text):
        raise TextError(
            f"the text contains the special token {found[0]}; remove it, or write its brackets as words. "
            f"The published model makes sounds that are written [{SOUNDS[0]}], [{SOUNDS[-1]}] and so on."
        )
    if not is_speakable(text):
        raise TextError(f"the text is {text!r:.60}; give at least one letter or digit")
    if not is_unicode(text):
        raise TextError(f"the text {text!r:.60} contains half of a character (a lone surrogate); decode it as UTF-8")
    return text


def is_speakable(text: str) -> bool:
    """Whether a text contains a letter or digit."""
    return any(character.isalnum() for character in text)


def is_unicode(text: str) -> bool:
    """Whether a text is valid Unicode, without lone surrogates, which appear when text is decoded wrongly."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def remove_sounds(text: str) -> str:
    """Removes sound tags in square brackets, for models that have no sounds; warns about each.

    >>> remove_sounds("Well, yes.")
    'Well, yes.'
    """
    for sound in dict.fromkeys(tag.lower() for tag in _SOUND_TAG.findall(text)):
        warnings.warn(f"this model has no sound [{sound}], so it is left out", stacklevel=2)
    return _SOUND_TAG.sub(" ", text)


def pause_at_brackets(text: str) -> str:
    """Replaces round brackets around words by commas, which are heard as pauses.

    >>> pause_at_brackets("She left (at last), by train.")
    'She left , at last,, by train.'
    """
    return _BRACKETS.sub(r", \1,", text)


def sounds_to_tokens(text: str) -> str:
    """Replaces sound tags in square brackets, any of `SOUNDS`, by the tokens of the published checkpoint.

    >>> sounds_to_tokens("Well [laugh] yes.")
    'Well <SE>[Laughter]</SE> yes.'
    """
    return _SOUND_TAG.sub(lambda tag: _SOUND_TOKENS[tag[1].lower()], text)
