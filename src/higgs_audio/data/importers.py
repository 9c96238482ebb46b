"""Imports data sets of other libraries as a folder of FLAC files with a manifest.

    from_huggingface(load_dataset("org/name", split="train"), "data/name", text="transcript")
    from_lhotse(CutSet.from_file("cuts.jsonl.gz"), "data/name")

This package depends on neither library; the arguments only need the same attributes. Files are written atomically and
the manifest last, so an interrupted import resumes when it is started again.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from higgs_audio.audio.files import read, write
from higgs_audio.audio.waveform import Waveform, from_array
from higgs_audio.data.manifest import KEPT, DroppedError, header_seconds, json_lines
from higgs_audio.errors import AudioError, RecipeError, nearest
from higgs_audio.files import write_atomic

Item = tuple[dict[str, Any], Callable[[], Waveform]]  # manifest fields except the audio, and the function that loads it


def from_huggingface(
    dataset: Iterable[Mapping[str, Any]],
    out: str | Path,
    *,
    audio: str = "audio",
    text: str = "text",
    speaker: str = "speaker_id",
    id: str = "",
    split: str = "train",
    scene: str = "",
) -> dict[str, int]:
    """Writes a Hugging Face data set to `out`; returns the number of rows that were kept, and dropped for each reason.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`, or any iterable of rows.
        out: the folder to fill.
        audio, text, speaker, scene, id: names of the columns; `speaker=""` if there is only one speaker, `scene=""` if
            there are no scene descriptions, `id=""` to number the rows.
        split: value of `split` in the manifest: "train" or "heldout".

    Raises:
        RecipeError: a missing column, no usable row, or a manifest in `out`.
        AudioError: a file that cannot be written, for example because the disk is full.
    """
    columns = {"text": text} | {name: c for name, c in (("speaker", speaker), ("scene", scene), ("id", id)) if c}
    rows = _undecoded(dataset, audio)
    return _write(_rows(rows, audio, columns), Path(out), split)


def from_lhotse(cuts: Iterable[Any], out: str | Path, *, split: str = "train") -> dict[str, int]:
    """Writes a Lhotse `CutSet` to `out`; returns the number of cuts that were kept, and dropped for each reason.

    Each cut becomes a clip with the text and the speaker of its only supervision. Split cuts with several supervisions
    with `cuts.trim_to_supervisions()` first.

    Raises:
        RecipeError: no usable cut, or a manifest in `out`.
        AudioError: a file that cannot be written, for example because the disk is full.
    """
    return _write(_cuts(cuts), Path(out), split)


def _undecoded(rows: Iterable[Mapping[str, Any]], audio: str) -> Iterable[Mapping[str, Any]]:
    """Disables the data set's audio decoding, so that its decoder need not be installed."""
    feature: Any = (getattr(rows, "features", None) or {}).get(audio)
    cast_column = getattr(rows, "cast_column", None)
    if cast_column is None or not hasattr(feature, "decode"):
        return rows
    undecoded: Iterable[Mapping[str, Any]] = cast_column(audio, dataclasses.replace(feature, decode=False))
    return undecoded


def _rows(rows: Iterable[Mapping[str, Any]], audio: str, columns: Mapping[str, str]) -> Iterator[Item]:
    for number, row in enumerate(rows):
        for column in (audio, *columns.values()):
            if column not in row:
                raise RecipeError(f"the data set has no column {column!r}; {nearest(column, row)}. Name it in the call")
        fields = {name: row[column] for name, column in columns.items()}
        yield {"id": f"{number:08d}", "speaker": "0", **fields}, partial(_load_value, row[audio])


def _load_value(value: Any) -> Waveform:
    """Loads the audio value of a row: a file's bytes or path, samples, or a decoder; raises AudioError for others."""
    if hasattr(value, "get_all_samples"):
        samples = value.get_all_samples()
        return from_array(samples.data, int(samples.sample_rate))
    if isinstance(value, Mapping) and value.get("array") is not None:
        return from_array(value["array"], int(value["sampling_rate"]))
    source = (value.get("bytes") or value.get("path")) if isinstance(value, Mapping) else value
    if not isinstance(source, bytes | str | Path):
        raise AudioError(f"a {type(value).__name__} is not audio; expected a file's bytes or path, or an array")
    return read(source)


def _cuts(cuts: Iterable[Any]) -> Iterator[Item]:
    for cut in cuts:
        fields = {"id": cut.id}
        supervisions = list(cut.supervisions)
        if len(supervisions) == 1:
            fields |= {"text": supervisions[0].text, "speaker": supervisions[0].speaker}
        yield fields, partial(_load_cut, cut)


def _load_cut(cut: Any) -> Waveform:
    return from_array(cut.load_audio(), int(cut.sampling_rate))


def _write(items: Iterable[Item], out: Path, split: str) -> dict[str, int]:
    """Writes the audio files, then `dropped.jsonl`, then the manifest."""
    if (out / "manifest.jsonl").exists():
        raise RecipeError(f"{str(out)!r} already has a manifest; give another folder")
    (out / "audio").mkdir(parents=True, exist_ok=True)
    kept, dropped = [], []
    for number, (fields, load) in enumerate(items):
        path = out / "audio" / f"{number:08d}.flac"
        try:
            _check(fields)
            seconds = _write_audio(path, load)
        except DroppedError as error:
            dropped.append({"id": str(fields["id"]), "reason": error.reason, "detail": error.detail})
            continue
        values = {name: str(value) for name, value in fields.items() if value is not None}
        kept.append({**values, "audio": f"audio/{path.name}", "seconds": seconds, "split": split})
    counts = Counter(line["reason"] for line in dropped)
    if not kept:
        raise RecipeError(f"none of {len(dropped)} items can be used: {dict(counts)}. Check the column names and files")
    write_atomic(out / "dropped.jsonl", json_lines(dropped))
    write_atomic(out / "manifest.jsonl", json_lines(kept))
    return {KEPT: len(kept), **counts}


def _check(fields: Mapping[str, Any]) -> None:
    """Raises DroppedError if a required field is missing."""
    if "text" not in fields:
        raise DroppedError("not one supervision")
    if not str(fields["text"] or "").strip():
        raise DroppedError("empty text")
    if fields["speaker"] is None or not str(fields["speaker"]).strip():
        raise DroppedError("no speaker")


def _write_audio(path: Path, load: Callable[[], Waveform]) -> float:
    """Writes the audio to `path` unless it exists; returns its duration in seconds.

    Raises:
        DroppedError: the audio cannot be loaded.
        AudioError: the file cannot be written.
    """
    if path.exists() and (seconds := header_seconds(path)) is not None:
        return seconds
    try:
        waveform = load()
    except Exception as error:  # other libraries raise any type; one item must not end the import
        raise DroppedError("unreadable audio", str(error)) from error
    write(waveform, path)
    return waveform.seconds
