"""What is to be spoken: sentences that no model was trained on, and the voices that speak them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from higgs_audio.errors import OptionError, TextError

HELDOUT = Path(__file__).with_name("heldout.txt")

# The voices of the recordings that the nano checkpoint learned from.
VOICES = ("heart", "joe", "slt", "awb")


@dataclass(frozen=True)
class Sentence:
    """One line of a benchmark; `index` counts from 0 and names its recordings."""

    index: int
    text: str


@dataclass(frozen=True)
class Benchmark:
    """Every voice speaks every sentence; `rotated`, each sentence is spoken by one, the voices taking turns."""

    name: str
    sentences: tuple[Sentence, ...]
    voices: tuple[str, ...]
    rotated: bool = False

    def part(self, voice: str) -> tuple[Sentence, ...]:
        """The sentences that a voice speaks."""
        turn, turns = (self.voices.index(voice), len(self.voices)) if self.rotated else (0, 1)
        return tuple(sentence for sentence in self.sentences if sentence.index % turns == turn)


def load(path: str | Path, voices: Sequence[str], limit: int | None = None) -> Benchmark:
    """A benchmark from a text file of one sentence a line, UTF-8; its name is the file's.

    Args:
        path: the file; blank lines are not allowed, since the line's number names a recording.
        voices: names, each once.
        limit: only the first so many sentences; all when None.

    Raises:
        TextError: the file does not exist, is empty, or has a blank line.
        OptionError: no voice, a voice twice, or a limit below 1.
    """
    if not voices or len(set(voices)) != len(voices):
        raise OptionError(f"voices={list(voices)}: give at least one, each of them once")
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit}: give 1 or more, or None for every sentence")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TextError(f"the sentences could not be read: {error}") from error
    if not lines or not all(line.strip() for line in lines):
        raise TextError(f"{path} is empty or has a blank line; give one sentence on every line")
    sentences = tuple(Sentence(index, line.strip()) for index, line in enumerate(lines))
    return Benchmark(Path(path).stem, sentences[:limit], tuple(voices))


def heldout(voices: Sequence[str] = VOICES, limit: int | None = None) -> Benchmark:
    """The 200 held-out sentences that this package ships; raises as `load`."""
    return load(HELDOUT, voices, limit)
