"""Encodes clips for training: codes, and the phone of each frame.

Output: the parts of `shards.py`; `dropped.jsonl`, with id, reason and detail of each dropped clip; and `prepared.json`,
written last, with the counts by reason and the stamp of the audio tokenizer.
"""

import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from transformers import HubertForCTC

from higgs_audio.audio.files import BLOCK_FRAMES
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data.align import Alignment, align
from higgs_audio.data.clips import Clip, read_samples
from higgs_audio.data.manifest import (
    KEPT,
    BadLine,
    DroppedError,
    check_not_empty,
    duplicates,
    header_seconds,
    json_lines,
    scan,
)
from higgs_audio.data.phones import phones
from higgs_audio.data.shards import Part, Stamp, check_stamp, open_part, stamp_of, write_part
from higgs_audio.errors import AudioError, HiggsAudioError, RecipeError, TextError
from higgs_audio.files import remove_leftovers, write_atomic
from higgs_audio.text.markup import check_speakable
from higgs_audio.text.phonemes import phonemize

ALL_WORKERS = -1  # value of `worker` in a recipe: this process starts all of them
FAILED = 2  # exit code of a worker that raised an error of the package


@dataclass(frozen=True)
class PrepareRecipe:
    """`data` is a folder with manifests, `tokenizer` and `teacher` checkpoints, `output` the folder to fill.

    With `teacher: ""` clips are not aligned, for training without the guide. The pace of a clip is then measured in
    characters instead of phones.

    `num_workers` processes do the work. By default this process starts them. To start them yourself, on several
    machines, set `worker` in each to its number, 0 to `num_workers` - 1.
    """

    data: str
    tokenizer: str
    teacher: str
    output: str
    split: str = "train"
    max_seconds: float = 8.0
    min_seconds: float = 0.6
    min_score: float = -2.5  # of the alignment, mean log-probability per phone
    min_phones_per_second: float = 4.0
    max_phones_per_second: float = 25.0
    min_characters_per_second: float = 2.0
    max_characters_per_second: float = 30.0
    clips_per_part: int = 500
    worker: int = ALL_WORKERS
    num_workers: int = 1


@dataclass(frozen=True)
class Models:
    """The models that encode a clip; `teacher` is None without alignment."""

    tokenizer: HiggsAudioTokenizer
    teacher: HubertForCTC | None


def prepare(recipe: PrepareRecipe) -> dict[str, int]:
    """Encodes every clip of the split, skipping parts that exist. Returns the clips kept, and dropped by reason.

    Raises RecipeError for impossible values, no clips, an output folder with other clips or codes, a full disk, and a
    worker that died. Finished parts are complete; the same command does the rest.
    """
    check_recipe(recipe)
    clips, bad = scan(recipe.data, recipe.split)
    check_not_empty(clips, recipe.data, recipe.split)
    parts = parts_of(recipe, clips)
    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)  # of workers that were killed
    for leftover in output.glob("part-*.safetensors.part"):  # the same, of an earlier version
        leftover.unlink(missing_ok=True)
    if recipe.worker == ALL_WORKERS and recipe.num_workers > 1:
        start_workers(recipe)
    else:
        prepare_parts(recipe, max(0, recipe.worker))
    return report(output, [path for path, _ in parts], bad)


def check_recipe(recipe: PrepareRecipe) -> None:
    """Raises RecipeError for bounds that exclude every clip, and for invalid numbers of workers or clips per part."""
    bounds = {
        "seconds": (recipe.min_seconds, recipe.max_seconds),
        "phones_per_second": (recipe.min_phones_per_second, recipe.max_phones_per_second),
        "characters_per_second": (recipe.min_characters_per_second, recipe.max_characters_per_second),
    }
    for name, (least, most) in bounds.items():
        if not 0 < least < most:
            raise RecipeError(f"min_{name}={least} and max_{name}={most}: give the first above 0 and below the second")
    if recipe.clips_per_part < 1 or recipe.num_workers < 1 or not ALL_WORKERS <= recipe.worker < recipe.num_workers:
        raise RecipeError(
            f"clips_per_part={recipe.clips_per_part}, num_workers={recipe.num_workers}, worker={recipe.worker}: give 1 "
            f"or more for the first two, and worker={ALL_WORKERS} (all workers) or 0 to num_workers - 1"
        )


def parts_of(recipe: PrepareRecipe, clips: Sequence[Clip]) -> list[tuple[Path, Sequence[Clip]]]:
    """Returns the path and the clips of each part."""
    starts = range(0, len(clips), recipe.clips_per_part)
    folder = Path(recipe.output)
    return [(folder / f"part-{n:04d}", clips[start : start + recipe.clips_per_part]) for n, start in enumerate(starts)]


