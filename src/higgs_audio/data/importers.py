"""Other people's data sets as a folder of FLAC files with a manifest: one line each.

    from_huggingface(load_dataset("org/name", split="train"), "data/name", text="transcript")
    from_lhotse(CutSet.from_file("cuts.jsonl.gz"), "data/name")

Neither library is needed by this package: what is given has only to behave like theirs. Files appear whole or not at
all and the manifest last, so an import that was killed is started again, and goes on where it was.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from higgs_audio.audio.files import read, write
from higgs_audio.audio.waveform import Waveform, from_array
from higgs_audio.data.manifest import header_seconds
from higgs_audio.errors import AudioError, RecipeError, nearest
from higgs_audio.files import write_atomic

KEPT = "kept"
Item = tuple[dict[str, Any], Callable[[], Waveform]]  # a manifest's fields but for the audio, and what loads the sound


def from_huggingface(
    dataset: Any,
    out: str | Path,
    *,
    audio: str = "audio",
    text: str = "text",
    speaker: str = "speaker_id",
    id: str = "",
    split: str = "train",
    scene: str = "",
) -> dict[str, int]:
    """Writes a Hugging Face data set to `out` and returns how many rows were kept, and dropped by reason.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`, or any iterable of rows.
        out: the folder to fill.
        audio, text, speaker, scene, id: names of its columns; `speaker=""` where there is one speaker only, `scene=""`
            where no scene is told, `id=""` for the numbers of the rows.
        split: what the manifest calls it: "train" or "heldout".

    Raises:
        RecipeError: a column that the data set does not have, no row that can be used, or a manifest in `out`.
        AudioError: a file that cannot be written, as on a full disk.
    """
    columns = {"text": text} | {name: c for name, c in (("speaker", speaker), ("scene", scene), ("id", id)) if c}
    rows = _undecoded(dataset, audio)
    return _write(_rows(rows, audio, columns), Path(out), split)


def from_lhotse(cuts: Iterable[Any], out: str | Path, *, split: str = "train") -> dict[str, int]:
    """Writes a Lhotse `CutSet` to `out` and returns how many cuts were kept, and dropped by reason.

    Every cut is a clip, with the text and the speaker of its one supervision: cut recordings of several with
    `cuts.trim_to_supervisions()` first.

    Raises:
        RecipeError: no cut that can be used, or a manifest in `out`.
        AudioError: a file that cannot be written, as on a full disk.
    """
    return _write(_cuts(cuts), Path(out), split)


def _undecoded(dataset: Any, audio: str) -> Any:
    """The data set with its files as bytes: our own decoder reads them, and no other has to be installed."""
    feature = (getattr(dataset, "features", None) or {}).get(audio)
    if feature is None or not hasattr(feature, "decode") or not hasattr(dataset, "cast_column"):
        return dataset
    return dataset.cast_column(audio, dataclasses.replace(feature, decode=False))


def _rows(rows: Iterable[Mapping[str, Any]], audio: str, columns: Mapping[str, str]) -> Iterator[Item]:
    for number, row in enumerate(rows):
        for column in (audio, *columns.values()):
            if column not in row:
                raise RecipeError(f"the data set has no column {column!r}; {nearest(column, row)}. Name it in the call")
        fields = {name: row[column] for name, column in columns.items()}
        yield {"id": f"{number:08d}", "speaker": "0", **fields}, partial(_sound, row[audio])


def _sound(value: Any) -> Waveform:
    """Sound as data sets hold it: a file's bytes or path, samples, or a decoder. Raises AudioError for other things."""
    if hasattr(value, "get_all_samples"):
        samples = value.get_all_samples()
        return from_array(samples.data, int(samples.sample_rate))
    if isinstance(value, Mapping) and value.get("array") is not None:
        return from_array(value["array"], int(value["sampling_rate"]))
    source = (value.get("bytes") or value.get("path")) if isinstance(value, Mapping) else value
    if not isinstance(source, bytes | str | Path):
        raise AudioError(f"a {type(value).__name__} is no sound; expected a file's bytes or path, or an array")
    return read(source)


def _cuts(cuts: Iterable[Any]) -> Iterator[Item]:
    for cut in cuts:
        said = list(cut.supervisions)
        fields = {"id": cut.id, "text": said[0].text, "speaker": said[0].speaker} if len(said) == 1 else {"id": cut.id}
        yield fields, partial(_cut_sound, cut)


def _cut_sound(cut: Any) -> Waveform:
    return from_array(cut.load_audio(), int(cut.sampling_rate))


def _write(items: Iterable[Item], out: Path, split: str) -> dict[str, int]:
    """Sounds, then what was dropped and why, then the manifest."""
    if (out / "manifest.jsonl").exists():
        raise RecipeError(f"{str(out)!r} has a manifest already; give another folder")
    (out / "audio").mkdir(parents=True, exist_ok=True)
    lines, dropped = [], []
    for number, (fields, load) in enumerate(items):
        reason, detail = _check(fields), ""
        path = out / "audio" / f"{number:08d}.flac"
        if not reason:
            try:
                seconds = _seconds(path, load)
            except _UnreadableError as error:
                reason, detail = "unreadable audio", str(error)
        if reason:
            dropped.append({"id": str(fields["id"]), "reason": reason, "detail": detail})
        else:
            kept = {name: str(value) for name, value in fields.items() if value is not None}
            lines.append({**kept, "audio": f"audio/{path.name}", "seconds": seconds, "split": split})
    if not lines:
        raise RecipeError(f"nothing of {len(dropped)} items can be used: {dict(Counter(d['reason'] for d in dropped))}")
    write_atomic(out / "dropped.jsonl", _json_lines(dropped))
    write_atomic(out / "manifest.jsonl", _json_lines(lines))
    return {KEPT: len(lines), **Counter(line["reason"] for line in dropped)}


class _UnreadableError(Exception):
    """The sound of an item cannot be loaded."""


def _check(fields: Mapping[str, Any]) -> str:
    """Why an item cannot be a clip; "" where it can."""
    if "text" not in fields:
        return "not one supervision"
    if not str(fields["text"] or "").strip():
        return "empty text"
    return "" if str(fields["speaker"] if fields["speaker"] is not None else "").strip() else "no speaker"


def _seconds(path: Path, load: Callable[[], Waveform]) -> float:
    """Length of the sound, written to `path` unless it is there. Raises _UnreadableError, and AudioError of `write`."""
    if path.exists() and (known := header_seconds(path)) is not None:
        return known
    try:
        waveform = load()
    except Exception as error:  # whatever the other library raises: one item must not end the import
        raise _UnreadableError(str(error)) from error
    write(waveform, path)
    return waveform.seconds


def _json_lines(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
