"""Manifests: lists of clips, one clip per line of a `manifest*.jsonl` or row of a `manifest*.parquet`.

A clip has `id`, `audio` (a path relative to the manifest's folder), `text` and `speaker`, and optionally `seconds`,
`split`, `phones`, `scene` and `reference`, see `Clip`. Other fields are ignored.
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

KEPT = "kept"  # key of the kept clips among the counts by reason
REQUIRED = ("id", "audio", "text", "speaker")
OPTIONAL_TEXTS = ("split", "scene", "reference")


class DroppedError(Exception):
    """A clip is dropped. Dropped clips are counted by `reason`; `detail` describes this clip."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class BadLine:
    """An invalid line of a manifest: `where` is its file and line number, `problem` describes the error."""

    where: str
    problem: str


def read_manifests(folder: str | Path, split: str = "train", max_seconds: float = 30.0) -> list[Clip]:
    """Returns the clips of `split` of at most `max_seconds` in the manifests of a folder, sorted by id.

    Raises:
        RecipeError: no such clips, or an invalid line.
    """
    clips, bad = scan(folder, split)
    if bad:
        more = f", and {len(bad) - 1} more bad lines" if len(bad) > 1 else ""
        raise RecipeError(f"{Path(folder) / bad[0].where}: {bad[0].problem}{more}")
    clips = [clip for clip in clips if clip.seconds <= max_seconds]
    check_not_empty(clips, folder, split)
    return clips


def check_not_empty(clips: Sequence[Clip], folder: str | Path, split: str) -> None:
    """Raises RecipeError if there are no clips."""
    if not clips:
        raise RecipeError(
            f"no {split!r} clips in {str(folder)!r}: expected manifest*.jsonl or manifest*.parquet with that split"
        )


def scan(folder: str | Path, split: str) -> tuple[list[Clip], list[BadLine]]:
    """Returns the clips of `split`, sorted by id, and the invalid lines.

    Raises:
        RecipeError: a Parquet file that cannot be read.
        MissingExtraError: a Parquet file, but pyarrow is not installed.
    """
    folder = Path(folder)
    clips: dict[str, Clip] = {}
    bad = []
    for where, line in _lines(folder):
        try:
            clip = _clip(json.loads(line) if isinstance(line, bytes) else line, folder)
        except ValueError as error:
            bad.append(BadLine(where, str(error)))
            continue
        if clip.split == split and clips.setdefault(clip.id, clip) is not clip:
            bad.append(BadLine(where, f"another clip has the id {clip.id!r}"))
    return [clips[name] for name in sorted(clips)], bad


def _lines(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields (file and line number, JSON bytes or fields) of every line and row, file by file."""
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
    """Converts fields to a `Clip`; raises ValueError if fields are missing or have another type."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"expected an object with a clip's fields, got a {type(fields).__name__}")
    if missing := [name for name in REQUIRED if name not in fields]:
        raise ValueError(f"no {missing[0]!r}; a clip has {', '.join(REQUIRED)}")
    known = {name: value for name, value in fields.items() if value is not None}
    text = _text("text", known.get("text", ""))
    required: dict[str, Any] = {name: _text(name, known.get(name)) for name in ("id", "audio", "speaker")}
    if empty := [name for name, value in required.items() if not value]:
        raise ValueError(f"{empty[0]!r} is empty")
    audio = folder / required.pop("audio")
    optional: dict[str, Any] = {name: _text(name, known[name]) for name in OPTIONAL_TEXTS if name in known}
    seconds = _seconds(known["seconds"]) if "seconds" in known else header_seconds(audio) or 0.0
    phones = _phones(known.get("phones", ()))
    return Clip(audio=audio, text=text, seconds=seconds, phones=phones, **required, **optional)


def _text(name: str, value: Any) -> str:
    """Converts integers to text, because many data sets have integer ids and speakers; raises ValueError for others."""
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
    """Returns the duration of an audio file from its header; None if it cannot be read."""
    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.SoundFileError, RuntimeError, OSError, ZeroDivisionError):
        return None


def duplicates(clips: Iterable[Clip]) -> frozenset[str]:
    """Returns the ids of clips with the same text and the same file content as an earlier clip.

    Only files of equal size and text are read.
    """
    by_text: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_text[clip.text].append(clip)
    by_size: dict[tuple[str, int], list[Clip]] = defaultdict(list)
    for group in by_text.values():
        for clip in group if len(group) > 1 else ():
            if clip.audio.is_file():
                by_size[clip.text, clip.audio.stat().st_size].append(clip)
    return frozenset(name for group in by_size.values() if len(group) > 1 for name in _repeated(group))


def _repeated(clips: Sequence[Clip]) -> Iterator[str]:
    seen = set()
    for clip in clips:
        digest = hashlib.sha256(clip.audio.read_bytes()).digest()
        if digest in seen:
            yield clip.id
        seen.add(digest)


def json_lines(lines: Iterable[Mapping[str, Any]]) -> str:
    """Formats dictionaries as JSON Lines."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
