"""Text normalization: the form of text that the language model was trained on."""

import re

from higgs_audio.text.characters import fold
from higgs_audio.text.markup import SOUNDS, is_speakable

__all__ = ["normalize"]

_DEGREES = {"°C": " degrees Celsius", "°F": " degrees Fahrenheit"}
_SPACE_BEFORE_MARK = re.compile(r"(?<=\w) (?=[.,;:!?]+(?: |$))")  # what a removed bracket leaves behind
_CLOSING_MARKS = frozenset(".!?,;:-।॥؟۔؛،")
_BRACKETS_AND_QUOTES = "\"'])} "  # may follow a closing mark
_SOUND_ENDS = (*(f"[{sound}]" for sound in SOUNDS), "</se>", "</se_s>", "</se_e>")


def normalize(text: str) -> str:
    """Normalizes a text for the language model.

    Typographic and full-width characters become plain, round brackets become spaces, °C and °F become words, runs of
    whitespace become single spaces, and blank lines are removed. A text without a closing mark gets a full stop: the
    transcripts of the training data end in a mark, and without one the model may continue beyond the given text.

    Numbers, dates and abbreviations are kept; the model or `phonemize` expands them.

    >>> normalize("“Hello”…  it’s me")
    '"Hello"... it\\'s me.'
    """
    folded = fold(text)
    for degrees, words in _DEGREES.items():
        folded = folded.replace(degrees, words)
    lines = (_SPACE_BEFORE_MARK.sub("", " ".join(line.split())) for line in folded.splitlines())
    normalized = "\n".join(line for line in lines if line)
    return normalized if _is_closed(normalized) else normalized + "."


def _is_closed(text: str) -> bool:
    """Whether a text ends in a closing mark, perhaps in quotes, or in a sound, or contains nothing speakable."""
    last = text.rstrip(_BRACKETS_AND_QUOTES)[-1:]
    return last in _CLOSING_MARKS or text.lower().endswith(_SOUND_ENDS) or not is_speakable(text)
