"""Prepares clips for training: encodes them as codes, and aligns the phones with the frames.

Output: the parts of `shards.py`; `dropped.jsonl`, with id, reason and detail of each dropped clip; and `prepared.json`,
written last, with the counts by reason and the fingerprint of the audio tokenizer.
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
from higgs_audio.data.shards import Fingerprint, Part, check_fingerprint, codec_fingerprint, open_part, write_part
from higgs_audio.errors import AudioError, HiggsAudioError, RecipeError, TextError
from higgs_audio.files import remove_leftovers, write_atomic
from higgs_audio.text.markup import check_speakable
from higgs_audio.text.phonemes import phonemize

ALL_WORKERS = -1  # value of `worker` in a recipe: this process starts all workers
FAILED = 2  # exit code of a worker that raised an error of the package


@dataclass(frozen=True)
class PrepareRecipe:
    """All settings of a preparation run.

    `data` is a folder with manifests, `tokenizer` and `teacher` are checkpoints, `output` is the folder to fill.

    With `teacher: ""` clips are not aligned, for training without the guide. The pace of a clip is then measured in
    characters instead of phones.

    `num_workers` processes prepare the clips. By default this process starts them. To start them yourself, on several
    machines, set `worker` in each to its number, 0 to `num_workers` - 1.
    """

    data: str
    tokenizer: str
    teacher: str
    output: str
    split: str = "train"
    max_seconds: float = 8.0
    min_seconds: float = 0.6
    min_score: float = -2.5  # score of the alignment: mean log-probability per phone
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
    """Encodes every clip of the split, except in parts that exist. Returns the numbers of clips kept, and dropped by
    reason.

    Raises:
        RecipeError: impossible values, no clips, an output folder with other clips or codes, a full disk, or a worker
            that was killed. Finished parts are complete; running the command again prepares the rest.
    """
    check_recipe(recipe)
    clips, bad = scan(recipe.data, recipe.split)
    check_not_empty(clips, recipe.data, recipe.split)
    parts = split_into_parts(recipe, clips)
    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    for leftover in output.glob("part-*.safetensors.part"):  # of a killed worker of an earlier version
        leftover.unlink(missing_ok=True)
    if recipe.worker == ALL_WORKERS and recipe.num_workers > 1:
        start_workers(recipe)
    else:
        prepare_parts(recipe, max(0, recipe.worker))
    return report(output, [path for path, _ in parts], bad)


def check_recipe(recipe: PrepareRecipe) -> None:
    """Raises RecipeError for bounds that exclude every clip, or for invalid numbers of workers or clips per part."""
    bounds = {
        "seconds": (recipe.min_seconds, recipe.max_seconds),
        "phones_per_second": (recipe.min_phones_per_second, recipe.max_phones_per_second),
        "characters_per_second": (recipe.min_characters_per_second, recipe.max_characters_per_second),
    }
    for name, (low, high) in bounds.items():
        if not 0 < low < high:
            raise RecipeError(f"min_{name}={low} and max_{name}={high}: the first must be above 0 and below the second")
    if recipe.clips_per_part < 1 or recipe.num_workers < 1 or not ALL_WORKERS <= recipe.worker < recipe.num_workers:
        raise RecipeError(
            f"clips_per_part={recipe.clips_per_part}, num_workers={recipe.num_workers}, worker={recipe.worker}: give 1 "
            f"or more for the first two, and worker={ALL_WORKERS} (all workers) or 0 to num_workers - 1"
        )


def split_into_parts(recipe: PrepareRecipe, clips: Sequence[Clip]) -> list[tuple[Path, Sequence[Clip]]]:
    """Returns the path and the clips of each part."""
    starts = range(0, len(clips), recipe.clips_per_part)
    folder = Path(recipe.output)
    return [(folder / f"part-{n:04d}", clips[start : start + recipe.clips_per_part]) for n, start in enumerate(starts)]


def start_workers(recipe: PrepareRecipe) -> None:
    """Runs every worker in its own process; raises RecipeError if one fails."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    processes = [context.Process(target=run_worker, args=(recipe, n), daemon=True) for n in range(recipe.num_workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [f"worker {n} ended with code {p.exitcode}" for n, p in enumerate(processes) if p.exitcode]:
        raise RecipeError(
            f"{', '.join(failed)} (below 0: killed by that signal; fewer num_workers need less memory). Finished parts "
            "are complete: run the command again for the rest"
        )


