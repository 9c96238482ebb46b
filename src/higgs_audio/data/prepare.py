"""Clips to training material: codes, the phone heard in each frame, and the reasons why a clip was dropped.

Output: the parts of `shards.py`; `dropped.jsonl`, a line with id, reason and detail for each clip that was not kept;
and `prepared.json`, written last, with the counts by reason and the stamp of the audio tokenizer.
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

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data.align import Alignment, align
from higgs_audio.data.clips import Clip, samples
from higgs_audio.data.manifest import BadLine, check_any, duplicates, header_seconds, scan
from higgs_audio.data.phones import phones
from higgs_audio.data.shards import KEPT, Part, Stamp, check_stamp, open_part, stamp_of, write_part
from higgs_audio.errors import AudioError, HiggsAudioError, RecipeError, TextError
from higgs_audio.files import write_atomic
from higgs_audio.text.phonemes import phonemize
from higgs_audio.text.written import check_speakable

BY_HAND = -1  # above it, the number of this process among those started side by side
FAILED = 2
BLOCK_FRAMES = 1 << 16


@dataclass(frozen=True)
class PrepareRecipe:
    """`data` is a folder with manifests, `tokenizer` and `teacher` checkpoints, `output` the folder to fill.

    With `teacher: ""` nothing is aligned: the clips are for training without the guide. What a text says is then
    measured in characters, not in phones.

    The work is done by `num_workers` processes, started here; where they are started by hand, on several machines, each
    is given its own `worker`, 0 to `num_workers` - 1.
    """

    data: str
    tokenizer: str
    teacher: str
    output: str
    split: str = "train"
    max_seconds: float = 8.0
    min_seconds: float = 0.6
    min_score: float = -2.5  # of the alignment, mean log-probability a phone
    min_phones_per_second: float = 4.0
    max_phones_per_second: float = 25.0
    min_characters_per_second: float = 2.0
    max_characters_per_second: float = 30.0
    clips_per_part: int = 500
    worker: int = BY_HAND
    num_workers: int = 1


class DroppedError(Exception):
    """A clip is not kept: `reason` is what is counted, `detail` what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Models:
    """What listens to a clip; `teacher` is None where nothing is aligned."""

    tokenizer: HiggsAudioTokenizer
    teacher: HubertForCTC | None


def prepare(recipe: PrepareRecipe) -> dict[str, int]:
    """Prepares every clip of the split; parts already written are kept. Returns kept and dropped counts by reason.

    Raises RecipeError for impossible values, no clips, an output folder with other clips or codes, a full disk, and
    where a worker died; what is done is done, and the same command does the rest.
    """
    check_recipe(recipe)
    clips, bad = scan(recipe.data, recipe.split)
    parts = parts_of(recipe, check_any(clips, recipe.data, recipe.split))
    Path(recipe.output).mkdir(parents=True, exist_ok=True)
    if recipe.worker == BY_HAND and recipe.num_workers > 1:
        start_workers(recipe)
    else:
        work(recipe, max(0, recipe.worker))
    return report(Path(recipe.output), [path for path, _ in parts], bad)


def check_recipe(recipe: PrepareRecipe) -> None:
    """Raises RecipeError for values that keep no clip or name no worker."""
    bounds = {
        "seconds": (recipe.min_seconds, recipe.max_seconds),
        "phones_per_second": (recipe.min_phones_per_second, recipe.max_phones_per_second),
        "characters_per_second": (recipe.min_characters_per_second, recipe.max_characters_per_second),
    }
    for name, (least, most) in bounds.items():
        if not 0 < least < most:
            raise RecipeError(f"min_{name}={least} and max_{name}={most}: give the first above 0 and below the second")
    if recipe.clips_per_part < 1 or recipe.num_workers < 1 or not BY_HAND <= recipe.worker < recipe.num_workers:
        raise RecipeError(
            f"clips_per_part={recipe.clips_per_part}, num_workers={recipe.num_workers}, worker={recipe.worker}: give 1 "
            f"or more of the first two, and {BY_HAND} (all of them) to num_workers - 1"
        )


