"""The list of written texts and their readings, `tests/text/readings.tsv`, and how two readings are compared."""

import zlib
from dataclasses import dataclass
from pathlib import Path

from higgs_audio.text.phonemes import PHONES, phonemize

UNSTRESSED = str.maketrans({"T": "t", "ᵊ": "ə", "ᵻ": "ə"})
PATH = Path(__file__).parents[1] / "text" / "readings.tsv"


@dataclass(frozen=True)
class Reading:
    """A written text and how it is spoken, in words; any of `spoken` is right."""

    kind: str
    written: str
    spoken: tuple[str, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether no rule was tuned on this text: one of four, by its checksum."""
        return zlib.crc32(self.written.encode()) % 4 == 0


def load_readings() -> list[Reading]:
    lines = (line for line in PATH.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    fields = (line.split("\t") for line in lines)
    return [Reading(kind, written, tuple(spoken.split(" | "))) for kind, written, spoken in fields]


def sounds(text: str) -> str:
    """Returns the phones of a text without pauses, spaces, stress and what depends on stress: flaps, reduced vowels."""
    return "".join(phone for phone in phonemize(text).translate(UNSTRESSED) if phone in PHONES)


def is_right(reading: Reading) -> bool:
    """Whether the written text has the phones of one of its readings."""
    return sounds(reading.written) in {sounds(spoken) for spoken in reading.spoken if spoken != reading.written} | {
        sounds(spoken.lower()) for spoken in reading.spoken
    }
