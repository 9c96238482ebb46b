"""Roman numerals in English text."""

import re

from higgs_audio.text.english import NUMBERED, REGNAL_NAMES

__all__ = ["read_roman_numerals", "roman_value"]

_NUMERAL = r"(?=[IVXLCDM])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?!\w|['’]\w)"
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_NUMBER = re.compile(rf"\b({'|'.join(NUMBERED)}) ({_NUMERAL})")
_ORDINAL = re.compile(rf"\b({'|'.join(REGNAL_NAMES)}) ({_NUMERAL})")
_AFTER_REGNAL = re.compile(r"\W*$|[,.;:!?)]|['’]s\b| (?:of|was|is|had|became|died|ruled|reigned|in|and the|who|at)\b")
_HIGHEST_SINGLE = 10  # I, V and X may stand alone; L, C, D and M are letters
_LETTERS = "LCDMX"  # after a name: Malcolm X
_INITIAL = re.compile(r"\. [A-Z]")  # Karl V. Smith


def roman_value(numeral: str) -> int:
    """Returns the value of a valid Roman numeral in capitals.

    >>> roman_value("XLII")
    42
    """
    values = [_VALUES[letter] for letter in numeral]
    signs = [-1 if value < following else 1 for value, following in zip(values, [*values[1:], 0], strict=True)]
    return sum(sign * value for sign, value in zip(signs, values, strict=True))


def read_roman_numerals(text: str) -> str:
    """Replaces Roman numerals by digits where a number must follow: after "Chapter", and as ordinals after a monarch.

    >>> read_roman_numerals("Louis XIV read chapter IV.")
    'Louis the 14th read chapter 4.'
    """
    text = _ORDINAL.sub(_ordinal, text)
    return _NUMBER.sub(_number, text)


def _number(match: re.Match[str]) -> str:
    value = roman_value(match[2])
    return match[0] if len(match[2]) == 1 and value > _HIGHEST_SINGLE else f"{match[1]} {value}"


def _ordinal(match: re.Match[str]) -> str:
    """A lone "I" is an ordinal only where no pronoun can be meant: "Elizabeth I was", but not "as Elizabeth I know"."""
    numeral, after = match[2], match.string[match.end() :]
    if len(numeral) == 1 and (numeral in _LETTERS or (numeral == "I" and not _AFTER_REGNAL.match(after))):
        return match[0]
    if len(numeral) == 1 and _INITIAL.match(after):
        return match[0]
    value = roman_value(numeral)
    suffix = "th" if value % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{match[1]} the {value}{suffix}"
