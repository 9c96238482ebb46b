"""Written English forms that the English front end misreads, replaced by words or by forms that it reads.

Every rule is a pattern and a function of its match; `read_written_forms` applies them in order. What a rule leaves, the
front end reads: plain numbers, dates, times, titles, most units.
"""

import re
from collections.abc import Callable

from higgs_audio.text.addresses import read_addresses
from higgs_audio.text.english import (
    ABBREVIATIONS,
    COUNTRY_DOLLARS,
    CURRENCIES,
    CURRENCY_CODES,
    DENOMINATORS,
    DIGITS,
    HOMOGRAPHS,
    MONTHS,
    PER,
    POWERS,
    SCALES,
    SIGNS,
    SPACED_UNITS,
    UNITS,
    WEEKDAYS,
)
from higgs_audio.text.roman import read_roman_numerals

__all__ = ["read_written_forms"]

_Match = re.Match[str]
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_START = r"(?<![\w.,$€£¥-])"  # no digit, letter or joining mark before
_END = r"(?![\w$€£¥-]|[.,:/]\w)"  # none after; a full stop at the end of a sentence may follow
_FROM = r"(?<![\w.,:/$€£¥-])"


def _alternatives(words: object) -> str:
    return "|".join(re.escape(word) for word in sorted(map(str, words), key=len, reverse=True))  # type: ignore[call-overload]


_CURRENCY = f"[{''.join(CURRENCIES)}]"
_SCALE = rf"(?:\s?((?i:{_alternatives(SCALES)}))\b)?"
_PER = rf"(?:\s?/\s?({_alternatives(PER)})\b)?"
_UNIT = _alternatives(unit for unit in UNITS if unit not in SPACED_UNITS)


def read_written_forms(text: str) -> str:
    """Replaces the written forms in a line of English text.

    >>> read_written_forms("Call 555-0199 about rooms 10-12 at $60/yr.")
    'Call five five five, zero one nine nine about rooms 10 to 12 at 60 dollars per year.'
    """
    text = read_addresses(text)
    text = read_roman_numerals(text)
    for pattern, function in _RULES:
        text = pattern.sub(function, text)
    return text


def _spell_digits(digits: str) -> str:
    """Returns the words of digits, one by one; other characters are left out."""
    return " ".join(DIGITS[int(digit)] for digit in digits if digit.isdigit())


def _groups(number: str) -> str:
    """Reads a telephone number: the digits of each group, with a pause between groups."""
    spoken = ", ".join(_group(group) for group in re.findall(r"\d+", number))
    return f"plus {spoken}" if number.startswith("+") else spoken


def _group(digits: str) -> str:
    return "eight hundred" if digits == "800" else _spell_digits(digits)


def _money(match: _Match) -> str:
    sign, country, symbol, amount, scale, per = match.groups()
    singular, plural, cent, cents = CURRENCIES[symbol]
    words = _amount(amount, scale, (singular, plural), (cent, cents))
    if country:
        words = words.replace(singular, f"{COUNTRY_DOLLARS[country]} {singular}")
    return f"{_minus(sign)}{words}" + (f" per {PER[per]}" if per else "")


def _amount(amount: str, scale: str | None, unit: tuple[str, str], hundredth: tuple[str, str]) -> str:
    """Reads an amount: "3.50" as "3 dollars and 50 cents", "2.5" with a scale as "2.5 million dollars"."""
    if scale:
        return f"{amount} {SCALES[scale.lower()]} {unit[1]}"
    whole, _, part = amount.replace(",", "").partition(".")
    whole = f"{int(whole):,}"  # without commas, 3400 would be read like a year
    if len(part) != 2:
        return f"{whole}{'.' + part if part else ''} {unit[whole + part != '1']}"
    small = f"{int(part)} {hundredth[int(part) != 1]}"
    if whole == "0":
        return small
    large = f"{whole} {unit[whole != '1']}"
    return f"{large} and {small}" if int(part) else large


