"""Measurements of one generated sentence, and the results file from which an interrupted run resumes."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from higgs_audio.audio.waveform import Waveform
from higgs_audio.evaluate.benchmark import Sentence
from higgs_audio.listen.asr import transcribe
from higgs_audio.listen.quality import assess
from higgs_audio.listen.speaker import embed

EMBEDDING_DECIMALS = 4  # keeps a line under 3 kB and a cosine correct to four decimals


@dataclass(frozen=True)
class Synthesis:
    """A system's output for one sentence; `ended` is whether generation stopped by itself, None if unknown."""

    waveform: Waveform
    ended: bool | None = None


@dataclass(frozen=True)
class ItemKey:
    """Identity of a measurement. `sound` is the hash of a recording's samples, "" for a system that generates."""

    system: str
    voice: str
    index: int
    draw: int
    text: str
    model: str
    sound: str


@dataclass(frozen=True)
class Item:
    """All measurements of one generated sentence; `embedding` is the speaker embedding, 256 numbers."""

    key: ItemKey
    transcript: str
    seconds: float
    ended: bool | None
    distill_mos: float
    dnsmos_ovrl: float
    dnsmos_sig: float
    dnsmos_bak: float
    embedding: tuple[float, ...]

    @property
    def vector(self) -> NDArray[np.float32]:
        """The speaker embedding as an array `[256]`."""
        return np.array(self.embedding, dtype=np.float32)


def item_key(
    system: str, voice: str, sentence: Sentence, draw: int, model: str, recording: Waveform | None = None
) -> ItemKey:
    """Returns the key of a measurement; with a `recording`, changed samples change the key."""
    digest = "" if recording is None else hashlib.sha256(recording.samples.tobytes()).hexdigest()[:16]
    return ItemKey(system, voice, sentence.index, draw, sentence.text, model, digest)


def measure(key: ItemKey, synthesis: Synthesis) -> Item:
    """Measures transcript, quality and speaker embedding of one sentence, in about one second on one core.

    Raises:
        MissingExtraError: a package of the metrics is not installed.
        CheckpointError: the ASR model does not load.
    """
    waveform = synthesis.waveform
    quality = assess(waveform)
    return Item(
        key=key,
        transcript=transcribe([waveform], key.model)[0].text,
        seconds=round(waveform.seconds, 4),
        ended=synthesis.ended,
        distill_mos=round(quality.distill_mos, 4),
        dnsmos_ovrl=round(quality.dnsmos_ovrl, 4),
        dnsmos_sig=round(quality.dnsmos_sig, 4),
        dnsmos_bak=round(quality.dnsmos_bak, 4),
        embedding=tuple(np.round(embed(waveform).astype(float), EMBEDDING_DECIMALS).tolist()),
    )


class ResultsFile:
    """Items in a JSON Lines file, appended one by one; opening the file drops an incomplete last line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.items = {item.key: item for item in _read(path)}

    def add(self, item: Item) -> None:
        """Appends the item to the file and to `items`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
        self.items[item.key] = item


def _read(path: Path) -> Iterator[Item]:
    if not path.exists():
        return
    data = path.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if len(complete) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(complete))
    for line in complete.split(b"\n")[:-1]:  # not splitlines: texts may contain other line separators
        fields = json.loads(line)
        yield Item(**{**fields, "key": ItemKey(**fields["key"]), "embedding": tuple(fields["embedding"])})
