"""Pauses: how long the silence after an utterance is, by what ends with it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from higgs_audio.errors import OptionError, nearest
from higgs_audio.text.utterances import Utterance

__all__ = ["Pauses", "read_pauses"]

_LONGEST = 10.0  # seconds


@dataclass(frozen=True)
class Pauses:
    """Seconds of silence after an utterance, by what ends with it; 0 to 10.

    The silence that the model itself leaves around an utterance is part of the pause, so a pause is only lengthened.

    Attributes:
        sentence: a sentence within a paragraph.
        item: an item of a list, a row of a table, a line of its own.
        paragraph: a paragraph.
        heading: a heading.
        turn: what a speaker says before another one speaks.
    """

    sentence: float = 0.4
    item: float = 0.6
    paragraph: float = 0.8
    heading: float = 0.8
    turn: float = 0.5

    def after(self, utterance: Utterance) -> float:
        """Returns the seconds of pause after an utterance; 0 within a sentence."""
        if utterance.pause is not None:
            return utterance.pause
        return float(getattr(self, utterance.boundary, 0.0))


def read_pauses(pauses: object) -> Pauses:
    """Returns the pauses of an option: None for the usual ones, `Pauses`, or a mapping with some of its fields.

    Raises:
        OptionError: another type, an unknown field, or a value outside 0 to 10 seconds.

    >>> read_pauses({"paragraph": 1.2}).paragraph
    1.2
    """
    if pauses is None:
        return Pauses()
    fields = dataclasses.asdict(pauses) if isinstance(pauses, Pauses) else pauses
    names = [field.name for field in dataclasses.fields(Pauses)]
    if not isinstance(fields, Mapping):
        raise OptionError(f"pauses={pauses!r:.60}; give Pauses, or a mapping like {{'paragraph': 1.0}}")
    for name, seconds in fields.items():
        if name not in names:
            raise OptionError(f"pauses: no field {name!r:.60}; {nearest(str(name), names)}")
        if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 <= float(seconds) <= _LONGEST:
            raise OptionError(f"pauses: {name}={seconds!r:.60}; give 0 to {_LONGEST:g} seconds")
    return Pauses(**fields)
