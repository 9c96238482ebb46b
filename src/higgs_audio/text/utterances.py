"""Splits long text into utterances: pieces of text that are generated one at a time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from higgs_audio.errors import check_value
from higgs_audio.text.blocks import Block
from higgs_audio.text.document import read_document
from higgs_audio.text.markup import is_speakable

__all__ = ["MAX_CHARS", "Utterance", "read_utterances", "split_utterances"]

MAX_CHARS = 180  # of an utterance: about twelve seconds of speech
_SHORT_CHARS = 30  # a shorter sentence joins its neighbor

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and ideographs: no spaces between words
_WIDE_MARKS = "，、；：。！？…」』）》"
_SENTENCE = re.compile(rf"(?<![.!?…])[.!?…]+[\"'”’»)\]]*\s+|[。！？][。！？…]*[\"'”’」』）》]*\s*|(?<!…)…+(?=[{_CJK}])")
_CLAUSE = re.compile(r"[,;:–—-][\"'”’»)\]]*\s+|[，、；：]\s*")
_WORD = re.compile(rf"\s+|(?<=[{_CJK}{_WIDE_MARKS}])(?=[{_CJK}])")
_NEXT_WORD = re.compile(r"[\"'“‘«(\[¿¡-]*\s*(\w+)")
_NOT_IN_WORD = re.compile(r"[^\w.&'’-]")
_IDEOGRAPH = re.compile(f"[{_CJK}]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Abbreviations whose full stop does not end a sentence.
_TITLES = _words(
    "adm approx atty capt cf cmdr col cpl dr ed eds e.g eg fr ft gen gov hon i.e ie lt maj messrs mlle mme mr mrs "
    "ms msgr mt pres prof pvt rep rev sen sgt st supt viz vs"
)
# Abbreviations whose full stop ends a sentence only if the next word is one of the openers.
_ABBREVIATIONS = _words(
    "al apt aug ave bldg blvd bros co corp dec dept est etc feb govt inc jan jr jul jun ltd mar nov oct ph.d rd "
    "sep sept sr ste univ"
)
_OPENERS = _words(
    "a an and as at but by for he her his how however i if in it its my no nor not now of on or our she so that "
    "the their then there these they this those to was we what when where which while who why with yes yet you "
    "your"
)
# Abbreviations that belong to a number after them.
_NUMBERED = _words("art ch chap eq fig figs no nos p pp sec vol")


@dataclass(frozen=True)
class Utterance:
    """A piece of text that is generated at once.

    Attributes:
        text: words and marks, in one line.
        boundary: what ends with it: "clause" within a sentence, or one of `blocks.BREAKS`.
        pause: seconds of pause after it that the author wrote; None for the usual pause of the boundary.
    """

    text: str
    boundary: str
    pause: float | None = None


def split_utterances(text: str, max_chars: int = MAX_CHARS) -> list[str]:
    """Splits a text into utterances; their words are the words of the text, in order, without markup.

    Splits at the boundaries of `read_document` and at the ends of sentences. A sentence of less than 30 characters
    joins its neighbor. A sentence of more than `max_chars` is halved at a clause near its middle, else between words; a
    single longer word stays whole. Line breaks and runs of spaces become one space. Utterances without a letter or
    digit are dropped.

    Args:
        text: as written, before `normalize`, which removes blank lines.
        max_chars: maximum length of an utterance, at least 1. An ideograph or kana counts as three characters,
            because it takes longer to speak.

    Raises:
        OptionError: max_chars is below 1.
        TextError: SSML that is not supported.

    >>> split_utterances("Dr. Smith arrived at noon, as he had said. Then everybody sat down to eat.")
    ['Dr. Smith arrived at noon, as he had said.', 'Then everybody sat down to eat.']
    """
    return [utterance.text for utterance in read_utterances(text, max_chars)]


def read_utterances(text: str, max_chars: int = MAX_CHARS) -> list[Utterance]:
    """Splits a text as `split_utterances` does; returns the utterances with their boundaries.

    >>> [utterance.boundary for utterance in read_utterances("# Title\\n\\nIt was a dark and stormy night.")]
    ['heading', 'paragraph']
    """
    check_value("max_chars", max_chars, max_chars >= 1, f"1 or more; {MAX_CHARS} is usual")
    return [utterance for block in read_document(text) for utterance in _split_block(block, max_chars)]


def _split_block(block: Block, max_chars: int) -> list[Utterance]:
    starts = [0, *_sentence_starts(block.text), len(block.text)]
    sentences = _join_short([block.text[start:end] for start, end in pairwise(starts)], max_chars)
    utterances = []
    for sentence in sentences:
        parts = [part.strip() for part in _halve(sentence, max_chars) if is_speakable(part)]
        utterances += [Utterance(part, "clause") for part in parts[:-1]] + [
            Utterance(p, "sentence") for p in parts[-1:]
        ]
    return [*utterances[:-1], *(Utterance(last.text, block.kind, block.pause) for last in utterances[-1:])]


def _sentence_starts(paragraph: str) -> Iterator[int]:
    """Yields the index at which each sentence but the first begins."""
    for mark in _SENTENCE.finditer(paragraph):
        if mark.end() < len(paragraph) and _ends_sentence(paragraph, mark):
            yield mark.end()


def _ends_sentence(paragraph: str, mark: re.Match[str]) -> bool:
    """Whether a run of marks, matched by `_SENTENCE`, ends a sentence."""
    marks = mark[0].rstrip()
    next_word = _NEXT_WORD.match(paragraph, mark.end())
    if marks[0] in "。！？" or marks == mark[0]:  # in a script without spaces
        return True
    if not next_word or next_word[1][0].islower():
        return False
    if marks != ".":
        return True
    before = paragraph[max(0, mark.start() - 40) : mark.start()]  # no abbreviation is longer
    return _is_full_stop(_NOT_IN_WORD.split(before)[-1], next_word[1])


def _is_full_stop(word: str, next_word: str) -> bool:
    """Whether the "." after `word` ends a sentence, if `next_word` does not begin with a lower-case letter."""
    lower = word.lower().lstrip("'’-")
    if lower in _TITLES or (len(word) == 1 and word.isupper() and word != "I"):
        return False
    if lower in _NUMBERED:
        return not next_word[0].isdigit()
    if lower in ("a.m", "p.m"):
        return True
    if lower in _ABBREVIATIONS or re.fullmatch(r"(?:\w\.)+\w", word):
        return next_word.lower() in _OPENERS
    return bool(word)


def _join_short(sentences: list[str], max_chars: int) -> list[str]:
    """Joins each short sentence with its neighbor where both fit into `max_chars`."""
    joined: list[str] = []
    for sentence in sentences:
        is_short = joined and min(_length(joined[-1]), _length(sentence)) < _SHORT_CHARS
        if is_short and _length(joined[-1] + sentence) <= max_chars:
            joined[-1] += sentence
        else:
            joined.append(sentence)
    return joined


def _length(text: str) -> int:
    """Returns the number of characters; an ideograph or kana counts as the three letters that take as long to speak."""
    return len(text.strip()) + 2 * len(_IDEOGRAPH.findall(text))


def _halve(sentence: str, max_chars: int) -> list[str]:
    """Splits a sentence into parts of about the same length and at most `max_chars`; joined they are the sentence."""
    if _length(sentence) <= max_chars:
        return [sentence]
    length = len(sentence)
    clauses = [end.end() for end in _CLAUSE.finditer(sentence) if length <= 4 * end.end() <= 3 * length]
    ends = clauses or [end.end() for end in _WORD.finditer(sentence) if 0 < end.end() < length]
    if not ends:
        return [sentence]
    middle = min(ends, key=lambda end: abs(2 * end - length))
    return _halve(sentence[:middle], max_chars) + _halve(sentence[middle:], max_chars)
