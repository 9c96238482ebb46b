"""Derives new speakers from recorded ones with the WORLD vocoder: formants, pitch, its range, breathiness and pace.

    python recipes/nano/vary.py SPEECH_DIR OUT_DIR [--worker 0/2] [--copies 1]

A speaker's training clips are divided into groups of GROUP; each group and copy becomes one new speaker, whose change
depends only on its name. Each new speaker thus has several clips, which can serve as references. Writes
OUT_DIR/wav/*.wav and OUT_DIR/manifest-varied-WORKER.jsonl; a run that was interrupted can be continued. Clips that have
no pitch or are clipped are dropped, with the reason in OUT_DIR/dropped-varied-WORKER.jsonl.

Source: WORLD (Morise et al. 2016), through pyworld.
"""

import argparse
import dataclasses
import json
import random
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyworld
import soundfile
from kokoro import write_clip
from speech import SAMPLE_RATE, finished_ids

GROUP = 6  # clips of a new speaker
FRAME_MS = 5.0
PITCHES_HZ = (62.0, 390.0)  # range of the median pitch of a new speaker
MIN_VOICED_SHARE = 0.15  # of the frames
CLIPPED = 0.999  # magnitude from which a sample counts as clipped


@dataclasses.dataclass(frozen=True)
class Change:
    """The change of a voice: factors, except `breath`, the share of noise added to voiced spectra."""

    formants: float
    pitch: float
    pitch_range: float
    breath: float
    pace: float


def main() -> None:
    args = parse_arguments()
    worker, num_workers = map(int, args.worker.split("/"))
    (args.out / "wav").mkdir(parents=True, exist_ok=True)
    manifest, dropped = (args.out / f"{name}-varied-{worker}.jsonl" for name in ("manifest", "dropped"))
    done = finished_ids(manifest) | finished_ids(dropped)
    with manifest.open("a", encoding="utf-8") as clip_lines, dropped.open("a", encoding="utf-8") as dropped_lines:
        for index, (job, source) in enumerate(jobs(args.speech, args.copies)):
            if index % num_workers == worker and job["id"] not in done:
                clip = vary(job, args.speech / source, args.out)
                print(json.dumps(clip), file=clip_lines if "audio" in clip else dropped_lines, flush=True)
                if index % 500 < num_workers:
                    print(index, job["id"], file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--worker", default="0/1", help="number of this worker / number of workers")
    parser.add_argument("--copies", type=int, default=1, help="new speakers of each group of clips")
    return parser.parse_args()


def jobs(speech: Path, copies: int) -> Iterator[tuple[dict, str]]:
    """Yields new clips and their source files: every training clip once for each copy."""
    by_speaker = defaultdict(list)
    for manifest in sorted(speech.glob("manifest*.jsonl")):
        for clip in map(json.loads, manifest.read_text(encoding="utf-8").splitlines()):
            if clip["split"] == "train" and "*" not in clip["speaker"] and "~" not in clip["speaker"]:
                by_speaker[clip["speaker"]].append(clip)
    for copy in range(copies):
        for speaker, clips in sorted(by_speaker.items()):
            shuffled = sorted(clips, key=lambda clip: zlib.crc32(f"{copy} {clip['id']}".encode()))
            for position, clip in enumerate(shuffled):
                new = f"{speaker}~{copy}.{position // GROUP}"
                job = {"id": f"{clip['id']}~{copy}", "text": clip["text"], "speaker": new, "split": "train"}
                yield job, clip["audio"]


def draw(speaker: str, hz: float) -> Change:
    """Draws the change of a new speaker, whose clips have a mean pitch of about `hz`."""
    rng = random.Random(speaker)
    formants = 2 ** rng.uniform(-0.28, 0.28)
    # a longer vocal tract usually has a lower pitch, but not always
    pitch = 2 ** (rng.uniform(-0.5, 0.5) + 0.9 * np.log2(formants))
    pitch = float(np.clip(pitch, PITCHES_HZ[0] / hz, PITCHES_HZ[1] / hz))
    breath = max(0.0, rng.uniform(-0.3, 0.35))
    return Change(formants, pitch, rng.uniform(0.7, 1.35), breath, rng.uniform(0.88, 1.14))


def vary(job: dict, source: Path, out: Path) -> dict:
    """Changes and writes a clip; returns its manifest line, or a line with the reason for dropping it."""
    samples, _ = soundfile.read(source, dtype="float64")
    if np.mean(np.abs(samples) > CLIPPED) > 1e-4:
        return job | {"reason": "clipped"}
    coarse, times = pyworld.dio(samples, SAMPLE_RATE, f0_floor=50.0, f0_ceil=500.0, frame_period=FRAME_MS)
    pitch = pyworld.stonemask(samples, coarse, times, SAMPLE_RATE)
    voiced = pitch > 0
    if voiced.mean() < MIN_VOICED_SHARE:
        return job | {"reason": "no pitch"}
    mean = float(np.exp(np.log(pitch[voiced]).mean()))
    change = draw(job["speaker"], round_pitch(mean))
    envelope = pyworld.cheaptrick(samples, pitch, times, SAMPLE_RATE)
    noise = pyworld.d4c(samples, pitch, times, SAMPLE_RATE)
    pitch[voiced] = change.pitch * mean * (pitch[voiced] / mean) ** change.pitch_range
    envelope, noise = (stretch(spectra, change.formants) for spectra in (envelope, noise))
    noise = np.clip(noise + change.breath * (1 - noise) * voiced[:, None], 0, 1)
    frames = np.arange(0, len(pitch) - 1, change.pace)
    parts = (pitch[np.round(frames).astype(int)], interpolate(envelope, frames), interpolate(noise, frames))
    varied = pyworld.synthesize(*map(np.ascontiguousarray, parts), SAMPLE_RATE, FRAME_MS)
    return write_clip(varied.astype(np.float32), SAMPLE_RATE, job | {"change": dataclasses.asdict(change)}, out)


def round_pitch(hz: float) -> float:
    """Rounds a pitch to a third of an octave, so that all clips of a speaker get the same change."""
    return float(2 ** (round(3 * np.log2(hz)) / 3))


def stretch(spectra: np.ndarray, factor: float) -> np.ndarray:
    """Stretches the frequency axis of spectra `[T, bins]` by `factor`."""
    bins = np.arange(spectra.shape[1])
    return np.stack([np.interp(bins / factor, bins, row) for row in spectra])


def interpolate(spectra: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Interpolates spectra `[T, bins]` linearly at fractional frames."""
    left = frames.astype(int)
    share = (frames - left)[:, None]
    return (1 - share) * spectra[left] + share * spectra[np.minimum(left + 1, len(spectra) - 1)]


if __name__ == "__main__":
    main()
