"""English grapheme-to-phoneme conversion."""

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from higgs_audio.errors import TextError
from higgs_audio.text.characters import JOINERS, CharacterTable
from higgs_audio.text.normalization import normalize
from higgs_audio.text.written_forms import read_written_forms

if TYPE_CHECKING:
    from hibari.g2p import G2P

__all__ = ["PAUSES", "PHONEMES", "PHONES", "phonemize", "phonemize_punctuation", "remove_unreadable"]

# The American English symbols of misaki: 45 vowels and consonants, and the two stress marks.
PHONES = "AIOTWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹʃʊʌʒʤʧθᵊᵻ"
_STRESSES = "ˈˌ"
# One mark for each kind of pause. Rarer marks (dashes, quotes, brackets) are mapped to these or removed: a model learns
# little about a symbol that is rare in the training data.
PAUSES = ".!?,;:"
PHONEMES = frozenset(PHONES + _STRESSES + PAUSES + " ")

_RARE_PHONES = str.maketrans({"—": ",", "…": ".", "a": "ɑ", "y": "i", "ʀ": "ɹ", "ɾ": "T", "ʔ": "t"})
_PAUSES_BY_STRENGTH = "?!.:;,"  # the strongest mark of a run replaces the run
_RUN_OF_PAUSES = re.compile(rf"\s*([{PAUSES}](?:\s*[{PAUSES}])*)\s*")
_READABLE_SYMBOLS = "°§±×÷™®©¢→←½¼¾²³µ"
_ELLIPSIS_IN_SENTENCE = re.compile(r"\.{2,}(?=\s+[a-z])")
_DASH = re.compile(r"\s+-+\s+|--+")
# The front end expands numbers only up to a decillion, and spells at most 24 letters of an unknown word; the longest
# words in its dictionary have fewer than 33. Its time is cubic in the number of parts of a run without spaces.
_LONG_NUMBER = re.compile(r"\d(?:[,.]?\d){18,}")
_LONG_WORD = re.compile(r"[^\W\d_]{33,}")
_LONG_RUN = re.compile(r"\S{61,}")
_GREEK = re.compile("GREEK (?:SMALL|CAPITAL) LETTER (?:FINAL )?([A-Z]+)")


class _ReadableTable(CharacterTable):
    """Character -> text that the English front end can read: itself, its name, a space, or "" for a lone accent."""

    def replacement(self, character: str) -> str:
        category, name = unicodedata.category(character), unicodedata.name(character, "")
        if character.isascii() or character in _READABLE_SYMBOLS:
            return " " if character in '[]{}"' else character
        if character == "İ":  # its lower case has two characters, which the front end does not expect
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


_READABLE = _ReadableTable()
_WORD = re.compile(r"[^\W\d_]+")


@lru_cache(maxsize=1024)  # a text is phonemized to check it, to bound its duration, and to render it
def phonemize(text: str) -> str:
    """Converts English text to phonemes in misaki's American English alphabet; the result is deterministic.

    The text is normalized first, so the result ends in a mark. Numbers, dates, money and abbreviations are read as
    words, Greek letters by their names; emoji and letters of other scripts are removed.

    Returns:
        A string of characters of `PHONEMES`: words separated by one space, no space before a mark.

    Raises:
        TextError: the text contains nothing that the English front end can read.

    >>> phonemize("The sun rises")
    'ðə sˈʌn ɹˈIzᵻz.'
    """
    try:
        phonemes = _clean_phonemes(_read(_to_readable(text)))
    except (IndexError, KeyError, TypeError, ValueError) as error:  # no known text leads here
        raise TextError(f"{text!r:.60} cannot be read: {error}; write it in plainer words") from error
    if not any(phone in PHONES for phone in phonemes):
        raise TextError(f"{text!r:.60} contains nothing speakable; give English text, in Latin letters or digits")
    return phonemes


def phonemize_punctuation(text: str) -> str:
    """Returns the mark that `phonemize` would write after a word for punctuation without letters, or an empty string.

    >>> phonemize_punctuation(" … "), phonemize_punctuation("?!"), phonemize_punctuation('"')
    ('.', '?', '')
    """
    return min((mark for mark in _to_readable(text) if mark in PAUSES), key=_PAUSES_BY_STRENGTH.index, default="")


def remove_unreadable(text: str) -> tuple[str, list[str]]:
    """Removes the words in which `phonemize` would leave out letters, those of other scripts.

    Returns:
        The text with a space for each of these words, and the words.

    >>> remove_unreadable("Hello мир, π is Greek.")
    ('Hello  , π is Greek.', ['мир'])
    """
    if text.isascii():
        return text, []
    removed = [word for word in _WORD.findall(text) if not _is_readable(word)]
    return _WORD.sub(lambda word: word[0] if _is_readable(word[0]) else " ", text), removed


def _is_readable(word: str) -> bool:
    return all(letter.translate(_READABLE) != " " for letter in word)


@lru_cache(maxsize=1)
def _front_end() -> "G2P":
    """Returns hibari's grapheme-to-phoneme model, without its voice; loaded lazily, because it takes a second."""
    from hibari.g2p import G2P

    return G2P(british=False)


def _read(line: str) -> str:
    """Returns the front end's phonemes of a line.

    The front end reads "King Charles" as "King the zeroth Charles": its pattern of a Roman numeral after such a word
    also matches nothing. All numerals have been read before, so the two sides of such a place are expanded separately.
    """
    from hibari.g2p.normalize import normalize as expand

    parts = _before_numerals().sub("\\1\n", line).split("\n")
    return str(_front_end()(" ".join(map(expand, parts)), normalize_text=False))


@lru_cache(maxsize=1)
def _before_numerals() -> re.Pattern[str]:
    """Returns the pattern of a word after which the front end expects a Roman numeral, before such a letter."""
    from hibari.g2p.normalize import ROMAN_CARDINAL, ROMAN_ORDINAL

    return re.compile(rf"\b({'|'.join([*ROMAN_CARDINAL, *ROMAN_ORDINAL])}) (?=[IVXLCDM])")


def _to_readable(text: str) -> str:
    """Normalizes a text to one line, without characters or runs that the front end fails on."""
    line = " ".join(normalize(text).split())
    line = " ".join(read_written_forms(line).translate(_READABLE).split())
    line = _DASH.sub(", ", _ELLIPSIS_IN_SENTENCE.sub(",", line))
    line = _LONG_NUMBER.sub(lambda number: " ".join(re.findall(r"\d", number[0])), line)
    line = _LONG_WORD.sub(lambda word: _split_run(word[0]), line)
    return _LONG_RUN.sub(lambda run: " ".join(map(_split_run, re.findall(r"[^\W_]+|[.!?,;:]$", run[0]))), line)


def _split_run(run: str) -> str:
    """Inserts a space after every 24 characters."""
    return " ".join(re.findall(".{1,24}", run))


def _clean_phonemes(phonemes: str) -> str:
    """Keeps only `PHONEMES`, one mark of each run of marks, and single spaces; ends in a mark."""
    kept = "".join(phone for phone in phonemes.translate(_RARE_PHONES) if phone in PHONEMES)
    marked = _RUN_OF_PAUSES.sub(lambda run: min(run[1].replace(" ", ""), key=_PAUSES_BY_STRENGTH.index) + " ", kept)
    cleaned = " ".join(marked.split()).lstrip(PAUSES + " ")
    return cleaned if cleaned.endswith(tuple(PAUSES)) else cleaned + "."  # the front end drops it after an initial
