"""Compares the audio tokenizers of `ablation-tokenizer-*.yaml`: round trips, and phones predicted by codebook 0.

    python recipes/ablation_tokenizer.py SPEECH_DIR RUNS_DIR OUT_DIR [--limit 40]

SPEECH_DIR is the output of `nano/speech.py`, RUNS_DIR contains the runs. Word errors, speaker similarity and DistillMOS
are measured on the round trip of `--limit` held-out sentences with alternating voices. `phone` is the share of held-out
frames whose phone, according to flite's phone times, is the most frequent phone of their codebook-0 code in training
clips.
"""

import argparse
import dataclasses
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent / "nano"))
from evaluate import VOICES, round_trip, source_folder

from higgs_audio.audio.files import read
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data.clips import Clip
from higgs_audio.data.manifest import read_manifests
from higgs_audio.evaluate.benchmark import heldout
from higgs_audio.evaluate.metrics import bootstrap_interval
from higgs_audio.evaluate.run import run

ARMS = {
    "both": "ablation-tokenizer-both.yaml",
    "acoustic alone": "ablation-tokenizer-acoustic.yaml",
    "unheard": "ablation-tokenizer-unheard.yaml",
}
NUM_TRAIN_CLIPS, NUM_HELDOUT_CLIPS = 1500, 300  # clips whose phones are counted, and predicted
FRAMES_PER_SECOND = 25


def main() -> None:
    args = parse_arguments()
    out = Path(args.out)
    models = {
        arm: Path(args.runs) / recipe.removeprefix("ablation-").removesuffix(".yaml") / "model"
        for arm, recipe in ARMS.items()
    }
    source = source_folder(Path(args.speech), out / "source")
    systems = {"source": source} | {arm: partial(reconstruct, source, str(model)) for arm, model in models.items()}
    run(systems, dataclasses.replace(heldout(tuple(VOICES), args.limit), rotated=True), out)
    lines = ["| tokenizer | frames | phone % (95 %) |", "| --- | ---: | ---: |"]
    for arm, model in models.items():
        lines.append(phone_row(arm, HiggsAudioTokenizer.from_pretrained(model), args.speech))
    report = (out / "table.md").read_text(encoding="utf-8") + "\n" + "\n".join(lines) + "\n"
    (out / "ablation.md").write_text(report, encoding="utf-8")
    print(report)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech")
    parser.add_argument("runs")
    parser.add_argument("out")
    parser.add_argument("--limit", type=int, default=40)
    return parser.parse_args()


def reconstruct(source: Path, model: str, text: str, voice: str, draw: int):
    return round_trip(source, model, text, voice)


def phone_row(arm: str, tokenizer: HiggsAudioTokenizer, speech: str) -> str:
    counts: dict[int, Counter] = defaultdict(Counter)
    for clip in clips_with_phones(speech, "train", NUM_TRAIN_CLIPS):
        for code, phone in frames(clip, tokenizer):
            counts[code][phone] += 1
    most_frequent = sum(counts.values(), Counter()).most_common(1)[0][0]  # for codes that training clips lack
    predicted = {code: phones.most_common(1)[0][0] for code, phones in counts.items()}
    correct, total = [], []
    for clip in clips_with_phones(speech, "heldout", NUM_HELDOUT_CLIPS):
        pairs = list(frames(clip, tokenizer))
        correct.append(sum(predicted.get(code, most_frequent) == phone for code, phone in pairs))
        total.append(len(pairs))
    low, high = bootstrap_interval(correct, total)
    share = sum(correct) / sum(total)
    return f"| {arm} | {sum(total)} | {100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f}) |"


def clips_with_phones(speech: str, split: str, limit: int) -> list[Clip]:
    """Returns the first clips for which a synthesizer reported phone times, the same for every tokenizer."""
    return [clip for clip in read_manifests(speech, split) if clip.phones][:limit]


def frames(clip: Clip, tokenizer: HiggsAudioTokenizer) -> Iterator[tuple[int, str]]:
    """Yields (code of codebook 0, phone at the frame's middle) for each frame outside pauses."""
    samples = torch.from_numpy(read(clip.audio, tokenizer.config.sample_rate).samples)
    codes = tokenizer.encode(samples[None, None]).audio_codes[0, 0].tolist()
    for number, code in enumerate(codes):
        middle = (number + 0.5) / FRAMES_PER_SECOND
        for phone, start, end in clip.phones:
            if start <= middle < end:
                yield code, phone
                break


if __name__ == "__main__":
    main()
