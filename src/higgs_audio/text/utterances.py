"""Long text into utterances: pieces that are spoken in one generation each."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from higgs_audio.errors import OptionError
from higgs_audio.text.written import is_speakable

if TYPE_CHECKING:
    pass

MAX_CHARS = 180  # of an utterance: some twelve seconds of speech
SHORT_CHARS = 30  # a sentence below this is spoken together with its neighbour


# Utterances.

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and ideographs: no spaces between words
_WIDE_MARKS = "，、；：。！？…」』）》"
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile(rf"(?<![.!?…])[.!?…]+[\"'”’»)\]]*\s+|[。！？][。！？…]*[\"'”’」』）》]*\s*|(?<!…)…+(?=[{_CJK}])")
_CLAUSE = re.compile(r"[,;:–—-][\"'”’»)\]]*\s+|[，、；：]\s*")
_WORD = re.compile(rf"\s+|(?<=[{_CJK}{_WIDE_MARKS}])(?=[{_CJK}])")
_NEXT = re.compile(r"[\"'“‘«(\[¿¡-]*\s*(\w+)")
_NO_WORD = re.compile(r"[^\w.&'’-]")
_IDEOGRAPH = re.compile(f"[{_CJK}]")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# What a full stop follows without ending the sentence.
_TITLES = _words(
    "adm approx atty capt cf cmdr col cpl dr ed eds e.g eg fr ft gen gov hon i.e ie lt maj messrs mlle mme mr mrs "
    "ms msgr mt pres prof pvt rep rev sen sgt st supt viz vs"
)
# What one follows that ends it only where a word comes that usually opens a sentence.
_ABBREVIATIONS = _words(
    "al apt aug ave bldg blvd bros co corp dec dept est etc feb govt inc jan jr jul jun ltd mar nov oct ph.d rd "
    "sep sept sr ste univ"
)
_OPENERS = _words(
    "a an and as at but by for he her his how however i if in it its my no nor not now of on or our she so that "
    "the their then there these they this those to was we what when where which while who why with yes yet you "
    "your"
)
# What one follows that belongs to the number behind it.
_NUMBERED = _words("art ch chap eq fig figs no nos p pp sec vol")


def split_utterances(text: str, max_chars: int = MAX_CHARS) -> list[str]:
    """Long text -> pieces to be spoken one after the other, every word in one of them, in order.

    Cut at blank lines and at the ends of sentences; a very short sentence stays with its neighbour, and one longer
    than `max_chars` is halved, at a clause near its middle or else between words. A single word that is longer stays
    whole. Line breaks and runs of spaces become one space; paragraphs without a letter or digit are left out.

    Args:
        text: as it was written, before `normalize`, which drops the blank lines.
        max_chars: at least 1. An ideograph or kana, which takes longer to say, counts as three.

    Raises:
        OptionError: max_chars below 1.
    """
    if max_chars < 1:
        raise OptionError(f"max_chars is {max_chars}; give 1 or more, {MAX_CHARS} is usual")
    paragraphs = (" ".join(paragraph.split()) for paragraph in _PARAGRAPH.split("\n".join(text.splitlines())))
    return [piece for paragraph in paragraphs for piece in _split_paragraph(paragraph, max_chars)]


def _split_paragraph(paragraph: str, max_chars: int) -> list[str]:
    cuts = [0, *_sentence_ends(paragraph), len(paragraph)]
    sentences = _join_short([paragraph[start:end] for start, end in pairwise(cuts)], max_chars)
    pieces = [piece.strip() for sentence in sentences for piece in _halve(sentence, max_chars)]
    return [piece for piece in pieces if is_speakable(piece)]


def _sentence_ends(paragraph: str) -> Iterator[int]:
    """Where each sentence but the first begins."""
    for mark in _SENTENCE.finditer(paragraph):
        if mark.end() < len(paragraph) and _ends_sentence(paragraph, mark):
            yield mark.end()


def _ends_sentence(paragraph: str, mark: re.Match[str]) -> bool:
    marks = mark[0].rstrip()
    following = _NEXT.match(paragraph, mark.end())
    if marks[0] in "。！？" or marks == mark[0]:  # in a script without spaces
        return True
    if not following or following[1][0].islower():
        return False
    if marks != ".":
        return True
    before = paragraph[max(0, mark.start() - 40) : mark.start()]  # no abbreviation is longer
    return _ends_with(_NO_WORD.split(before)[-1], following[1])


def _ends_with(word: str, following: str) -> bool:
    """Whether a full stop between two words ends a sentence, given that the second is no small letter's."""
    small = word.lower().lstrip("'’-")
    if small in _TITLES or (len(word) == 1 and word.isupper() and word != "I"):
        return False
    if small in _NUMBERED:
        return not following[0].isdigit()
    if small in ("a.m", "p.m"):
        return True
    if small in _ABBREVIATIONS or re.fullmatch(r"(?:\w\.)+\w", word):
        return following.lower() in _OPENERS
    return bool(word)


def _join_short(sentences: list[str], max_chars: int) -> list[str]:
    joined: list[str] = []
    for sentence in sentences:
        short = joined and min(_length(joined[-1]), _length(sentence)) < SHORT_CHARS
        if short and _length(joined[-1] + sentence) <= max_chars:
            joined[-1] += sentence
        else:
            joined.append(sentence)
    return joined


def _length(text: str) -> int:
    """Characters, an ideograph counted as the three letters that take as long to say."""
    return len(text.strip()) + 2 * len(_IDEOGRAPH.findall(text))


def _halve(sentence: str, max_chars: int) -> list[str]:
    """Pieces of at most `max_chars`, of about the same length, which joined are the sentence."""
    if _length(sentence) <= max_chars:
        return [sentence]
    length = len(sentence)
    clauses = [cut.end() for cut in _CLAUSE.finditer(sentence) if length <= 4 * cut.end() <= 3 * length]
    cuts = clauses or [cut.end() for cut in _WORD.finditer(sentence) if 0 < cut.end() < length]
    if not cuts:
        return [sentence]
    middle = min(cuts, key=lambda cut: abs(2 * cut - length))
    return _halve(sentence[:middle], max_chars) + _halve(sentence[middle:], max_chars)
