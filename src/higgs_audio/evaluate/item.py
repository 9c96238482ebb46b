"""One spoken sentence, measured; and the ledger of measured items that lets a run be killed and taken up again."""

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

EMBEDDING_DECIMALS = 4  # keeps a line under 3 kB and a cosine right to four places


@dataclass(frozen=True)
class Spoken:
    """What a system made of one sentence. `ended` says whether it stopped by itself; None where nobody knows."""

    waveform: Waveform
    ended: bool | None = None


@dataclass(frozen=True)
class Key:
    """What a measurement belongs to. `sound` is the hash of a recording's samples, and "" for a system that speaks."""

    system: str
    voice: str
    index: int
    draw: int
    text: str
    model: str
    sound: str


@dataclass(frozen=True)
class Item:
    """Everything measured of one spoken sentence; `embedding` is the speaker vector, 256 numbers."""

    key: Key
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
        """The speaker vector as an array `[256]`."""
        return np.array(self.embedding, dtype=np.float32)


def key(system: str, voice: str, sentence: Sentence, draw: int, model: str, sound: Waveform | None = None) -> Key:
    """The key of one measurement; give `sound` where it exists already, so that new sound is measured anew."""
    digest = "" if sound is None else hashlib.sha256(sound.samples.tobytes()).hexdigest()[:16]
    return Key(system, voice, sentence.index, draw, sentence.text, model, digest)


def measure(key: Key, spoken: Spoken) -> Item:
    """Listens to one spoken sentence: words, quality, speaker. About a second on one core."""
    waveform = spoken.waveform
    quality = assess(waveform)
    return Item(
        key=key,
        transcript=transcribe([waveform], key.model)[0].text,
        seconds=round(waveform.seconds, 4),
        ended=spoken.ended,
        distill_mos=round(quality.distill_mos, 4),
        dnsmos_ovrl=round(quality.dnsmos_ovrl, 4),
        dnsmos_sig=round(quality.dnsmos_sig, 4),
        dnsmos_bak=round(quality.dnsmos_bak, 4),
        embedding=tuple(np.round(embed(waveform).astype(float), EMBEDDING_DECIMALS).tolist()),
    )


class ResultsFile:
    """Measured items in a JSON Lines file, appended one by one; a torn last line is dropped when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.items = {item.key: item for item in _read(path)}

    def add(self, item: Item) -> None:
        """Writes the item down before it counts."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
        self.items[item.key] = item


def _read(path: Path) -> Iterator[Item]:
    if not path.exists():
        return
    lines = path.read_bytes()
    whole = lines[: lines.rfind(b"\n") + 1]
    if len(whole) < len(lines):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    for line in whole.split(b"\n")[:-1]:  # a text may hold other separators than line feeds
        fields = json.loads(line)
        yield Item(**{**fields, "key": Key(**fields["key"]), "embedding": tuple(fields["embedding"])})