def start_workers(recipe: PrepareRecipe) -> None:
    """Runs every worker in its own process. Raises RecipeError if one fails."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    processes = [context.Process(target=run_worker, args=(recipe, n), daemon=True) for n in range(recipe.num_workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if ends := [f"worker {n} ended with {p.exitcode}" for n, p in enumerate(processes) if p.exitcode]:
        raise RecipeError(
            f"{', '.join(ends)} (below 0: killed by that signal; fewer num_workers need less memory). Finished parts "
            "are complete: run it again for the rest"
        )


def run_worker(recipe: PrepareRecipe, worker: int) -> None:
    """Runs one worker in its own process, on its share of the cores; prints errors of the package as one line."""
    torch.set_num_threads(max(1, torch.get_num_threads() // recipe.num_workers))
    try:
        prepare_parts(recipe, worker)
    except HiggsAudioError as error:
        print(f"worker {worker}: {error}", file=sys.stderr)
        raise SystemExit(FAILED) from None


def prepare_parts(recipe: PrepareRecipe, worker: int) -> None:
    """Makes the parts of one worker that are missing or damaged."""
    clips, _ = scan(recipe.data, recipe.split)
    tokenizer = HiggsAudioTokenizer.from_pretrained(recipe.tokenizer).eval()
    stamp = stamp_of(tokenizer)
    own = parts_of(recipe, clips)[worker :: recipe.num_workers]
    missing = [(path, part) for path, part in own if not is_done(path, part, stamp)]
    if not missing:
        return
    teacher = HubertForCTC.from_pretrained(recipe.teacher).eval() if recipe.teacher else None
    models, duplicate_ids = Models(tokenizer, teacher), duplicates(clips)
    for number, (path, part) in enumerate(missing, start=1):
        counts = prepare_part(part, path, models, recipe, duplicate_ids, stamp)
        print(f"worker {worker}: {path.name}, {number} of {len(missing)}: {counts}", file=sys.stderr, flush=True)


def is_done(path: Path, clips: Sequence[Clip], stamp: Stamp) -> bool:
    """Whether a part exists and is complete. Raises RecipeError if it has other clips or codes."""
    index = path.with_suffix(".jsonl")
    if not index.exists():
        return False
    try:
        part = open_part(index)
    except ValueError as error:
        print(f"{path.name} {error}: making it again", file=sys.stderr)
        return False
    check_stamp(path, part, stamp)
    if [line["id"] for line in part.lines] != [clip.id for clip in clips]:
        raise RecipeError(
            f"{str(path)!r} has other clips: the manifests have changed since. Give another output folder"
        )
    return True


def prepare_part(
    clips: Sequence[Clip],
    path: Path,
    models: Models,
    recipe: PrepareRecipe,
    duplicate_ids: Collection[str],
    stamp: Stamp,
) -> dict[str, int]:
    """Makes one part and returns its counts by reason; clips in `duplicate_ids` are dropped."""
    lines, codes, phone_indices, offset = [], [], [], 0
    for clip in clips:
        line: dict[str, Any] = {"id": clip.id, "text": clip.text, "speaker": clip.speaker}
        line |= {name: value for name in ("scene", "reference") if (value := getattr(clip, name))}
        try:
            if clip.id in duplicate_ids:
                raise DroppedError("duplicate")
            clip_codes, alignment = prepare_clip(clip, models, recipe)
        except DroppedError as dropped:
            lines.append({**line, KEPT: dropped.reason, "detail": dropped.detail})
            continue
        num_frames = clip_codes.shape[1]
        line |= {KEPT: KEPT, "offset": offset, "frames": num_frames, "phonemes": clip.text}
        if alignment is not None:
            line |= {"score": round(alignment.score, 3), "phonemes": phonemize(clip.text)}
            phone_indices.append(alignment.frames)
        offset += num_frames
        codes.append(clip_codes)
        lines.append(line)
    empty = np.zeros((models.tokenizer.config.num_codebooks, 0), np.uint16)
    write_part(path, lines, np.concatenate([empty, *codes], axis=1), np.concatenate([empty[0], *phone_indices]), stamp)
    return dict(Counter(line[KEPT] for line in lines))


def prepare_clip(clip: Clip, models: Models, recipe: PrepareRecipe) -> tuple[np.ndarray, Alignment | None]:
    """Returns the codes `[K, F]` and, with a teacher, the alignment. Raises DroppedError."""
    units = speech_units(clip, recipe)
    sample_rate = models.tokenizer.config.sample_rate
    waveform = load_waveform(clip, sample_rate, recipe)
    check_pace(len(units), len(waveform) / sample_rate, recipe)
    codes = models.tokenizer.encode(waveform[None, None]).audio_codes
    assert codes is not None
    clip_codes = codes[0].numpy().astype(np.uint16)
    if models.teacher is None:
        return clip_codes, None
    try:
        alignment = align(models.teacher, waveform, units, clip_codes.shape[1])
    except ValueError as error:
        raise DroppedError("alignment", str(error)) from None
    if alignment.score < recipe.min_score:
        raise DroppedError("score", f"{alignment.score:.2f}, less than {recipe.min_score:g}")
    return clip_codes, alignment


def speech_units(clip: Clip, recipe: PrepareRecipe) -> str:
    """Returns the phones of the text, or its characters without a teacher. Raises DroppedError."""
    if not clip.text.strip():
        raise DroppedError("empty text")
    try:
        check_speakable(clip.text)
        return phones(clip.text) if recipe.teacher else clip.text.strip()
    except TextError as error:
        raise DroppedError("unspeakable text", str(error)) from None


def load_waveform(clip: Clip, sample_rate: int, recipe: PrepareRecipe) -> Tensor:
    """Reads the waveform `[S]`. Raises DroppedError, also for a length outside the recipe's bounds."""
    if not clip.audio.is_file():
        raise DroppedError("missing file", str(clip.audio))
    check_length(header_seconds(clip.audio), recipe)  # before reading a file that may be very long
    try:
        waveform = read_samples(clip, sample_rate)
    except AudioError as error:
        raise DroppedError("undecodable" if is_finite(clip.audio) else "not finite", str(error)) from None
    check_length(len(waveform) / sample_rate, recipe)
    return waveform


