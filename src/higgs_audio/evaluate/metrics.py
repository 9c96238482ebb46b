"""Word and character error rates with confidence intervals, and statistics of durations."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from higgs_audio.errors import MissingExtraError, OptionError, TextError

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class ErrorCount:
    """Substitutions, deletions and insertions together, and the number of words or characters in the reference."""

    errors: int
    total: int

    @property
    def rate(self) -> float:
        """Errors per word or character of the reference; it can exceed 1."""
        return self.errors / self.total


def normalize(text: str) -> str:
    """Applies Whisper's English normalizer: lower case, no punctuation, numbers as digits, American spelling.

    >>> normalize("Mr. Grey won't pay twenty-one pounds!")
    'mister gray will not pay £21'
    """
    return _normalizer()(text).strip()


def word_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Counts the word errors of one utterance after normalizing both texts.

    Raises:
        TextError: the reference has no word after normalization.
        MissingExtraError: jiwer or whisper-normalizer is not installed.
    """
    return _count(_jiwer().process_words(*_normalized(reference, hypothesis)))


def character_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Counts the character errors of one utterance, including spaces; for errors see `word_errors`."""
    return _count(_jiwer().process_characters(*_normalized(reference, hypothesis)))


def wer(reference: str, hypothesis: str) -> float:
    """Returns the word error rate of one utterance; 0 is perfect, and it can exceed 1. For errors see `word_errors`."""
    return word_errors(reference, hypothesis).rate


def cer(reference: str, hypothesis: str) -> float:
    """Returns the character error rate of one utterance; for errors see `word_errors`."""
    return character_errors(reference, hypothesis).rate


def corpus_rate(counts: Sequence[ErrorCount]) -> float:
    """Returns all errors over all words or characters, the usual definition of WER; long utterances weigh more.

    Raises:
        OptionError: no utterance.
    """
    return sum(count.errors for count in _check_any(counts)) / sum(count.total for count in counts)


def mean_rate(counts: Sequence[ErrorCount]) -> float:
    """Returns the mean of the utterances' error rates, as in Seed-TTS-eval.

    Raises:
        OptionError: no utterance.
    """
    return float(np.mean([count.rate for count in _check_any(counts)]))


def bootstrap_interval(
    errors: ArrayLike,
    totals: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of `sum(errors) / sum(totals)`.

    Args:
        errors, totals: `[N]`, one entry per utterance; with totals of 1, the interval is that of a mean.
        groups: `[N]`, a group per utterance; groups are resampled as a whole. Group by sentence if several voices have
            the same sentences, because they share their difficulty. None resamples utterances.
        level: share of the resamples inside the interval.
        draws, seed: number of resamples, and the seed of their generator.

    Raises:
        OptionError: no utterance, or `errors` and `totals` of different lengths.

    >>> bootstrap_interval([0, 1, 0, 1], [2, 2, 2, 2])
    (0.0, 0.5)
    """
    numerators, denominators = np.asarray(errors, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if numerators.size == 0 or numerators.shape != denominators.shape:
        raise OptionError(
            f"errors {numerators.shape} and totals {denominators.shape} must have the same length, at least 1"
        )
    if groups is not None:
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        members = [numbers[group] for group in groups]
        numerators, denominators = _sums(numerators, members), _sums(denominators, members)  # [groups]
    picks = np.random.default_rng(seed).integers(len(numerators), size=(draws, len(numerators)))
    rates = numerators[picks].sum(axis=1) / denominators[picks].sum(axis=1)  # [draws]
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def duration_ratio(seconds: float, reference_seconds: float) -> float:
    """Returns the duration of a generated recording divided by that of its reference: 1 is the same pace.

    Raises:
        OptionError: the reference is not longer than 0 s.
    """
    if reference_seconds <= 0:
        raise OptionError(f"the reference lasts {reference_seconds} s; it must last longer than 0")
    return seconds / reference_seconds


def share_within(ratios: ArrayLike, tolerance: float = 0.3) -> float:
    """Returns the share of duration ratios from `1 - tolerance` to `1 + tolerance`.

    Speech that ends too early or too late lowers it.
    """
    return float(np.mean(np.abs(np.asarray(ratios) - 1.0) <= tolerance))


def _count(alignment: "_Alignment") -> ErrorCount:
    replaced = alignment.substitutions + alignment.deletions
    return ErrorCount(replaced + alignment.insertions, replaced + alignment.hits)


def _sums(values: NDArray[np.float64], members: Sequence[int]) -> NDArray[np.float64]:
    return np.bincount(members, weights=values).astype(np.float64)


def _normalized(reference: str, hypothesis: str) -> tuple[str, str]:
    """Returns both texts after normalization."""
    expected = normalize(reference)
    if not any(character.isalnum() for character in expected):  # the normalizer leaves a dot of "..."
        raise TextError(
            f"the reference {reference!r} contains no word to compare with; give a text with letters or digits"
        )
    return expected, normalize(hypothesis)


def _check_any(counts: Sequence[ErrorCount]) -> Sequence[ErrorCount]:
    if not counts:
        raise OptionError("no utterances given; an error rate needs at least one")
    return counts


@lru_cache(maxsize=1)
def _normalizer() -> Callable[[str], str]:
    try:
        module = import_module("whisper_normalizer.english")
    except ImportError as error:
        raise MissingExtraError("whisper-normalizer", "evaluate") from error
    return cast(Callable[[str], str], module.EnglishTextNormalizer())


class _Alignment(Protocol):
    """The part of `jiwer.WordOutput` and `jiwer.CharacterOutput` that this module uses."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int


class _Jiwer(Protocol):
    def process_words(self, reference: str, hypothesis: str) -> _Alignment: ...
    def process_characters(self, reference: str, hypothesis: str) -> _Alignment: ...


@lru_cache(maxsize=1)
def _jiwer() -> _Jiwer:
    try:
        return cast(_Jiwer, import_module("jiwer"))
    except ImportError as error:
        raise MissingExtraError("jiwer", "evaluate") from error
