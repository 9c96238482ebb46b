"""Clips to training material: codes, the phone heard in each frame, and the reasons why a clip was dropped.

Output: `part-NNNN.safetensors` with `codes [K, frames]` (uint16) and `phones [frames]` (uint16, index into the clip's
phone string), `part-NNNN.jsonl` with one line a clip, and `prepared.json`, written last, with the counts.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import HubertForCTC

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.errors import HiggsAudioError, RecipeError
from higgs_audio.text import phonemize
from higgs_audio.train.align import Alignment, align
from higgs_audio.train.clips import Clip, read_manifests, samples
from higgs_audio.train.phones import phones

CLIPS_PER_PART = 500


@dataclass(frozen=True)
class PrepareRecipe:
    """`data` is a folder with manifests, `tokenizer` and `teacher` checkpoints, `output` the folder to fill.

    Of `num_workers` processes started side by side, each does the parts of its own `worker` number.
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
    worker: int = 0
    num_workers: int = 1


@dataclass(frozen=True)
class Sample:
    """One prepared clip: `phonemes` as the language model reads them, `codes [K, F]`, `phones [F]` as in Alignment."""

    id: str
    text: str
    phonemes: str
    speaker: str
    codes: np.ndarray
    phones: np.ndarray

    @property
    def num_frames(self) -> int:
        return int(self.codes.shape[1])


def prepare(recipe: PrepareRecipe) -> dict[str, int]:
    """Prepares every clip of the split; parts already written are kept. Returns kept and dropped counts by reason."""
    clips = read_manifests(recipe.data, recipe.split, max_seconds=1e9)
    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = HiggsAudioTokenizer.from_pretrained(recipe.tokenizer).eval()
    teacher = HubertForCTC.from_pretrained(recipe.teacher).eval()
    paths = [output / f"part-{number:04d}" for number in range(-(-len(clips) // CLIPS_PER_PART))]
    counts: Counter[str] = Counter()
    for number in range(recipe.worker, len(paths), recipe.num_workers):
        start = number * CLIPS_PER_PART
        if not paths[number].with_suffix(".jsonl").exists():
            prepare_part(clips[start : start + CLIPS_PER_PART], paths[number], tokenizer, teacher, recipe)
        counts.update(reasons(paths[number]))
        print(f"part {number}: {dict(counts)}", file=sys.stderr, flush=True)
    if all(path.with_suffix(".jsonl").exists() for path in paths):
        counts = Counter(reason for path in paths for reason in reasons(path))
        write_atomic(output / "prepared.json", json.dumps(counts, indent=1))
    return dict(counts)


def reasons(path: Path) -> list[str]:
    """Of each clip of a part, "kept" or the reason why not."""
    return [json.loads(line)["kept"] for line in read_lines(path.with_suffix(".jsonl"))]


def prepare_part(
    clips: Sequence[Clip], path: Path, tokenizer: HiggsAudioTokenizer, teacher: HubertForCTC, recipe: PrepareRecipe
) -> None:
    """One part: the tensors first, the lines last, so that a part with lines is whole."""
    lines, codes, aligned, offset = [], [], [], 0
    for clip in clips:
        line: dict[str, Any] = {"id": clip.id, "text": clip.text, "speaker": clip.speaker}
        kept, result = prepare_clip(clip, tokenizer, teacher, recipe)
        line["kept"] = kept
        if result is not None:
            frames = result[0].shape[1]
            line |= {"offset": offset, "frames": frames, "score": round(result[1].score, 3)}
            line["phonemes"] = phonemize(clip.text)
            offset += frames
            codes.append(result[0])
            aligned.append(result[1].frames)
        lines.append(json.dumps(line, ensure_ascii=False))
    empty = np.zeros((tokenizer.config.num_codebooks, 0), np.uint16)
    arrays = {"codes": np.concatenate([empty, *codes], axis=1), "phones": np.concatenate([empty[0], *aligned])}
    save_file(arrays, f"{path}.safetensors.part")
    os.replace(f"{path}.safetensors.part", f"{path}.safetensors")
    write_atomic(path.with_suffix(".jsonl"), "\n".join(lines) + "\n")


def prepare_clip(
    clip: Clip, tokenizer: HiggsAudioTokenizer, teacher: HubertForCTC, recipe: PrepareRecipe
) -> tuple[str, tuple[np.ndarray, Alignment] | None]:
    """`("kept", (codes, alignment))`, or the reason why not and None."""
    if not recipe.min_seconds <= clip.seconds <= recipe.max_seconds:
        return "length", None
    try:
        spoken = phones(clip.text)
        sound = samples(clip, tokenizer.config.sample_rate)
    except HiggsAudioError as error:
        return type(error).__name__, None
    rate = len(spoken) / clip.seconds
    if not recipe.min_phones_per_second <= rate <= recipe.max_phones_per_second:
        return "pace", None
    codes = tokenizer.encode(sound[None, None]).audio_codes
    assert codes is not None
    try:
        alignment = align(teacher, sound, spoken, codes.shape[2])
    except ValueError:
        return "alignment", None
    if alignment.score < recipe.min_score:
        return "score", None
    return "kept", (codes[0].numpy().astype(np.uint16), alignment)


def read_samples(folder: str | Path) -> list[Sample]:
    """All prepared clips of a folder, in order. Raises RecipeError where there are none."""
    found = [sample for path in sorted(Path(folder).glob("part-*.jsonl")) for sample in _part_samples(path)]
    if not found:
        raise RecipeError(f"no prepared clips in {str(folder)!r}: run `higgs-audio train prepare` first")
    return found


def _part_samples(path: Path) -> Iterator[Sample]:
    arrays = load_file(path.with_suffix(".safetensors"))
    for line in map(json.loads, read_lines(path)):
        if line["kept"] == "kept":
            span = slice(line["offset"], line["offset"] + line["frames"])
            fields = {name: line[name] for name in ("id", "text", "phonemes", "speaker")}
            yield Sample(**fields, codes=arrays["codes"][:, span].astype(np.int64), phones=arrays["phones"][span])


def read_lines(path: Path) -> list[str]:
    """Lines of a text file."""
    return path.read_text(encoding="utf-8").splitlines()


def write_atomic(path: Path, text: str) -> None:
    """Writes beside, then renames."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
