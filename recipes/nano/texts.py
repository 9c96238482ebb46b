"""Draws the texts of nano's training clips: sentences, questions, several sentences, single words, names and numbers.

The sentences are those of `sentences.py`. Each text depends only on its number, so that every run draws the same texts.
Numbers are written as words, because text front ends differ in how they read digits.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
PERSON, PLACE = "18", "15"  # lexicographer files of WordNet's nouns
MAX_CHARACTERS = 330  # of several sentences: at most about 25 seconds

KINDS = {  # kind of text -> share of the clips
    "sentence": 0.40,
    "question": 0.09,
    "exclamation": 0.05,
    "two": 0.13,
    "three": 0.09,
    "word": 0.06,
    "two words": 0.03,
    "phrase": 0.04,
    "fact": 0.11,
}
PHRASES = [
    "Hi",
    "Hello",
    "Hey",
    "Yes",
    "No",
    "Okay",
    "Sure",
    "Thanks",
    "Thank you",
    "Please",
    "Sorry",
    "Stop",
    "Wait",
    "Go on",
    "Come in",
    "Help",
    "Listen",
    "Look",
    "Really",
    "Never",
    "Always",
    "Maybe",
    "Perhaps",
    "Of course",
    "Not yet",
    "Not now",
    "Right now",
    "All right",
    "Good morning",
    "Good night",
    "Good evening",
    "Goodbye",
    "See you",
    "Well done",
    "Welcome",
    "Exactly",
    "Indeed",
    "Enough",
    "Nothing",
    "Nobody",
    "Everybody",
    "Later",
    "Soon",
    "Today",
    "Tomorrow",
    "Yesterday",
    "Again",
    "Once more",
    "Next",
    "Last",
    "First",
    "Ready",
    "Done",
    "Quiet",
    "Louder",
    "The end",
    "Chapter {n}",
    "Number {n}",
    "Page {n}",
    "Part {n}",
    "{letter}",
    "{letter}, {letter}",
    "{letter} {n}",
    "{n}",
    "{n}",
    "{year}",
    "{month}",
    "{day}",
    "{day} {month}",
    "{name}",
    "{place}",
    "Mister {name}",
    "Doctor {name}",
]
FACTS = (
    "{name} was born in {place} in {year}.",
    "{name} and {name} met in {place} on the {nth} of {month}.",
    "The train to {place} leaves at {clock} from platform {n}.",
    "It is {n} miles from {place} to {place}.",
    "Call me at {digits}, or ask for {name}.",
    "She paid {money} for {n} tickets to {place}.",
    "In {year}, {n} people lived in {place}.",
    "The answer is {n} point {n}, not {n}.",
    "Did {name} really come from {place}?",
    "{name}, this is {name}; we met on {day}.",
    "On {day}, the {nth} of {month}, the shop opens at {clock}.",
    "Room {n} is on the {nth} floor.",
    "The flight from {place} lands at {clock}.",
    "{name} won by {n} to {n}.",
    "About {n} percent of it went to {place}.",
    "My name is {name}, and I live in {place}.",
    "Doctor {name} will see you at {clock} on {day}.",
    "They sold {n} thousand copies in {year}.",
    "The code is {letter}, {letter}, {digit}, {digit}, {letter}.",
    "It costs {money}, or {money} with breakfast.",
    "{place} lies {n} kilometers north of {place}.",
    "Professor {name} left {place} for {place} in {year}.",
    "Turn to page {n}, and read the {nth} line.",
    "The temperature fell to minus {n} degrees in {place}.",
)
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
    "twentieth",
]


@dataclass(frozen=True)
class Texts:
    """Draws texts from `sentences`, and names and places from WordNet."""

    sentences: Sequence[str]

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """Draws a kind of text, and a text of this kind."""
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        return kind, getattr(self, f"_{kind.replace(' ', '_')}")(rng)

    def _sentence(self, rng: random.Random) -> str:
        return rng.choice(self.sentences)

    def _question(self, rng: random.Random) -> str:
        return rng.choice(self._questions)

    def _exclamation(self, rng: random.Random) -> str:
        return rng.choice(self._exclamations)

    def _two(self, rng: random.Random) -> str:
        return self._several(rng, 2)

    def _three(self, rng: random.Random) -> str:
        return self._several(rng, rng.choice((3, 4, 5)))

    def _several(self, rng: random.Random, count: int) -> str:
        drawn = [rng.choice(self.sentences) for _ in range(count)]
        while len(drawn) > 1 and sum(map(len, drawn)) > MAX_CHARACTERS:
            drawn.pop()
        return " ".join(drawn)

    def _word(self, rng: random.Random) -> str:
        return rng.choice(self._words).capitalize() + rng.choice(".... !?".replace(" ", ""))

    def _two_words(self, rng: random.Random) -> str:
        return f"{rng.choice(self._words).capitalize()} {rng.choice(self._words)}" + rng.choice("..!?")

    def _phrase(self, rng: random.Random) -> str:
        text = self._fill(rng.choice(PHRASES), rng)
        return text[0].upper() + text[1:] + rng.choice(".... !?".replace(" ", ""))

    def _fact(self, rng: random.Random) -> str:
        return self._fill(rng.choice(FACTS), rng)

    def _fill(self, pattern: str, rng: random.Random) -> str:
        text = re.sub(r"\{(\w+)\}", lambda match: self._value(match[1], rng), pattern)
        return text[0].upper() + text[1:]

    def _value(self, kind: str, rng: random.Random) -> str:
        match kind:
            case "name":
                return rng.choice(self._people)
            case "place":
                return rng.choice(self._places)
            case "n":
                return number(rng.choice((rng.randrange(20), rng.randrange(100), rng.randrange(1000))))
            case "nth":
                return rng.choice(ORDINALS)
            case "year":
                return f"{number(rng.randrange(11, 20))} {number(rng.randrange(11, 100))}"
            case "clock":
                return (
                    f"{number(rng.randrange(1, 13))} {rng.choice(('thirty', 'fifteen', 'forty-five', 'twenty', 'ten'))}"
                )
            case "money":
                return f"{number(rng.randrange(2, 900))} {rng.choice(('dollars', 'pounds', 'euros'))}"
            case "digit":
                return number(rng.randrange(10))
            case "digits":
                return ", ".join(" ".join(number(rng.randrange(10)) for _ in range(3)) for _ in range(2))
            case "letter":
                return rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
            case "month":
                return rng.choice(MONTHS)
            case "day":
                return rng.choice(DAYS)
        raise KeyError(kind)

    @cached_property
    def _questions(self) -> list[str]:
        return [text for text in self.sentences if text.endswith("?")]

    @cached_property
    def _exclamations(self) -> list[str]:
        return [text for text in self.sentences if text.endswith("!")]

    @cached_property
    def _words(self) -> list[str]:
        return sorted({word for text in self.sentences for word in re.findall(r"[a-z]{2,}", text)})

    @cached_property
    def _people(self) -> list[str]:
        return wordnet_names(PERSON)

    @cached_property
    def _places(self) -> list[str]:
        return wordnet_names(PLACE)


def wordnet_names(file: str) -> list[str]:
    """Returns the proper nouns of one or two words in a lexicographer file of WordNet."""
    found = set()
    for line in (WORDNET / "data.noun").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[1] == file:
            name = fields[4].replace("_", " ")
            if re.fullmatch(r"[A-Z][a-z]{2,}( [A-Z][a-z]{2,})?", name):
                found.add(name)
    return sorted(found)


def number(value: int) -> str:
    """Returns a number from 0 to 999 in words."""
    if value < 20:
        return UNITS[value]
    if value < 100:
        return TENS[value // 10 - 2] + (f"-{UNITS[value % 10]}" if value % 10 else "")
    return f"{UNITS[value // 100]} hundred" + (f" and {number(value % 100)}" if value % 100 else "")
