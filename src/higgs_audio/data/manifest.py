"""Manifests: which clips there are, one a line of a `manifest*.jsonl` or a row of a `manifest*.parquet`.

A clip has an `id`, `audio` (a path, from the manifest's folder on), `text` and `speaker`, and where they are known
`seconds`, `split`, `phones`, `scene` and `reference`, see `Clip`. Other fields are not read.
"""

import hashlib
import importlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from higgs_audio.data.clips import Clip
from higgs_audio.errors import MissingExtraError, RecipeError

NAMES = ("id", "audio", "text", "speaker")  # every clip has them
WORDS = ("split", "scene", "reference")  # some have them


@dataclass(frozen=True)
class BadLine:
    """A line that names no clip: `where` is its file and number, `problem` what is wrong with it."""

    where: str
    problem: str


def read_manifests(folder: str | Path, split: str = "train", max_seconds: float = 30.0) -> list[Clip]:
    """All clips of `split` in the manifests of a folder, sorted by id.

    Raises RecipeError where there is none, and for the first line that names no clip.
    """
    clips, bad = scan(folder, split)
    if bad:
        more = f", and {len(bad) - 1} bad lines more" if len(bad) > 1 else ""
        raise RecipeError(f"{Path(folder) / bad[0].where}: {bad[0].problem}{more}")
    return check_any([clip for clip in clips if clip.seconds <= max_seconds], folder, split)


def check_any(clips: list[Clip], folder: str | Path, split: str) -> list[Clip]:
    """The clips. Raises RecipeError where there are none."""
    if not clips:
        raise RecipeError(
            f"no {split!r} clips in {str(folder)!r}: expected manifest*.jsonl or manifest*.parquet with that split"
        )
    return clips


def scan(folder: str | Path, split: str) -> tuple[list[Clip], list[BadLine]]:
    """All clips of `split`, sorted by id, and the lines that name none.

    Raises RecipeError where a Parquet file cannot be read, MissingExtraError without pyarrow.
    """
    folder = Path(folder)
    clips: dict[str, Clip] = {}
    bad = []
    for where, given in _lines(folder):
        try:
            clip = _clip(json.loads(given) if isinstance(given, bytes) else given, folder)
        except ValueError as error:
            bad.append(BadLine(where, str(error)))
            continue
        if clip.split == split and clips.setdefault(clip.id, clip) is not clip:
            bad.append(BadLine(where, f"another clip has the id {clip.id!r}"))
    return [clips[name] for name in sorted(clips)], bad


def _lines(folder: Path) -> Iterator[tuple[str, Any]]:
    """(file and number, bytes of JSON or fields) of every line and row, file by file."""
    for path in sorted(folder.glob("manifest*.jsonl")):
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path.name}:{number}", line
    for path in sorted(folder.glob("manifest*.parquet")):
        for number, row in enumerate(_rows(path), start=1):
            yield f"{path.name}:{number}", row


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train") from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's own errors are one or the other
        raise RecipeError(
            f"{str(path)!r} cannot be read as Parquet: {error}; write it again, or as JSON Lines"
        ) from error


def _clip(fields: Any, folder: Path) -> Clip:
    """Raises ValueError where fields are missing or of another type."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"a {type(fields).__name__} where a clip's fields should be")
    if missing := [name for name in NAMES if name not in fields]:
        raise ValueError(f"no {missing[0]!r}; a clip has {', '.join(NAMES)}")
    known = {name: value for name, value in fields.items() if value is not None}
    text = _word("text", known.get("text", ""))
    required: dict[str, Any] = {name: _word(name, known.get(name)) for name in ("id", "audio", "speaker")}
    if empty := [name for name, value in required.items() if not value]:
        raise ValueError(f"{empty[0]!r} is empty")
    audio = folder / required.pop("audio")
    words: dict[str, Any] = {name: _word(name, known[name]) for name in WORDS if name in known}
    seconds = _seconds(known["seconds"]) if "seconds" in known else header_seconds(audio) or 0.0
    return Clip(audio=audio, text=text, seconds=seconds, phones=_phones(known.get("phones", ())), **required, **words)


def _word(name: str, value: Any) -> str:
    """Text as it is, whole numbers, which many data sets have for ids and speakers, as text."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r:.40} must be text")
    return str(value)


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"seconds={value!r:.40} must be a number, 0 or more")
    return float(value)


def _phones(value: Any) -> tuple[tuple[str, float, float], ...]:
    try:
        rows = (row.values() if isinstance(row, Mapping) else row for row in value)
        return tuple((str(phone), float(start), float(end)) for phone, start, end in rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"phones={value!r:.40} must be a list of [phone, start, end]") from error


def header_seconds(path: Path) -> float | None:
    """Length of a sound file as its header tells it; None where it cannot be read."""
    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.SoundFileError, RuntimeError, OSError, ZeroDivisionError):
        return None


def duplicates(clips: Iterable[Clip]) -> frozenset[str]:
    """Ids of the clips that have the text and the file's bytes of an earlier one.

    Only files of one size with one text are read, so where nothing is doubled this costs next to nothing.
    """
    by_text: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_text[clip.text].append(clip)
    alike: dict[tuple[str, int], list[Clip]] = defaultdict(list)
    for same in by_text.values():
        for clip in same if len(same) > 1 else ():
            if clip.audio.is_file():
                alike[clip.text, clip.audio.stat().st_size].append(clip)
    return frozenset(name for same in alike.values() if len(same) > 1 for name in _repeated(same))


def _repeated(clips: Sequence[Clip]) -> Iterator[str]:
    seen = set()
    for clip in clips:
        digest = hashlib.sha256(clip.audio.read_bytes()).digest()
        if digest in seen:
            yield clip.id
        seen.add(digest)