def parts_of(recipe: PrepareRecipe, clips: Sequence[Clip]) -> list[tuple[Path, Sequence[Clip]]]:
    """The parts: where each lies, and its clips."""
    starts = range(0, len(clips), recipe.clips_per_part)
    folder = Path(recipe.output)
    return [(folder / f"part-{n:04d}", clips[start : start + recipe.clips_per_part]) for n, start in enumerate(starts)]


def start_workers(recipe: PrepareRecipe) -> None:
    """Runs every worker in a process of its own. Raises RecipeError where one of them did not end well."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    processes = [context.Process(target=run_worker, args=(recipe, n), daemon=True) for n in range(recipe.num_workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if ends := [f"worker {n} ended with {p.exitcode}" for n, p in enumerate(processes) if p.exitcode]:
        raise RecipeError(
            f"{', '.join(ends)} (below 0: killed by that signal; fewer num_workers need less memory). What is done is "
            "whole: run it again for the rest"
        )


def run_worker(recipe: PrepareRecipe, worker: int) -> None:
    """One worker in its own process, on its share of the cores; an error of the package is one line."""
    torch.set_num_threads(max(1, torch.get_num_threads() // recipe.num_workers))
    try:
        work(recipe, worker)
    except HiggsAudioError as error:
        print(f"worker {worker}: {error}", file=sys.stderr)
        raise SystemExit(FAILED) from None


def work(recipe: PrepareRecipe, worker: int) -> None:
    """The parts of one worker that are not there yet, or damaged."""
    clips, _ = scan(recipe.data, recipe.split)
    tokenizer = HiggsAudioTokenizer.from_pretrained(recipe.tokenizer).eval()
    stamp = stamp_of(tokenizer)
    own = parts_of(recipe, clips)[worker :: recipe.num_workers]
    missing = [(path, part) for path, part in own if not is_done(path, part, stamp)]
    if not missing:
        return
    teacher = HubertForCTC.from_pretrained(recipe.teacher).eval() if recipe.teacher else None
    models, repeated = Models(tokenizer, teacher), duplicates(clips)
    for number, (path, part) in enumerate(missing, start=1):
        counts = prepare_part(part, path, models, recipe, repeated, stamp)
        print(f"worker {worker}: {path.name}, {number} of {len(missing)}: {counts}", file=sys.stderr, flush=True)


def is_done(path: Path, clips: Sequence[Clip], stamp: Stamp) -> bool:
    """Whether a part is there and whole. Raises RecipeError where it has other clips or codes."""
    index = path.with_suffix(".jsonl")
    if not index.exists():
        return False
    try:
        part = open_part(index)
    except ValueError as error:
        print(f"{path.name} {error}: it is made again", file=sys.stderr)
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
    repeated: Collection[str],
    stamp: Stamp,
) -> dict[str, int]:
    """Makes one part and returns its counts by reason; `repeated` are the ids of clips that are there already."""
    lines, codes, aligned, offset = [], [], [], 0
    for clip in clips:
        line: dict[str, Any] = {"id": clip.id, "text": clip.text, "speaker": clip.speaker}
        line |= {name: value for name in ("scene", "reference") if (value := getattr(clip, name))}
        try:
            if clip.id in repeated:
                raise DroppedError("duplicate")
            made, alignment = prepare_clip(clip, models, recipe)
        except DroppedError as dropped:
            lines.append({**line, KEPT: dropped.reason, "detail": dropped.detail})
            continue
        line |= {KEPT: KEPT, "offset": offset, "frames": made.shape[1], "phonemes": clip.text}
        if alignment is not None:
            line |= {"score": round(alignment.score, 3), "phonemes": phonemize(clip.text)}
            aligned.append(alignment.frames)
        offset += made.shape[1]
        codes.append(made)
        lines.append(line)
    empty = np.zeros((models.tokenizer.config.num_codebooks, 0), np.uint16)
    write_part(path, lines, np.concatenate([empty, *codes], axis=1), np.concatenate([empty[0], *aligned]), stamp)
    return dict(Counter(line[KEPT] for line in lines))


def prepare_clip(clip: Clip, models: Models, recipe: PrepareRecipe) -> tuple[np.ndarray, Alignment | None]:
    """Codes `[K, F]` and the alignment, where there is a teacher. Raises DroppedError."""
    spoken = said(clip, recipe)
    sound = heard(clip, models.tokenizer.config.sample_rate, recipe)
    check_pace(len(spoken), len(sound) / models.tokenizer.config.sample_rate, recipe)
    codes = models.tokenizer.encode(sound[None, None]).audio_codes
    assert codes is not None
    made = codes[0].numpy().astype(np.uint16)
    if models.teacher is None:
        return made, None
    try:
        alignment = align(models.teacher, sound, spoken, made.shape[1])
    except ValueError as error:
        raise DroppedError("alignment", str(error)) from None
    if alignment.score < recipe.min_score:
        raise DroppedError("score", f"{alignment.score:.2f}, less than {recipe.min_score:g}")
    return made, alignment


def said(clip: Clip, recipe: PrepareRecipe) -> str:
    """The phones of the text, or its characters where there is no teacher. Raises DroppedError."""
    if not clip.text.strip():
        raise DroppedError("empty text")
    try:
        check_speakable(clip.text)
        return phones(clip.text) if recipe.teacher else clip.text.strip()
    except TextError as error:
        raise DroppedError("unspeakable text", str(error)) from None


def heard(clip: Clip, sample_rate: int, recipe: PrepareRecipe) -> Tensor:
    """The sound `[S]`, of a length within the recipe's bounds. Raises DroppedError."""
    if not clip.audio.is_file():
        raise DroppedError("missing file", str(clip.audio))
    check_length(header_seconds(clip.audio), recipe)  # before ten minutes are read
    try:
        sound = samples(clip, sample_rate)
    except AudioError as error:
        raise DroppedError("undecodable" if is_finite(clip.audio) else "not finite", str(error)) from None
    check_length(len(sound) / sample_rate, recipe)
    return sound


