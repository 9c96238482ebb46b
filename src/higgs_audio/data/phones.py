"""The phones that the teacher recognizes: the text front end's phonemes without stress, spaces and punctuation."""

from functools import lru_cache

from higgs_audio.text.phonemes import phonemize

# Every vowel and consonant of the front end's American English alphabet; id 0 is CTC's blank.
PHONES = "nəɹtɪdslæðimʌɛzkwvhIfbɔApɑuOjɡŋʃᵊθɐɜWʊʤTʧᵻYʒ"
_IDS = {phone: number for number, phone in enumerate(PHONES, start=1)}


@lru_cache(maxsize=100_000)
def phones(text: str) -> str:
    """Returns the phones of a text, one character each.

    Raises:
        TextError: the text contains nothing speakable.
    """
    return "".join(p for p in phonemize(text) if p in _IDS)


def phone_ids(phones: str) -> list[int]:
    """Returns the CTC labels of a string of phones."""
    return [_IDS[phone] for phone in phones]