def _money_range(match: _Match) -> str:
    symbol, low, high, scale = match.groups()
    scaled = f" {SCALES[scale.lower()]}" if scale else ""
    return f"{low} to {high}{scaled} {CURRENCIES[symbol][1]}"


def _code_amount(match: _Match) -> str:
    before, amount, scale, after = match.groups()
    scaled = f" {SCALES[scale.lower()]}" if scale else ""
    return f"{amount}{scaled} {CURRENCY_CODES[before or after]}"


def _range(match: _Match) -> str:
    low, high = match[1], match[2]
    if len(low) == 4 and len(high) == 2:  # years: 1939-45
        return f"{low} to {int(high)}" if high[0] != "0" else f"{low} to oh {int(high)}"
    return f"{low} to {high}"


def _fraction(match: _Match) -> str:
    whole, top, bottom, unit = match[1], int(match[2]), int(match[3]), match[4]
    if not 0 < top < bottom or bottom not in DENOMINATORS:
        return match[0]
    if bottom == 100 and not whole:
        return f"{top} out of 100"
    count = ("a" if whole else "one") if bottom == 2 else str(top)
    part = f"{count} {DENOMINATORS[bottom]}{'s' if top > 1 else ''}"
    name = "" if unit is None else f" {UNITS[unit][bool(whole)]}"
    return f"{whole} and {part}{name}" if whole else part + name


_VULGAR_FRACTIONS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
}


def _vulgar_fraction(match: _Match) -> str:
    return f"{match[1] + ' ' if match[1] else ''}{_VULGAR_FRACTIONS[match[2]]}"


def _ratio(match: _Match) -> str:
    """A verse after the name of a book is no ratio: "Proverbs 26:5"."""
    is_verse = re.search(r"\b[A-Z][a-z]+,? $", match.string[: match.start()])
    return f"{match[1]} {match[2]}" if is_verse else f"{match[1]} to {match[2]}"


def _unit(match: _Match) -> str:
    number, power, unit, power_after, per = match.groups()
    name = UNITS[unit][number.replace(",", "") not in ("1", "1.0")]
    words = f"{number} {POWERS[power or power_after] + ' ' if power or power_after else ''}{name}"
    return words + (f" per {PER[per]}" if per else "")


def _feet(match: _Match) -> str:
    feet, inches = match[1], match[2]
    return f"{feet} foot {inches}" if inches else f"{feet} feet"


def _inches(match: _Match) -> str:
    """A quote that closes an earlier one is no inch mark."""
    if match.string.count('"', 0, match.end() - 1) % 2:
        return match[0]
    return f"{match[1]} {'inch' if match[1] == '1' else 'inches'}"


def _version(match: _Match) -> str:
    parts = match[0].split(".")
    if len(parts) == 4 and max(map(len, parts)) == 3:  # an IP address
        return " dot ".join(map(_spell_digits, parts))
    return " point ".join(parts)


def _grouped(match: _Match) -> str:
    """Joins the groups of a number written with spaces, as in "10 000", but not those of a list of numbers."""
    groups = match[0].split()
    return "".join(groups) if len(groups[0]) < 3 or groups[-1] == "000" else match[0]


def _to(words: dict[str, str]) -> Callable[[_Match], str]:
    return lambda match: f"{words.get(match[1], match[1])} to {words.get(match[2], match[2])}"


def _hour(time: str) -> str:
    """Returns a clock time without the minutes of a full hour."""
    return time.removesuffix(":00")


def _minus(sign: str | None) -> str:
    return "minus " if sign else ""


def _drive(match: _Match) -> str:
    """Reads "Dr." after a name and before no other: a street. It keeps the full stop at the end of the text."""
    return " Drive." if match.end() == len(match.string) else " Drive"


def _abbreviation(match: _Match) -> str:
    """Keeps the full stop of an abbreviation that ends the text."""
    is_last = not match.string[match.end() :].strip("\"') ")
    return ABBREVIATIONS[match[1]] + ("." if is_last and match[1].endswith(".") else "")


