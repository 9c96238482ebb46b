"""How long speech takes: bounds on the frames of an utterance, so that none runs on for ever and none ends at once."""

from higgs_audio.text.phonemes import PHONES, phonemize

# 15,000 clips of twenty synthetic voices have 0.057 to 0.1 seconds a phone; the slowest reaches 0.85 of the most.
MIN_PHONE_SECONDS = 0.03
MAX_PHONE_SECONDS = 0.12
EXTRA_SECONDS = 1.0
REFERENCE_MARGIN = 1.5  # over the pace of a reference, where that is slower still
PHONES_OF_A_FIGURE = 5  # in written text, a digit or an ideograph
FIRST_IDEOGRAPH = "\u2e80"


def count_phones(text: str, phonemes: bool) -> int:
    """Phones of a text as the front end reads it; without one, letters and, with a weight, digits and ideographs.

    Raises:
        TextError: with `phonemes`, nothing in the text can be spoken.

    >>> count_phones("Hello 42", phonemes=False)
    15
    """
    if phonemes:
        return sum(symbol in PHONES for symbol in phonemize(text))
    figures = sum(symbol.isdigit() or symbol >= FIRST_IDEOGRAPH for symbol in text)
    return PHONES_OF_A_FIGURE * figures + sum(symbol.isalpha() and symbol < FIRST_IDEOGRAPH for symbol in text)


def frame_bounds(phones: int, frame_rate: float, reference_pace: float = 0.0) -> tuple[int, int]:
    """Least and most frames of an utterance.

    Args:
        phones: in it.
        frame_rate: of the audio tokenizer, frames a second.
        reference_pace: seconds a phone of the recording whose voice it takes; a slow one raises the most.
    """
    slowest = max(MAX_PHONE_SECONDS, REFERENCE_MARGIN * reference_pace)
    return max(1, int(frame_rate * MIN_PHONE_SECONDS * phones)), int(frame_rate * (slowest * phones + EXTRA_SECONDS))
