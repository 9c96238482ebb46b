"""The table of docs/measurements.md: source voices, their codec round trip, and nano, with the same metrics.

    python recipes/nano/evaluate.py SPEECH_DIR OUT_DIR [--checkpoint DIR] [--systems source codec nano] [--limit N]

SPEECH_DIR is the output of `speech.py`. Resumable: OUT_DIR/items.jsonl keeps the results.
"""

import argparse
import json
import sys
from functools import lru_cache
from pathlib import Path

import torch

from higgs_audio import NANO, HiggsAudio
from higgs_audio.audio.files import read, write
from higgs_audio.audio.waveform import Waveform
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.evaluate.benchmark import heldout
from higgs_audio.evaluate.item import Synthesis
from higgs_audio.evaluate.plots import plot_mel_spectrograms
from higgs_audio.evaluate.run import run

VOICES = {"heart": "ava", "joe": "joe", "slt": "sally", "awb": "angus"}  # of the recordings -> of nano
PICTURED = ("heart", 4)  # voice and sentence of the spectrograms


def main() -> None:
    args = parse_arguments()
    out = Path(args.out)
    systems = {
        "source": source_folder(Path(args.speech), out / "source"),
        "codec": lambda text, voice, number: round_trip(out / "source", args.checkpoint, text, voice),
        "nano": lambda text, voice, number: speak(args.checkpoint, text, voice, number),
    }
    chosen = {name: systems[name] for name in args.systems}
    run(chosen, heldout(tuple(VOICES), args.limit), out)
    print((out / "table.md").read_text(encoding="utf-8"))
    if {"codec", "nano"} <= set(chosen):
        picture(systems, out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech")
    parser.add_argument("out")
    parser.add_argument("--checkpoint", default=str(NANO))
    parser.add_argument("--systems", nargs="+", default=["source", "codec", "nano"])
    parser.add_argument("--limit", type=int, help="only the first so many sentences")
    return parser.parse_args()


def source_folder(speech: Path, folder: Path) -> Path:
    """Links to held-out recordings, named as the evaluation expects: `voice/index.wav`."""
    for manifest in sorted(speech.glob("manifest*.jsonl")):
        for line in manifest.read_text(encoding="utf-8").splitlines():
            clip = json.loads(line)
            if clip["split"] == "heldout":
                place = folder / clip["voice"] / f"{clip['id'].split('-')[1]}.wav"
                place.parent.mkdir(parents=True, exist_ok=True)
                if not place.exists():
                    place.symlink_to((speech / clip["audio"]).resolve())
    return folder


def round_trip(source: Path, checkpoint: str, text: str, voice: str) -> Waveform:
    """The source's recording of the text, through the audio tokenizer and back."""
    index = next(s.index for s in heldout().sentences if s.text == text)
    codec = codec_of(checkpoint)
    waveform = read(source / voice / f"{index:03d}.wav", codec.config.sample_rate)
    codes = codec.encode(torch.from_numpy(waveform.samples)[None, None]).audio_codes
    sound = codec.decode(codes).audio_values[0, 0].clamp(-1, 1)
    return Waveform(sound[: len(waveform.samples)].numpy(), codec.config.sample_rate)


def speak(checkpoint: str, text: str, voice: str, seed: int) -> Synthesis:
    """nano's output, seeded by the number of the draw."""
    speech = model_of(checkpoint).generate(text, voice=VOICES[voice], seed=seed)
    return Synthesis(speech.waveform, speech.finish_reason == "stop")


@lru_cache
def codec_of(checkpoint: str):
    return HiggsAudioTokenizer.from_pretrained(checkpoint, device_map="auto")


@lru_cache
def model_of(checkpoint: str) -> HiggsAudio:
    return HiggsAudio.from_pretrained(checkpoint)


def picture(systems: dict, out: Path) -> None:
    """Mel spectrograms of one sentence by all three, and the audio."""
    voice, index = PICTURED
    text = heldout().sentences[index].text
    sounds = {
        "source": read(systems["source"] / voice / f"{index:03d}.wav"),
        "codec round trip": systems["codec"](text, voice, 0),
        "nano": systems["nano"](text, voice, 0).waveform,
    }
    plot_mel_spectrograms(sounds, out / "spectrograms.png")
    for name, sound in sounds.items():
        write(sound, out / f"{name.replace(' ', '-')}.wav")
    print(f"spectrograms of {text!r} in {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