def _constant(words: str) -> Callable[[_Match], str]:
    return lambda match: match.expand(words)


_Rule = tuple[re.Pattern[str], Callable[[_Match], str]]
_DAY = rf"({_alternatives(WEEKDAYS)})\.?"
_MONTH = rf"({_alternatives(MONTHS)})\.?"
_PHONE = r"(?:\+?\d{1,2}[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])?\d{3}[.-]\d{4}"

_DIALED = re.compile(r"\b((?:[Cc]all|[Dd]ial|[Rr]ing|[Pp]hone|[Ll]ine) )(\d{3})(?![\w-]|[.,:]\d)")
_POSTAL = re.compile(r"\b((?:ZIP|[Zz]ip)(?: code)?:? )(\d{5})\b")
_RATE = re.compile(
    rf"{_START}(-?{_NUMBER})\s?(?:(sq|cu)\.? )?({_UNIT}|(?<=\s)(?:{_alternatives(SPACED_UNITS)}))([²³23])?"
    rf"(?:/({_alternatives(PER)}))?(?![\w²³'’/-]|\.\w)"
)
_SHAPE = r"(?=[ -](?:screen|ratio|display|aspect|video|format|crop|image))"
_CLOCK = r"\d{1,2}:\d{2}"
_CLOCK_RANGE = re.compile(rf"(?<![\w:])({_CLOCK})\s?-\s?({_CLOCK})(\s?[ap]\.?m\b)?(?![\w:])")
_HALF_DAY = r"\d{1,2}(?::\d{2})?\s?[ap]\.?m"
_TIMES = r"(?= (?:a|per|daily|weekly|monthly|yearly|faster|slower|more|larger|bigger|better)\b)"

