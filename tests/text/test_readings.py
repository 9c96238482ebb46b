"""Tests of how written English is read: the list of readings, and the rules behind it."""

import time
from pathlib import Path

import pytest
from readings import is_right, load_readings, sounds

from higgs_audio.text import phonemize, split_utterances
from higgs_audio.text.addresses import read_addresses
from higgs_audio.text.roman import read_roman_numerals, roman_value
from higgs_audio.text.written_forms import read_written_forms

READINGS = load_readings()
# Texts of the list whose reading is still wrong, or whose reading the front end does not reach by any spelling.
MISREAD = {
    "A café in Zürich.",
    "From A → B.",
    "He plays the bass guitar.",
    "O'Brien won.",
    "The jalapeño is hot.",
}
FORTUNES = Path("/usr/share/games/fortunes")


def test_at_least_97_percent_of_400_written_texts_are_read_as_in_the_list():
    assert len(READINGS) >= 400
    for part in (READINGS, [reading for reading in READINGS if reading.is_held_out]):
        assert sum(map(is_right, part)) >= 0.97 * len(part)


def test_readings_are_compared_by_their_sounds():
    assert sounds("It costs $5.") == sounds("It costs five dollars.") != sounds("It costs six dollars.")


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.written)
def test_a_text_that_is_read_right_stays_right(reading):
    assert is_right(reading) is (reading.written not in MISREAD), phonemize(reading.written)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("King Charles met Queen Victoria.", "king charles met queen victoria."),
        ("Chapter Introduction, James Cameron, Henry Clay", "chapter introduction, james cameron, henry clay"),
        ("Part IBM and Volume Control", "part IBM and volume control"),
        ("Karl V. Karlstrom wrote.", "Karl V. Karlstrom wrote."),
    ],
)
def test_a_name_that_begins_like_a_roman_numeral_is_no_number(written, words):
    assert sounds(written) == sounds(words)
    assert "zˈɪɹO" not in phonemize(written)


@pytest.mark.skipif(not FORTUNES.exists(), reason="needs Debian's fortunes")
@pytest.mark.slow
def test_no_zero_is_said_that_5000_fortunes_do_not_have():
    files = [path for path in sorted(FORTUNES.iterdir()) if path.suffix not in (".dat", ".u8")]
    fortunes = [text for path in files for text in path.read_text(encoding="utf-8").split("\n%\n")][:5000]
    assert len(fortunes) == 5000
    without = (part for text in fortunes for part in split_utterances(text) if not _has_zero(part))
    assert [part for part in without if "zˈɪɹO" in phonemize(part) or "zˌɪɹO" in phonemize(part)] == []


def _has_zero(text):
    return "0" in text or any(word in text.lower() for word in ("zero", "xerox", "xero"))


def test_every_valid_roman_numeral_below_4000_has_its_value():
    ones, tens = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"), str.maketrans("IVX", "XLC")
    hundreds = str.maketrans("IVX", "CDM")
    for number in range(1, 4000):
        digits = [number // 1000, number // 100 % 10, number // 10 % 10, number % 10]
        numeral = (
            "M" * digits[0] + ones[digits[1]].translate(hundreds) + ones[digits[2]].translate(tens) + ones[digits[3]]
        )
        assert roman_value(numeral) == number
    assert read_roman_numerals("Chapter MCMXC, chapter L, Part II.") == "Chapter 1990, chapter L, Part 2."


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("joe@example.org", "joe at example dot org"),
        (
            "http://a.example.com:8080/x-y_z?q=1",
            "a dot example dot com colon 8080 slash x dash y underscore z question mark q equals 1",
        ),
        ("The end.In the beginning", "The end.In the beginning"),
        ("e.g. this", "e.g. this"),
        ("U.S.A.", "U.S.A."),
        ("main.py and notes.txt", "main dot P Y and notes dot text"),
    ],
)
def test_addresses_are_read_with_their_marks_and_nothing_else_is_taken_for_one(written, spoken):
    assert read_addresses(written) == spoken


@pytest.mark.parametrize(
    "piece", ["1", "1.", "1/", "1:", "a.", "www.", "I ", "1-", "$1", '"', "1' ", "1 000 ", "(", "a@"]
)
def test_the_time_to_read_written_forms_grows_no_faster_than_the_text(piece):
    def seconds(length):
        text = piece * (length // len(piece))
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            read_written_forms(text)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(80_000) < 6 * seconds(20_000) + 0.05