def check_length(seconds: float | None, recipe: PrepareRecipe) -> None:
    """Raises DroppedError if the length is unknown or outside the recipe's bounds."""
    if seconds is None:
        raise DroppedError("undecodable", "not a readable sound file")
    if seconds < recipe.min_seconds:
        raise DroppedError("too short", f"{seconds:.2f} s, less than {recipe.min_seconds:g}")
    if seconds > recipe.max_seconds:
        raise DroppedError("too long", f"{seconds:.2f} s, more than {recipe.max_seconds:g}")


def check_pace(count: int, seconds: float, recipe: PrepareRecipe) -> None:
    """Raises DroppedError if the text has too many or too few phones, or characters, for the length of its sound."""
    least, most, unit = recipe.min_phones_per_second, recipe.max_phones_per_second, "phones"
    if not recipe.teacher:
        least, most, unit = recipe.min_characters_per_second, recipe.max_characters_per_second, "characters"
    if not least <= count / seconds <= most:
        raise DroppedError("pace", f"{count / seconds:.1f} {unit} a second, not {least:g} to {most:g}")


def is_finite(path: Path) -> bool:
    """Whether all samples of a file, as far as it can be read, are finite."""
    try:
        blocks = soundfile.blocks(str(path), BLOCK_FRAMES, dtype="float32")
        return all(bool(np.isfinite(block).all()) for block in blocks)
    except (soundfile.SoundFileError, RuntimeError, OSError):
        return True


def report(output: Path, paths: Sequence[Path], bad: Sequence[BadLine]) -> dict[str, int]:
    """Returns the counts by reason of the finished parts; once all are, writes dropped.jsonl and prepared.json."""
    parts = [open_part(index) for path in paths if (index := path.with_suffix(".jsonl")).exists()]
    dropped = [{"id": line.where, "reason": "bad line", "detail": line.problem} for line in bad]
    dropped += [
        {"id": line["id"], "reason": line[KEPT], "detail": line.get("detail", "")}
        for part in parts
        for line in part.lines
        if line[KEPT] != KEPT
    ]
    counts = Counter({KEPT: sum(line[KEPT] == KEPT for part in parts for line in part.lines)})
    counts.update(line["reason"] for line in dropped)
    if len(parts) == len(paths):
        write_atomic(output / "dropped.jsonl", json_lines(dropped))
        summary = {"counts": counts, "codec": common_stamp(parts)}
        write_atomic(output / "prepared.json", json.dumps(summary, indent=1) + "\n")
    return dict(counts)


def common_stamp(parts: Sequence[Part]) -> Stamp:
    """Returns the stamp of the audio tokenizer; {} if some parts were written before stamps existed."""
    return parts[0].stamp if all(part.stamp == parts[0].stamp for part in parts) else {}
