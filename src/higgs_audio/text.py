"""Written text: made speakable, cut into utterances, turned into phonemes."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from higgs_audio.errors import TextError

# Typographic and full-width punctuation to what a prompt of the published model holds.
PUNCTUATION = {
    **{"，": ", ", "、": ", ", "。": ". ", "：": ": ", "；": "; ", "？": "? ", "！": "! ", "·": ". "},
    **{"（": " ", "）": " ", "(": " ", ")": " ", "【": "[", "】": "]", "《": "<", "》": ">"},
    **{"“": '"', "”": '"', "「": '"', "」": '"', "『": '"', "』": '"', "‘": "'", "’": "'"},
    **{"—": ", ", "–": "-", "…": "...", "\u00a0": " ", "\u200b": ""},
}
DEGREES = {"°F": " degrees Fahrenheit", "°C": " degrees Celsius"}
CLOSERS = (".", "!", "?", ",", ";", ":", '"', "'", "</SE>", "</SE_e>")
MAX_CHARS = 180  # of an utterance: about twelve seconds
SHORT_CHARS = 20  # a sentence below is spoken together with its neighbour

# A full stop after one of these ends no sentence.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st mt gen col capt lt sgt rev hon gov sen rep pres "
    "e.g i.e etc vs cf al approx dept est fig inc ltd co corp no vol pp ed a.m p.m".split()
)

_SPECIAL = re.compile(r"<\|[^<>|\s]{1,64}\|>|</?SE(?:_[se])?>")
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
_CLAUSE_END = re.compile(r"[,;:][\"')\]]*(?=\s)")


def contains_special(text: str) -> list[str]:
    """The special tokens typed in a text, in order: `<|...|>` and the sound-event tags `<SE>` to `</SE_e>`.

    >>> contains_special("Hello <|eot_id|>")
    ['<|eot_id|>']
    """
    return _SPECIAL.findall(text)


def check_speakable(text: str) -> str:
    """The text without outer whitespace.

    Raises:
        TextError: it is empty, has no letter or digit, or holds a special token, which is refused, never obeyed.
    """
    if not isinstance(text, str):
        raise TextError(f"the text is a {type(text).__name__}: give a string")
    if found := contains_special(text):
        raise TextError(f"the text holds the special token {found[0]!r}, which cannot be spoken: take it out")
    stripped = text.strip()
    if not stripped:
        raise TextError("the text is empty: give something to say")
    if not any(symbol.isalnum() for symbol in stripped):
        raise TextError(f"the text {stripped[:40]!r} has nothing speakable in it: give letters or digits")
    return stripped


def normalize(text: str) -> str:
    """One line of plain punctuation: typographic marks replaced, brackets dropped, whitespace collapsed, and a full
    stop at the end where nothing closes the text, because a model trained on sentences waits for one.

    Numbers and abbreviations stay: whoever turns text into phonemes reads them.
    """
    for written, spoken in DEGREES.items():
        text = text.replace(written, spoken)
    text = " ".join("".join(PUNCTUATION.get(symbol, symbol) for symbol in text).split())
    text = re.sub(r"\s+([,.;:?!])", r"\1", text)
    return text if not text or text.endswith(CLOSERS) else f"{text}."


def split_utterances(text: str, max_chars: int = MAX_CHARS) -> list[str]:
    """A text of any length as utterances to be spoken one by one.

    Cuts at paragraphs, then sentences, then clauses, then words; never inside a word unless the word alone is longer
    than `max_chars`. Very short sentences are joined with their neighbour. No word is lost.

    >>> split_utterances("Dr. Who arrived at 3.14. He left.", 25)
    ['Dr. Who arrived at 3.14.', 'He left.']
    """
    pieces = []
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        if any(symbol.isalnum() for symbol in line):
            parts = [part for sentence in _sentences(line) for part in _fit(sentence, max_chars)]
            pieces += _join_short(parts, max_chars)
    return pieces


def _sentences(line: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCE_END.finditer(line):
        if not _is_abbreviation(line, match):
            yield line[start : match.end()].strip()
            start = match.end()
    if line[start:].strip():
        yield line[start:].strip()


def _is_abbreviation(line: str, match: re.Match[str]) -> bool:
    """Whether a full stop belongs to a title, an initial, or a word that a small letter follows."""
    if match[0][0] != ".":
        return False
    word = line[: match.start()].rsplit(" ", 1)[-1].strip("\"'([")
    following = line[match.end() :].lstrip()
    initial = len(word) == 1 and word.isupper() and word != "I"
    return word.lower() in ABBREVIATIONS and bool(following) or initial or following[:1].islower()


def _fit(sentence: str, max_chars: int) -> Iterator[str]:
    """A sentence in pieces of at most `max_chars`: cut after the last clause that fits, else the last word."""
    while len(sentence) > max_chars:
        window = sentence[: max_chars + 1]
        clauses = [m.end() for m in _CLAUSE_END.finditer(window) if m.end() >= max_chars // 4]
        space = window.rfind(" ")
        cut = clauses[-1] if clauses else space if space > 0 else max_chars
        yield sentence[:cut].strip()
        sentence = sentence[cut:].strip()
    if sentence:
        yield sentence


def _join_short(parts: list[str], max_chars: int) -> list[str]:
    """Joins a part that is very short with the one before it, where both fit."""
    joined: list[str] = []
    for part in parts:
        short = joined and min(len(part), len(joined[-1])) < SHORT_CHARS
        if short and len(joined[-1]) + 1 + len(part) <= max_chars:
            joined[-1] = f"{joined[-1]} {part}"
        else:
            joined.append(part)
    return joined


def phonemize(text: str) -> str:
    """English text as one string of phonemes and punctuation, numbers and abbreviations read out.

    The alphabet is that of the `misaki` family (one character a phoneme, diphthongs and affricates as capitals or
    ligatures, stress before the vowel). Works offline.

    Raises:
        TextError: nothing in the text can be spoken in English.

    >>> phonemize("The sun rises.")
    'ðə sˈʌn ɹˈIzᵻz.'
    """
    spoken = _phonemize(_latin(normalize(text)))
    if not any(symbol.isalpha() for symbol in spoken):
        raise TextError(f"{text[:40]!r} has nothing that can be spoken in English: give English words or figures")
    return spoken


@lru_cache(maxsize=50_000)
def _phonemize(text: str) -> str:
    return " ".join(_front_end()(text).split())


@lru_cache(maxsize=1)
def _front_end() -> Any:
    """Dictionary, tagger and letter-to-sound model of hibari-tts; its voice is not loaded."""
    from hibari.g2p import G2P

    return G2P(british=False)


def _latin(text: str) -> str:
    """Accents dropped, and whatever is then not printable ASCII: emoji, other scripts."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(symbol if " " <= symbol <= "~" else "" for symbol in decomposed)
