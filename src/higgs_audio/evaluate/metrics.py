"""Error rates of what was heard against what was to be said, and how sure they are."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from higgs_audio.errors import MissingExtraError, OptionError, TextError

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class ErrorCount:
    """Substitutions, deletions and insertions, out of the words or characters of the reference."""

    errors: int
    total: int

    @property
    def rate(self) -> float:
        """Errors per word or character; above 1 where more was heard than the reference holds."""
        return self.errors / self.total


def normalize(text: str) -> str:
    """Whisper's English normalizer: lower case, no punctuation, numbers as digits, American spelling.

    >>> normalize("Mr. Grey won't pay twenty-one pounds!")
    'mister gray will not pay £21'
    """
    return _normalizer()(text).strip()


def word_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Word errors of one utterance, both texts normalized first.

    Raises:
        TextError: nothing is left of the reference after normalization.
    """
    out = _jiwer().process_words(*_normalized(reference, hypothesis))
    return ErrorCount(out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions)


def character_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Character errors of one utterance, spaces included, both texts normalized first; raises as `word_errors`."""
    out = _jiwer().process_characters(*_normalized(reference, hypothesis))
    return ErrorCount(out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions)


def wer(reference: str, hypothesis: str) -> float:
    """Word error rate of one utterance: 0 is perfect, and it can exceed 1."""
    return word_errors(reference, hypothesis).rate


def cer(reference: str, hypothesis: str) -> float:
    """Character error rate of one utterance."""
    return character_errors(reference, hypothesis).rate


def corpus_rate(counts: Sequence[ErrorCount]) -> float:
    """All errors over all words or characters: long utterances weigh more. This is what "WER" means in most papers."""
    return sum(count.errors for count in _some(counts)) / sum(count.total for count in counts)


def mean_rate(counts: Sequence[ErrorCount]) -> float:
    """The mean over utterances of each one's rate: what Seed-TTS-eval reports."""
    return float(np.mean([count.rate for count in _some(counts)]))


def bootstrap_interval(
    errors: ArrayLike,
    totals: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `sum(errors) / sum(totals)`.

    Args:
        errors, totals: `[N]`, one entry an utterance; totals of 1 make it the interval of a mean.
        groups: `[N]` names of what is drawn together, such as the sentence where several voices speak it, since its
            difficulty is shared; every utterance by itself when None.
        level: share of the draws inside the interval.
        draws, seed: how many resamples, and of which generator.

    >>> bootstrap_interval([0, 1, 0, 1], [2, 2, 2, 2])
    (0.0, 0.5)
    """
    top, bottom = np.asarray(errors, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if top.size == 0 or top.shape != bottom.shape:
        raise OptionError(f"errors {top.shape} and totals {bottom.shape} must be of one length of at least 1")
    if groups is not None:
        names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
        member = [names[name] for name in groups]
        top, bottom = _sums(top, member), _sums(bottom, member)  # [groups]
    picks = np.random.default_rng(seed).integers(len(top), size=(draws, len(top)))
    rates = top[picks].sum(axis=1) / bottom[picks].sum(axis=1)  # [draws]
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def duration_ratio(seconds: float, reference_seconds: float) -> float:
    """Length of what was spoken over the length of the reference recording: 1 is the same pace."""
    if reference_seconds <= 0:
        raise OptionError(f"the reference lasts {reference_seconds} s; it must last longer than 0")
    return seconds / reference_seconds


def within(ratios: ArrayLike, tolerance: float = 0.3) -> float:
    """Share of duration ratios between `1 - tolerance` and `1 + tolerance`: low where speech stops early or runs on."""
    return float(np.mean(np.abs(np.asarray(ratios) - 1.0) <= tolerance))


def _sums(values: NDArray[np.float64], member: Sequence[int]) -> NDArray[np.float64]:
    return np.bincount(member, weights=values).astype(np.float64)


def _normalized(reference: str, hypothesis: str) -> tuple[str, str]:
    wanted, heard = normalize(reference), normalize(hypothesis)
    if not any(character.isalnum() for character in wanted):  # the normalizer leaves a dot of "..."
        raise TextError(f"the reference {reference!r} holds no word to compare with; give text that can be spoken")
    return wanted, heard


def _some(counts: Sequence[ErrorCount]) -> Sequence[ErrorCount]:
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


@lru_cache(maxsize=1)
def _jiwer() -> Any:
    try:
        return import_module("jiwer")
    except ImportError as error:
        raise MissingExtraError("jiwer", "evaluate") from error
