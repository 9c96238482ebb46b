"""The text front end of a processor: converts the English text of user turns to phonemes."""

import re
from typing import Literal

from higgs_audio.special_tokens import SPEAKER_TAG
from higgs_audio.text.markup import is_speakable
from higgs_audio.text.phonemes import phonemize, phonemize_punctuation

_KEPT = re.compile(rf"({SPEAKER_TAG.pattern} ?|\n)")
_LETTER = re.compile(r"[A-Za-z]")


def to_phonemes(text: str, has_tags: bool = False) -> str:
    """Converts the text of a user turn to phonemes; speaker tags and line ends stay unchanged.

    A line of punctuation alone is converted to one mark if another line has words, or if the message has sound tags
    (`has_tags`): a laugh may end in a full stop.

    Raises:
        TextError: the text contains nothing speakable.
    """
    return "".join(
        phonemize_punctuation(part) if kind == "marks" else phonemize(part) if kind == "words" else part
        for part, kind in _split_lines(text, has_tags)
    )


def check_phonemes(text: str, has_tags: bool = False) -> None:
    """Raises the errors of `to_phonemes`, but converts only parts without a Latin letter: all others have phonemes.

    Raises:
        TextError: the text contains nothing speakable.
    """
    for part, kind in _split_lines(text, has_tags):
        if kind == "words" and not _LETTER.search(part):
            phonemize(part)


def _split_lines(text: str, has_tags: bool) -> list[tuple[str, Literal["kept", "marks", "words"]]]:
    """Splits a text at speaker tags and line ends, and returns each part with its kind: kept, marks or words."""
    parts = [(part, bool(_KEPT.fullmatch(part)) or not part.strip()) for part in _KEPT.split(text)]
    has_words = has_tags or any(is_speakable(part) for part, is_kept in parts if not is_kept)
    return [
        (part, "kept" if is_kept else "marks" if has_words and not is_speakable(part) else "words")
        for part, is_kept in parts
    ]
