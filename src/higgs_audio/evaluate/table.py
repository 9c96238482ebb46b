"""The table of results: one row per system and voice, from measured items; also as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from higgs_audio.evaluate.item import Item
from higgs_audio.evaluate.metrics import (
    bootstrap_interval,
    character_errors,
    corpus_rate,
    duration_ratio,
    mean_rate,
    share_within,
    word_errors,
)

ALL_VOICES = "all"


@dataclass(frozen=True)
class Row:
    """The results of one system with one voice, or with all voices; None for values that could not be measured.

    Attributes:
        items, missing: number of items measured and missing.
        wer, wer_low, wer_high: word error rate of the whole corpus, with its 95 % interval over sentences.
        wer_mean: mean word error rate of the utterances.
        cer: character error rate of the whole corpus.
        distill_mos, dnsmos_ovrl: mean predicted quality, 1 to 5.
        similarity: mean cosine to the source's recordings of other sentences in the same voice.
        margin: `similarity` minus the similarity to the most similar other voice.
        duration_ratio: mean ratio of the duration to that of the source's recording of the same sentence.
        duration_within, duration_near: share of these ratios from 0.7 to 1.3, and from 0.5 to 1.5.
        ended: share of items whose generation stopped by itself.

    Rates and shares are between 0 and 1; error rates can exceed 1.
    """

    system: str
    voice: str
    items: int
    missing: int
    wer: float | None = None
    wer_low: float | None = None
    wer_high: float | None = None
    wer_mean: float | None = None
    cer: float | None = None
    distill_mos: float | None = None
    dnsmos_ovrl: float | None = None
    similarity: float | None = None
    margin: float | None = None
    duration_ratio: float | None = None
    duration_within: float | None = None
    duration_near: float | None = None
    ended: float | None = None


def rows(system: str, items: Sequence[Item], sources: Sequence[Item], expected: Mapping[str, int]) -> list[Row]:
    """Returns the rows of one system: one per voice, and if there are several, a last row for all voices.

    Args:
        system: name of the system.
        items: items of the system.
        sources: items of the recordings of the voices.
        expected: voice -> number of items if none is missing, in the order of the rows.
    """
    parts = {voice: [item for item in items if item.key.voice == voice] for voice in expected}
    if len(expected) > 1:
        parts[ALL_VOICES] = list(items)
    totals = {ALL_VOICES: sum(expected.values()), **expected}
    similarities = _Similarities(sources)
    durations = {(item.key.voice, item.key.index): item.seconds for item in sources}
    return [
        _row(system, voice, part, totals[voice] - len(part), similarities, durations)
        if part
        else Row(system, voice, items=0, missing=totals[voice])
        for voice, part in parts.items()
    ]


def markdown(table: Iterable[Row]) -> str:
    """Formats the rows as a Markdown table, with rates in percent; a dash means not measured."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- |" + " ---: |" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in table]
    return "\n".join(lines) + "\n"


COLUMNS = (
    "system",
    "voice",
    "items",
    "missing",
    "WER % (95 %)",
    "mean WER %",
    "CER %",
    "DistillMOS",
    "DNSMOS",
    "similarity",
    "margin",
    "length",
    "within 30 %",
    "within 50 %",
    "ended %",
)


def _cells(row: Row) -> list[str]:
    return [
        row.system,
        row.voice,
        str(row.items),
        str(row.missing),
        f"{_number(row.wer, 1, 100)} ({_number(row.wer_low, 1, 100)} to {_number(row.wer_high, 1, 100)})",
        _number(row.wer_mean, 1, 100),
        _number(row.cer, 1, 100),
        _number(row.distill_mos, 2),
        _number(row.dnsmos_ovrl, 2),
        _number(row.similarity, 3),
        _number(row.margin, 3),
        _number(row.duration_ratio, 2),
        _number(row.duration_within, 0, 100),
        _number(row.duration_near, 0, 100),
        _number(row.ended, 0, 100),
    ]


def _number(value: float | None, decimals: int, scale: int = 1) -> str:
    return "-" if value is None else f"{scale * value:.{decimals}f}"


class _Similarities:
    """Mean cosines of an item to the recordings of each source voice, except those of the item's own sentence.

    The mean cosine to unit vectors is the dot product with their mean, so one sum per voice and the individual vectors
    are enough.
    """

    def __init__(self, sources: Sequence[Item]) -> None:
        self.sums: dict[str, NDArray[np.float32]] = {}
        self.counts: dict[str, int] = {}
        self.single: dict[tuple[str, int], NDArray[np.float32]] = {}
        for item in sources:
            voice = item.key.voice
            self.sums[voice] = self.sums.get(voice, np.zeros_like(item.vector)) + item.vector
            self.counts[voice] = self.counts.get(voice, 0) + 1
            self.single[voice, item.key.index] = item.vector

    def cosines(self, item: Item) -> dict[str, float]:
        """Returns the mean cosine to each voice that has a recording of another sentence."""
        found = {}
        for voice, total in self.sums.items():
            own = self.single.get((voice, item.key.index))
            others = self.counts[voice] - (own is not None)
            rest = total if own is None else total - own
            if others:
                found[voice] = float(item.vector @ rest) / others
        return found


def _row(
    system: str,
    voice: str,
    items: Sequence[Item],
    missing: int,
    similarities: _Similarities,
    durations: Mapping[tuple[str, int], float],
) -> Row:
    words = [word_errors(item.key.text, item.transcript) for item in items]
    characters = [character_errors(item.key.text, item.transcript) for item in items]
    low, high = bootstrap_interval(
        [count.errors for count in words], [count.total for count in words], [item.key.index for item in items]
    )
    cosines = [(item.key.voice, similarities.cosines(item)) for item in items]
    ratios = [
        duration_ratio(item.seconds, durations[item.key.voice, item.key.index])
        for item in items
        if (item.key.voice, item.key.index) in durations
    ]
    return Row(
        system=system,
        voice=voice,
        items=len(items),
        missing=missing,
        wer=corpus_rate(words),
        wer_low=low,
        wer_high=high,
        wer_mean=mean_rate(words),
        cer=corpus_rate(characters),
        distill_mos=float(np.mean([item.distill_mos for item in items])),
        dnsmos_ovrl=float(np.mean([item.dnsmos_ovrl for item in items])),
        similarity=_mean([found[own] for own, found in cosines if own in found]),
        margin=_mean([_margin(own, found) for own, found in cosines if own in found and len(found) > 1]),
        duration_ratio=_mean(ratios),
        duration_within=share_within(ratios) if ratios else None,
        duration_near=share_within(ratios, 0.5) if ratios else None,
        ended=_mean([float(item.ended) for item in items if item.ended is not None]),
    )


def _margin(own: str, cosines: Mapping[str, float]) -> float:
    return cosines[own] - max(value for voice, value in cosines.items() if voice != own)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
