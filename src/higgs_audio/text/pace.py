"""Speaking pace: bounds on the number of frames of an utterance, so that generation stops neither early nor late."""

from higgs_audio.text.phonemes import PHONES, phonemize

__all__ = ["count_phones", "frame_bounds"]

# Measured: 15,000 clips of twenty synthetic voices take 0.057 to 0.1 seconds per phone; the slowest clip takes 0.85 of
# the upper bound.
_MIN_PHONE_SECONDS = 0.03
_MAX_PHONE_SECONDS = 0.12
_EXTRA_SECONDS = 1.0  # added to the upper bound
_REFERENCE_MARGIN = 1.5  # a slow reference raises the upper bound to this multiple of its own pace
_PHONES_PER_SYMBOL = 5  # phones of a digit or an ideograph in written text
_FIRST_IDEOGRAPH = "\u2e80"


def count_phones(text: str, phonemes: bool) -> int:
    """Counts the phones of a text, or estimates their number.

    Args:
        text: written text.
        phonemes: whether to count the phones of `phonemize`. Otherwise the estimate is one phone per letter and five
            per digit or ideograph.

    Raises:
        TextError: with `phonemes`, the text contains nothing speakable.

    >>> count_phones("Hello 42", phonemes=False)
    15
    """
    if phonemes:
        return sum(symbol in PHONES for symbol in phonemize(text))
    num_symbols = sum(character.isdigit() or character >= _FIRST_IDEOGRAPH for character in text)
    num_letters = sum(character.isalpha() and character < _FIRST_IDEOGRAPH for character in text)
    return _PHONES_PER_SYMBOL * num_symbols + num_letters


def frame_bounds(num_phones: int, frame_rate: float, reference_pace: float = 0.0) -> tuple[int, int]:
    """Returns the minimum and maximum number of frames of an utterance.

    Args:
        num_phones: phones of the utterance, see `count_phones`.
        frame_rate: frames per second of the audio tokenizer.
        reference_pace: seconds per phone of the reference recording; a slow one raises the upper bound.
    """
    slowest = max(_MAX_PHONE_SECONDS, _REFERENCE_MARGIN * reference_pace)
    least = max(1, int(frame_rate * _MIN_PHONE_SECONDS * num_phones))
    return least, int(frame_rate * (slowest * num_phones + _EXTRA_SECONDS))
