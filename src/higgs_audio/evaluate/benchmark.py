"""Benchmarks: held-out sentences, and the voices to generate them with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from higgs_audio.errors import OptionError, TextError

HELDOUT = Path(__file__).with_name("heldout.txt")

# The voices in the recordings that nano was trained on.
VOICES = ("heart", "joe", "slt", "awb")


@dataclass(frozen=True)
class Sentence:
    """One line of a benchmark; `index` counts from 0 and is part of the names of its recordings."""

    index: int
    text: str


@dataclass(frozen=True)
class Benchmark:
    """Sentences and voices. Every voice has all sentences; with `rotated`, the sentences alternate between voices."""

    name: str
    sentences: tuple[Sentence, ...]
    voices: tuple[str, ...]
    rotated: bool = False

    def sentences_of(self, voice: str) -> tuple[Sentence, ...]:
        """Returns the sentences of a voice."""
        remainder, modulus = (self.voices.index(voice), len(self.voices)) if self.rotated else (0, 1)
        return tuple(sentence for sentence in self.sentences if sentence.index % modulus == remainder)


def load(path: str | Path, voices: Sequence[str], limit: int | None = None) -> Benchmark:
    """Loads a benchmark from a UTF-8 text file with one sentence per line; the file's name becomes its name.

    Args:
        path: the file; blank lines are not allowed, because the line number names a recording.
        voices: names of voices, each once.
        limit: number of sentences from the first on; None for all.

    Raises:
        TextError: the file does not exist, is empty, or has a blank line.
        OptionError: no voice, a voice given twice, or a limit below 1.
    """
    if not voices or len(set(voices)) != len(voices):
        raise OptionError(f"voices={list(voices)}: give at least one, and each only once")
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit}: give 1 or more, or None for every sentence")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TextError(f"the sentences cannot be read: {error}; give a file with one sentence per line") from error
    if not lines or not all(line.strip() for line in lines):
        raise TextError(f"{path} is empty or has a blank line; give one sentence on every line")
    sentences = tuple(Sentence(index, line.strip()) for index, line in enumerate(lines))
    return Benchmark(Path(path).stem, sentences[:limit], tuple(voices))


def heldout(voices: Sequence[str] = VOICES, limit: int | None = None) -> Benchmark:
    """Returns the 200 held-out sentences of this package; for arguments and errors see `load`."""
    return load(HELDOUT, voices, limit)
