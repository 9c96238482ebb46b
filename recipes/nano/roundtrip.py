"""Measures how well an audio tokenizer reconstructs unseen voices: it encodes and decodes `unseen` clips.

    python recipes/nano/roundtrip.py SPEECH_DIR OUT.json [--tokenizer DIR] [--num 6]

Measures `--num` clips of each unseen speaker: the similarity of the decoded clip to the original (Resemblyzer),
DistillMOS and word errors (Whisper base) of both, and the median difference of pitch in semitones over the frames that
are voiced in both. An octave error is a clip whose median pitch differs by more than 9 semitones.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from higgs_audio import NANO, HiggsAudioTokenizer, Waveform
from higgs_audio.audio import read
from higgs_audio.evaluate.metrics import word_errors
from higgs_audio.evaluate.requirements import SPEAKER, WORDS, check_packages
from higgs_audio.listen.asr import transcribe
from higgs_audio.listen.quality import assess
from higgs_audio.listen.speaker import embed, similarity
from higgs_audio.train_codec.pitch import track_pitch

SAMPLE_RATE, HOP = 24_000, 240
KOKORO = ["af_river", "am_liam", "bm_lewis", "bf_emma", "hf_beta", "hm_psi", "if_sara", "im_nicola"]
GROUPS = {"unseen Kokoro voices": KOKORO, "unknown engines and the human": None}  # None: all other speakers
OCTAVE_ERROR = 9.0  # semitones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", default=str(NANO))
    parser.add_argument("--num", type=int, default=6, help="clips of each speaker")
    parser.add_argument("--no-words", action="store_true", help="skip word errors, which take most of the time")
    args = parser.parse_args()
    check_packages(packages=WORDS + SPEAKER)
    tokenizer = HiggsAudioTokenizer.from_pretrained(args.tokenizer)
    clips = unseen_clips(args.speech, args.num)
    items = [measure(tokenizer, clip, args.speech, not args.no_words) for clip in clips]
    args.out.write_text(json.dumps(items, indent=1) + "\n", encoding="utf-8")
    print(table(items))


def unseen_clips(speech: Path, num: int) -> list[dict]:
    """Returns the first `num` unseen clips of each speaker, ordered by sentence."""
    by_speaker = defaultdict(list)
    for manifest in sorted(speech.glob("manifest*.jsonl")):
        for clip in map(json.loads, manifest.read_text(encoding="utf-8").splitlines()):
            if clip.get("split") == "unseen":
                by_speaker[clip["speaker"]].append(clip)
    return [clip for _, clips in sorted(by_speaker.items()) for clip in sorted(clips, key=lambda c: c["id"])[:num]]


def measure(tokenizer: HiggsAudioTokenizer, clip: dict, speech: Path, with_words: bool) -> dict:
    """Encodes and decodes one clip; returns its metrics."""
    original = read(speech / clip["audio"], SAMPLE_RATE)
    samples = torch.from_numpy(original.samples[: len(original.samples) // 960 * 960])[None, None]
    decoded = tokenizer.decode(tokenizer.encode(samples).audio_codes).audio_values[0, 0]
    waveforms = [Waveform(samples[0, 0].numpy(), SAMPLE_RATE), Waveform(decoded.clamp(-1, 1).numpy(), SAMPLE_RATE)]
    pitches = [track_pitch(torch.from_numpy(waveform.samples)[None], HOP, SAMPLE_RATE) for waveform in waveforms]
    both = (pitches[0].voiced > 0) & (pitches[1].voiced > 0)
    semitones = 12 * torch.log2(pitches[1].hz / pitches[0].hz)[both]
    item = {
        "speaker": clip["speaker"],
        "id": clip["id"],
        "similarity": similarity(embed(waveforms[0]), embed(waveforms[1])),
        "mos": [assess(waveform).distill_mos for waveform in waveforms],
        "semitones": float(semitones.median()) if both.any() else float("nan"),
        "hz": float(pitches[0].hz[pitches[0].voiced > 0].median()),
    }
    if with_words:
        results = [word_errors(clip["text"], transcript.text) for transcript in transcribe(waveforms)]
        item |= {"errors": [result.errors for result in results], "words": results[0].total}
    return item


def table(items: list[dict]) -> str:
    titles = ("voices", "clips", "similarity", "DistillMOS, source", "decoded", "WER, source", "decoded")
    lines = ["| " + " | ".join((*titles, "within a semitone", "octave errors")) + " |", "| --- " + "| ---: " * 8 + "|"]
    for name, speakers in GROUPS.items():
        group = [item for item in items if (item["speaker"] in KOKORO) == (speakers is not None)]
        lines += [row(name, group)] if group else []
    for speaker in sorted({item["speaker"] for item in items}):
        lines.append(row(speaker, [item for item in items if item["speaker"] == speaker]))
    return "\n".join(lines)


def row(name: str, items: list[dict]) -> str:
    mean = lambda values: float(np.mean(list(values)))  # noqa: E731
    off = np.abs([item["semitones"] for item in items])
    words = sum(item.get("words", 0) for item in items)
    rates = [100 * sum(item["errors"][k] for item in items) / words if words else float("nan") for k in (0, 1)]
    mos = [mean(item["mos"][k] for item in items) for k in (0, 1)]
    return (
        f"| {name} | {len(items)} | {mean(item['similarity'] for item in items):.3f} | {mos[0]:.2f} | {mos[1]:.2f} | "
        f"{rates[0]:.1f} % | {rates[1]:.1f} % | {100 * mean(off < 1):.0f} % | {int((off > OCTAVE_ERROR).sum())} |"
    )


if __name__ == "__main__":
    main()