def check_length(seconds: float | None, recipe: PrepareRecipe) -> None:
    """Raises DroppedError."""
    if seconds is None:
        raise DroppedError("undecodable", "no sound file that can be read")
    if seconds < recipe.min_seconds:
        raise DroppedError("too short", f"{seconds:.2f} s, less than {recipe.min_seconds:g}")
    if seconds > recipe.max_seconds:
        raise DroppedError("too long", f"{seconds:.2f} s, more than {recipe.max_seconds:g}")


def check_pace(count: int, seconds: float, recipe: PrepareRecipe) -> None:
    """Raises DroppedError where the text has too many or too few phones, or characters, for its sound."""
    least, most, unit = recipe.min_phones_per_second, recipe.max_phones_per_second, "phones"
    if not recipe.teacher:
        least, most, unit = recipe.min_characters_per_second, recipe.max_characters_per_second, "characters"
    if not least <= count / seconds <= most:
        raise DroppedError("pace", f"{count / seconds:.1f} {unit} a second, not {least:g} to {most:g}")


def is_finite(path: Path) -> bool:
    """Whether no sample of a file is NaN or infinite, as far as it can be read."""
    try:
        blocks = soundfile.blocks(str(path), BLOCK_FRAMES, dtype="float32")
        return all(bool(np.isfinite(block).all()) for block in blocks)
    except (soundfile.SoundFileError, RuntimeError, OSError):
        return True


def report(output: Path, paths: Sequence[Path], bad: Sequence[BadLine]) -> dict[str, int]:
    """Counts by reason of the parts that are there; once all are, writes dropped.jsonl and prepared.json."""
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
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in dropped)
        write_atomic(output / "dropped.jsonl", text)
        summary = {"counts": counts, "codec": stamp_of_all(parts)}
        write_atomic(output / "prepared.json", json.dumps(summary, indent=1) + "\n")
    return dict(counts)


def stamp_of_all(parts: Sequence[Part]) -> Stamp:
    """The stamp of the audio tokenizer; {} where a part was written before there were stamps."""
    return parts[0].stamp if all(part.stamp == parts[0].stamp for part in parts) else {}