_RULES: tuple[_Rule, ...] = (
    # Numbers to be dialed, and codes.
    (re.compile(rf"(?<![\w.,/$€£-]){_PHONE}(?![\w/-]|[.,]\d)"), lambda m: _groups(m[0])),
    (re.compile(r"\+\d{1,3}(?:[ -]\(?\d{2,4}\)?){2,5}(?![\w-]|[.,]\d)"), lambda m: _groups(m[0])),
    (_DIALED, lambda m: m[1] + _spell_digits(m[2])),
    (re.compile(r"(?<![\w.,-])\d{1,3}(?: \d{3})+(?![\w-]|[.,]\d| \d)"), _grouped),
    (re.compile(rf"{_FROM}0\d+{_END}(?! ?[%°])"), lambda m: _spell_digits(m[0])),
    (_POSTAL, lambda m: m[1] + _spell_digits(m[2])),
    (re.compile(r"(?<![\w.,])\d+(?:\.\d+){2,}(?![\w]|\.\d)"), _version),
    (re.compile(r"(?<![\w.)])(-?)\.(\d+)\b(?!\.\d)"), lambda m: f"{_minus(m[1])}point {_spell_digits(m[2])}"),
    # Money.
    (re.compile(rf"({_CURRENCY})(\d+),(\d{{2}})(?![\d,])"), lambda m: f"{m[1]}{m[2]}.{m[3]}"),
    (re.compile(rf"(?<!\w)({_CURRENCY})({_NUMBER})\s?-\s?(?:{_CURRENCY})?({_NUMBER}){_SCALE}"), _money_range),
    (
        re.compile(rf"(?<![\w$€£])(-)?({_alternatives(COUNTRY_DOLLARS)})?({_CURRENCY})({_NUMBER}){_SCALE}{_PER}"),
        _money,
    ),
    (re.compile(rf"\b(?:({_alternatives(CURRENCY_CODES)})\s?)({_NUMBER}){_SCALE}()"), _code_amount),
    (re.compile(rf"{_START}()({_NUMBER}){_SCALE}\s?({_alternatives(CURRENCY_CODES)})\b"), _code_amount),
    # Fractions and ratios.
    (re.compile(rf"(?:(?<![\w.,])(\d+) ?)?([{''.join(_VULGAR_FRACTIONS)}])"), _vulgar_fraction),
    (re.compile(r"\b(24/7|50/50|9/11|20/20)\b"), lambda m: m[1].replace("/", " ")),
    (re.compile(rf"{_FROM}({_NUMBER})/(100|10|5)(?= (?:stars?|points?)\b)"), lambda m: f"{m[1]} out of {m[2]}"),
    (re.compile(rf"(?<![\w/])(\d+\.\d+)/(\d+){_END}"), lambda m: f"{m[1]} out of {m[2]}"),
    (re.compile(rf"{_FROM}(?:(\d+) )?(\d{{1,2}})/(\d{{1,3}}){_END}(?: ({_UNIT})\b)?"), _fraction),
    (re.compile(rf"(?<![\w.,:])(\d{{1,3}}):(\d){_END}"), _ratio),
    (re.compile(rf"\b(16|21|4|3|1):(9|3|2|10|1)\b{_SHAPE}"), lambda m: f"{m[1]} by {m[2]}"),
    # Lengths in feet and inches; units.
    (re.compile(r"(?<![\w.])(\d+)' ?(\d{1,2}(?:\.\d+)?)(?:\"|''|(?= tall|\b))"), _feet),
    (re.compile(r"(?<![\w.])(\d{1,2}(?:\.\d+)?)\"(?!\w)"), _inches),
    (_RATE, _unit),
    (
        re.compile(rf"{_START}({_NUMBER}) in(?= (?:tall|wide|long|high|deep|thick|across)\b)"),
        lambda m: f"{m[1]} inches",
    ),
    (re.compile(r"\b(\w)²"), lambda m: f"{m[1]} squared"),
    (re.compile(r"\b(\w)³"), lambda m: f"{m[1]} cubed"),
    # Ranges.
    (re.compile(rf"{_DAY}\s?-\s?{_DAY}(?![\w-])"), _to(WEEKDAYS)),
    (re.compile(rf"\b{_MONTH}\s?-\s?{_MONTH}(?![\w-])"), _to(MONTHS)),
    (_CLOCK_RANGE, lambda m: f"{_hour(m[1])} to {m[2] + m[3] if m[3] else _hour(m[2])}"),
    (re.compile(rf"(?<![\w:.-])({_HALF_DAY}\.?)\s?-\s?({_HALF_DAY}\b)"), lambda m: f"{m[1]} to {m[2]}"),
    (
        re.compile(r"(?<![\w.,:/-])(\d{1,4}(?:\.\d+)?)\s?-\s?(\d{1,4}(?:\.\d+)?)(?=-[a-z]|(?![\w-]|[.,:/]\w))"),
        _range,
    ),
    # Signs and abbreviations.
    (re.compile(r"\b([CF])#(?!\w)"), lambda m: f"{m[1]} sharp"),
    (re.compile(rf"[{''.join(SIGNS)}]"), lambda m: f" {SIGNS[m[0]]} "),
    (re.compile(r"(?<=\d) ?\* ?(?=\d)"), lambda m: " times "),
    (re.compile(rf"(?<=\d)x\b{_TIMES}"), lambda m: " times"),
    (re.compile(r"(?<![\w.])([1-9]\d*) ?x ?(?=\d)"), lambda m: f"{m[1]} by "),
    (re.compile(r"\b([Pp])\. ?(?=\d)"), lambda m: f"{m[1]}age "),
    (re.compile(r"(?<=[a-z]) Dr\.(?=$|[,;:!?]| [a-z\d(])"), _drive),
    (re.compile(rf"(?<!\d )(?<![\w.])({_alternatives(ABBREVIATIONS)})(?!\w)"), _abbreviation),
    (re.compile(r"\b([A-Z])(\d)(?=[A-Z]\b)"), lambda m: f"{m[1]} {m[2]} "),
    *((re.compile(pattern), _constant(words)) for pattern, words in HOMOGRAPHS.items()),
)
