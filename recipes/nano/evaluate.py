"""Evaluates source voices, their codec round trip, and nano, with the same metrics: the table of docs/measurements.md.

    python recipes/nano/evaluate.py SPEECH_DIR OUT_DIR [--checkpoint DIR] [--systems source codec nano] [--limit N]

SPEECH_DIR is the output of `speech.py`. Resumable: the results are in OUT_DIR/items.jsonl.
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

VOICES = {"heart": "ava", "joe": "joe", "slt": "sally", "awb": "angus"}  # voice of the recordings -> voice of nano
PLOTTED = ("heart", 4)  # voice and sentence of the spectrograms


def main() -> None:
    args = parse_arguments()
    out = Path(args.out)
    systems = {
        "source": source_folder(Path(args.speech), out / "source"),
        "codec": lambda text, voice, number: round_trip(out / "source", args.checkpoint, text, voice),
        "nano": lambda text, voice, number: generate(args.checkpoint, text, voice, number),
    }
    chosen = {name: systems[name] for name in args.systems}
    run(chosen, heldout(tuple(VOICES), args.limit), out)
    print((out / "table.md").read_text(encoding="utf-8"))
    if {"codec", "nano"} <= set(chosen):
        save_spectrograms(systems, out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech")
    parser.add_argument("out")
    parser.add_argument("--checkpoint", default=str(NANO))
    parser.add_argument("--systems", nargs="+", default=["source", "codec", "nano"])
    parser.add_argument("--limit", type=int, help="number of sentences; all by default")
    return parser.parse_args()


def source_folder(speech: Path, folder: Path) -> Path:
    """Creates links to the held-out recordings, named as the evaluation expects: `voice/index.wav`."""
    for manifest in sorted(speech.glob("manifest*.jsonl")):
        for line in manifest.read_text(encoding="utf-8").splitlines():
            clip = json.loads(line)
            if clip["split"] == "heldout":
                link = folder / clip["voice"] / f"{clip['id'].split('-')[1]}.wav"
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to((speech / clip["audio"]).resolve())
    return folder


def round_trip(source: Path, checkpoint: str, text: str, voice: str) -> Waveform:
    """Encodes and decodes the source's recording of a text."""
    index = next(s.index for s in heldout().sentences if s.text == text)
    codec = load_codec(checkpoint)
    waveform = read(source / voice / f"{index:03d}.wav", codec.config.sample_rate)
    codes = codec.encode(torch.from_numpy(waveform.samples)[None, None]).audio_codes
    decoded = codec.decode(codes).audio_values[0, 0].clamp(-1, 1)
    return Waveform(decoded[: len(waveform.samples)].numpy(), codec.config.sample_rate)


def generate(checkpoint: str, text: str, voice: str, seed: int) -> Synthesis:
    """Generates speech with nano; the number of the draw is the seed."""
    speech = load_model(checkpoint).generate(text, voice=VOICES[voice], seed=seed)
    return Synthesis(speech.waveform, speech.finish_reason == "stop")


@lru_cache
def load_codec(checkpoint: str):
    return HiggsAudioTokenizer.from_pretrained(checkpoint, device_map="auto")


@lru_cache
def load_model(checkpoint: str) -> HiggsAudio:
    return HiggsAudio.from_pretrained(checkpoint)


def save_spectrograms(systems: dict, out: Path) -> None:
    """Saves mel spectrograms of one sentence by all three systems, and its audio."""
    voice, index = PLOTTED
    text = heldout().sentences[index].text
    waveforms = {
        "source": read(systems["source"] / voice / f"{index:03d}.wav"),
        "codec round trip": systems["codec"](text, voice, 0),
        "nano": systems["nano"](text, voice, 0).waveform,
    }
    plot_mel_spectrograms(waveforms, out / "spectrograms.png")
    for name, waveform in waveforms.items():
        write(waveform, out / f"{name.replace(' ', '-')}.wav")
    print(f"spectrograms of {text!r} in {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
