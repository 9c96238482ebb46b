"""English text into phonemes."""

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from higgs_audio.errors import TextError
from higgs_audio.text.written import JOINERS, CharacterTable, normalize

if TYPE_CHECKING:
    from hibari.g2p import G2P


# Phonemes.

# The American English symbols of misaki: 45 vowels and consonants, and the two marks of stress.
PHONES = "AIOTWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹʃʊʌʒʤʧθᵊᵻ"
STRESSES = "ˈˌ"
# One mark for each pause that speech tells apart. Rarer ones (dashes, quotes, brackets) are read as these or left out:
# a symbol that a model has hardly seen costs more than it says.
PAUSES = ".!?,;:"
PHONEMES = frozenset(PHONES + STRESSES + PAUSES + " ")

_RARE_PHONES = str.maketrans({"—": ",", "…": ".", "a": "ɑ", "y": "i", "ʀ": "ɹ", "ɾ": "T", "ʔ": "t"})
_STRENGTH = "?!.:;,"  # the strongest of a run of marks stands for all
_RUN_OF_MARKS = re.compile(rf"\s*([{PAUSES}](?:\s*[{PAUSES}])*)\s*")
_SPOKEN_SYMBOLS = "°§±×÷™®©¢→←½¼¾²³µ"
_TRAILING_OFF = re.compile(r"\.{2,}(?=\s+[a-z])")
_DASH = re.compile(r"\s+-+\s+|--+")
# The front end reads a number in words only up to a decillion, and spells at most 24 letters of an unknown word; the
# longest words it knows have fewer than 33. Its time grows with the cube of the parts that a word has without a space.
_LONG_NUMBER = re.compile(r"\d(?:[,.]?\d){18,}")
_LONG_WORD = re.compile(r"[^\W\d_]{33,}")
_LONG_RUN = re.compile(r"\S{61,}")


class _Letters(CharacterTable):
    """Characters -> what an English voice can read of them: itself, a name, a space, or nothing for a lone accent."""

    def replacement(self, character: str) -> str:
        category, name = unicodedata.category(character), unicodedata.name(character, "")
        if character.isascii() or character in _SPOKEN_SYMBOLS:
            return " " if character in '[]{}"' else character
        if character == "İ":  # the one letter that is two in lower case, which the front end does not expect
            return "I"
        if greek := _GREEK.match(name):
            return f" {greek[1].lower()} "
        if category.startswith("L"):
            return character if name.startswith("LATIN") else " "
        if category == "Nd":
            return str(unicodedata.digit(character))
        if category.startswith("N"):  # ⅓, ①, Ⅳ and the numerals of other scripts
            plain = unicodedata.normalize("NFKC", character).replace("⁄", "/")
            return f" {plain} " if plain.isascii() else f" {unicodedata.numeric(character):g} "
        if category.startswith("M") or character in JOINERS:
            return ""
        return " " if category in ("So", "Sk") else character


_GREEK = re.compile("GREEK (?:SMALL|CAPITAL) LETTER (?:FINAL )?([A-Z]+)")
_LETTERS = _Letters()


@lru_cache(maxsize=1024)  # a text is read where it is checked, measured and written
def phonemize(text: str) -> str:
    """English text -> phonemes, in the American English alphabet of misaki; the same text always gives the same.

    The text is normalized first, so it ends in a mark. Numbers, dates, money and abbreviations are read as words.
    Greek letters are read by their names; emoji and the letters of other scripts are left out.

    Returns:
        A string of `PHONEMES`: words apart by one space, no space before a mark.

    Raises:
        TextError: nothing that an English voice can read.

    >>> phonemize("The sun rises")
    'ðə sˈʌn ɹˈIzᵻz.'
    """
    try:
        phonemes = _tidy(_front_end()(_readable(text)))
    except (IndexError, KeyError, TypeError, ValueError) as error:  # no text is known that leads here
        raise TextError(f"{text!r:.60} cannot be read: {error}; write it in plainer words") from error
    if not any(phone in PHONES for phone in phonemes):
        raise TextError(f"there is nothing to read in {text!r:.60}; give English text, in Latin letters or digits")
    return phonemes


def spell_marks(text: str) -> str:
    """Punctuation by itself, without letters or digits, as `phonemize` leaves it behind a word: one mark, or nothing.

    >>> spell_marks(" … "), spell_marks("?!"), spell_marks('"')
    ('.', '?', '')
    """
    return min((mark for mark in _readable(text) if mark in PAUSES), key=_STRENGTH.index, default="")


@lru_cache(maxsize=1)
def _front_end() -> "G2P":
    """hibari's grapheme-to-phoneme part, without its voice. Takes a second to load, so only when first used."""
    from hibari.g2p import G2P

    return G2P(british=False)


def _readable(text: str) -> str:
    """One line that the front end can read."""
    line = " ".join(normalize(text).translate(_LETTERS).split())
    line = _DASH.sub(", ", _TRAILING_OFF.sub(",", line))
    line = _LONG_NUMBER.sub(lambda number: " ".join(re.findall(r"\d", number[0])), line)
    line = _LONG_WORD.sub(lambda word: _cut(word[0]), line)
    return _LONG_RUN.sub(lambda run: " ".join(_cut(part) for part in re.findall(r"[^\W_]+|[.!?,;:]$", run[0])), line)


def _cut(run: str) -> str:
    return " ".join(re.findall(".{1,24}", run))


def _tidy(phonemes: str) -> str:
    kept = "".join(phone for phone in phonemes.translate(_RARE_PHONES) if phone in PHONEMES)
    marked = _RUN_OF_MARKS.sub(lambda run: min(run[1].replace(" ", ""), key=_STRENGTH.index) + " ", kept)
    tidy = " ".join(marked.split()).lstrip(PAUSES + " ")
    return tidy if tidy.endswith(tuple(PAUSES)) else tidy + "."  # a last initial swallows its full stop