def run_worker(recipe: PrepareRecipe, worker: int) -> None:
    """Runs one worker in its own process, on its share of the cores; prints an error of the package in one line."""
    torch.set_num_threads(max(1, torch.get_num_threads() // recipe.num_workers))
    try:
        prepare_parts(recipe, worker)
    except HiggsAudioError as error:
        print(f"worker {worker}: {error}", file=sys.stderr)
        raise SystemExit(FAILED) from None


def prepare_parts(recipe: PrepareRecipe, worker: int) -> None:
    """Prepares the parts of one worker that are missing or damaged."""
    clips, _ = scan(recipe.data, recipe.split)
    tokenizer = HiggsAudioTokenizer.from_pretrained(recipe.tokenizer).eval()
    fingerprint = codec_fingerprint(tokenizer)
    own = split_into_parts(recipe, clips)[worker :: recipe.num_workers]
    missing = [(path, part) for path, part in own if not is_done(path, part, fingerprint)]
    if not missing:
        return
    teacher = HubertForCTC.from_pretrained(recipe.teacher).eval() if recipe.teacher else None
    models, duplicate_ids = Models(tokenizer, teacher), duplicates(clips)
    for number, (path, part) in enumerate(missing, start=1):
        counts = prepare_part(part, path, models, recipe, duplicate_ids, fingerprint)
        print(f"worker {worker}: {path.name}, {number} of {len(missing)}: {counts}", file=sys.stderr, flush=True)


def is_done(path: Path, clips: Sequence[Clip], fingerprint: Fingerprint) -> bool:
    """Whether a part exists and is complete; raises RecipeError if it has other clips or codes."""
    index = path.with_suffix(".jsonl")
    if not index.exists():
        return False
    try:
        part = open_part(index)
    except ValueError as error:
        print(f"{path.name} {error}; preparing it again", file=sys.stderr)
        return False
    check_fingerprint(path, part, fingerprint)
    if [line["id"] for line in part.lines] != [clip.id for clip in clips]:
        raise RecipeError(
            f"{str(path)!r} has other clips, because the manifests have changed. Give another output folder"
        )
    return True


def prepare_part(
    clips: Sequence[Clip],
    path: Path,
    models: Models,
    recipe: PrepareRecipe,
    duplicate_ids: Collection[str],
    fingerprint: Fingerprint,
) -> dict[str, int]:
    """Prepares one part and returns its counts by reason; clips in `duplicate_ids` are dropped."""
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
    write_part(
        path, lines, np.concatenate([empty, *codes], axis=1), np.concatenate([empty[0], *phone_indices]), fingerprint
    )
    return dict(Counter(line[KEPT] for line in lines))


def prepare_clip(clip: Clip, models: Models, recipe: PrepareRecipe) -> tuple[np.ndarray, Alignment | None]:
    """Returns the codes `[K, F]` and, with a teacher, the alignment; raises DroppedError for an unusable clip."""
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
        raise DroppedError("score", f"{alignment.score:.2f}, below {recipe.min_score:g}")
    return clip_codes, alignment


def speech_units(clip: Clip, recipe: PrepareRecipe) -> str:
    """Returns the phones of the text, or without a teacher its characters; raises DroppedError for an unusable text."""
    if not clip.text.strip():
        raise DroppedError("empty text")
    try:
        check_speakable(clip.text)
        return phones(clip.text) if recipe.teacher else clip.text.strip()
    except TextError as error:
        raise DroppedError("unspeakable text", str(error)) from None


def load_waveform(clip: Clip, sample_rate: int, recipe: PrepareRecipe) -> Tensor:
    """Reads the waveform `[S]`; raises DroppedError for an unusable file or a duration outside the recipe's bounds."""
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
    """Raises DroppedError if the duration is unknown or outside the recipe's bounds."""
    if seconds is None:
        raise DroppedError("undecodable", "not a readable audio file")
    if seconds < recipe.min_seconds:
        raise DroppedError("too short", f"{seconds:.2f} s, less than {recipe.min_seconds:g}")
    if seconds > recipe.max_seconds:
        raise DroppedError("too long", f"{seconds:.2f} s, more than {recipe.max_seconds:g}")


def check_pace(count: int, seconds: float, recipe: PrepareRecipe) -> None:
    """Raises DroppedError if the text has too many or too few phones, or characters, for the duration of its audio."""
    low, high, unit = recipe.min_phones_per_second, recipe.max_phones_per_second, "phones"
    if not recipe.teacher:
        low, high, unit = recipe.min_characters_per_second, recipe.max_characters_per_second, "characters"
    if not low <= count / seconds <= high:
        raise DroppedError("pace", f"{count / seconds:.1f} {unit} per second, not {low:g} to {high:g}")


def is_finite(path: Path) -> bool:
    """Whether all samples of a file, as far as it can be read, are finite."""
    try:
        blocks = soundfile.blocks(str(path), BLOCK_FRAMES, dtype="float32")
        return all(bool(np.isfinite(block).all()) for block in blocks)
    except (soundfile.SoundFileError, RuntimeError, OSError):
        return True


def report(output: Path, paths: Sequence[Path], bad: Sequence[BadLine]) -> dict[str, int]:
    """Returns the counts by reason of the finished parts; if these are all, writes dropped.jsonl and prepared.json."""
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
        summary = {"counts": counts, "codec": common_fingerprint(parts)}
        reports = {"dropped.jsonl": json_lines(dropped), "prepared.json": json.dumps(summary, indent=1) + "\n"}
        for name, content in reports.items():
            remove_leftovers(output, name)
            write_atomic(output / name, content)
    return dict(counts)


def common_fingerprint(parts: Sequence[Part]) -> Fingerprint:
    """Returns the fingerprint of all parts; {} if some were written before fingerprints existed."""
    return parts[0].fingerprint if all(part.fingerprint == parts[0].fingerprint for part in parts) else {}
