"""The text front end of a processor: English text of user turns to the phonemes that the model reads."""

import re
from typing import Literal

from higgs_audio.special_tokens import SPEAKER_TAG
from higgs_audio.text.markup import is_speakable
from higgs_audio.text.phonemes import phonemize, phonemize_punctuation

_KEPT = re.compile(rf"({SPEAKER_TAG.pattern} ?|\n)")
_LETTER = re.compile(r"[A-Za-z]")


def to_phonemes(text: str, has_tags: bool = False) -> str:
    """Converts the text of a user turn to phonemes; speaker tags and line ends stay unchanged.

    A line of punctuation alone is kept as one mark where another line has words, or where the message has sound tags
    (`has_tags`): a laugh may end in a full stop.

    Raises:
        TextError: nothing in the text can be spoken.
    """
    return "".join(
        phonemize_punctuation(part) if kind == "marks" else phonemize(part) if kind == "words" else part
        for part, kind in _split_lines(text, has_tags)
    )


def check_phonemes(text: str, has_tags: bool = False) -> None:
    """Raises what `to_phonemes` raises, but converts only parts without a Latin letter: all others have phonemes.

    Raises:
        TextError: nothing in the text can be spoken.
    """
    for part, kind in _split_lines(text, has_tags):
        if kind == "words" and not _LETTER.search(part):
            phonemize(part)


def _split_lines(text: str, has_tags: bool) -> list[tuple[str, Literal["kept", "marks", "words"]]]:
    """Splits a text at speaker tags and line ends, and tells what `to_phonemes` does with each part."""
    parts = [(part, bool(_KEPT.fullmatch(part)) or not part.strip()) for part in _KEPT.split(text)]
    has_words = has_tags or any(is_speakable(part) for part, is_kept in parts if not is_kept)
    return [
        (part, "kept" if is_kept else "marks" if has_words and not is_speakable(part) else "words")
        for part, is_kept in parts
    ]
