"""Compares the language models of `ablation-lm-*.yaml`: held-out losses, word errors and voices, as a table and a plot.

    python recipes/ablation_lm.py SPEECH_DIR RUNS_DIR OUT_DIR [--limit 100] [--heldout runs/nano/prepared-heldout]

SPEECH_DIR is the output of `nano/speech.py` for the held-out sentences, RUNS_DIR contains the runs. Losses are measured
on held-out clips, prompted with the name of their voice, with 95 % intervals over clips; `less` is the paired
difference from the DualFFN. Word errors and voices are measured on `--limit` sentences with alternating voices, one
draw each.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parent / "nano"))
from evaluate import VOICES, source_folder

from higgs_audio import NANO, HiggsAudio, HiggsAudioForConditionalGeneration, HiggsAudioProcessor
from higgs_audio.data.shards import read_encoded_clips
from higgs_audio.evaluate.benchmark import heldout
from higgs_audio.evaluate.item import Synthesis
from higgs_audio.evaluate.metrics import bootstrap_interval
from higgs_audio.evaluate.run import run
from higgs_audio.train_lm.collate import collate
from higgs_audio.train_lm.composer import Composer, ExampleMix
from higgs_audio.train_lm.losses import LanguageModelLoss, counts

ARMS = {"DualFFN": "lm-dual", "one feed-forward": "lm-single", "one of twice the width": "lm-equal"}
PROFILES = {"heart": "Ava", "joe": "Joe", "slt": "Sally", "awb": "Angus"}
SAMPLING = {"temperature": 0.3, "top_k": 30, "top_p": 0.95, "eos_codebooks": 1, "text_guidance_scale": 1.0}
NUM_CODEBOOKS = 8
NUM_CLIPS = 400


def main() -> None:
    args = parse_arguments()
    out, runs = Path(args.out), Path(args.runs)
    out.mkdir(parents=True, exist_ok=True)
    models = {arm: runs / folder / "model" for arm, folder in ARMS.items()}
    losses = {
        arm: cached_losses(out / f"losses-{ARMS[arm]}.json", model, args.heldout) for arm, model in models.items()
    }
    source = source_folder(Path(args.speech), out / "source")
    systems: dict[str, Any] = {"source": source} | {arm: synthesizer(model) for arm, model in models.items()}
    run(systems, dataclasses.replace(heldout(tuple(VOICES), args.limit), rotated=True), out)
    report = loss_table(losses) + "\n\n" + (out / "table.md").read_text(encoding="utf-8")
    (out / "ablation.md").write_text(report + "\n", encoding="utf-8")
    plot({arm: metrics(runs / folder) for arm, folder in ARMS.items()}, losses, out / "ablation.png")
    print(report)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech")
    parser.add_argument("runs")
    parser.add_argument("out")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--heldout", default="runs/nano/prepared-heldout")
    return parser.parse_args()


def cached_losses(path: Path, model: Path, heldout: str) -> np.ndarray:
    """Returns `clip_losses`, cached in the file `path`."""
    if not path.exists():
        path.write_text(json.dumps(clip_losses(model, heldout)), encoding="utf-8")
    return np.array(json.loads(path.read_text(encoding="utf-8")))


@torch.no_grad()
def clip_losses(model: Path, folder: str) -> list[list[list[float]]]:
    """Returns the sum of the losses and the number of labels of each held-out clip and codebook, [N, K, 2]."""
    processor = HiggsAudioProcessor.from_pretrained(NANO)
    criterion = LanguageModelLoss(HiggsAudioForConditionalGeneration.from_pretrained(model, dtype=torch.float32)).eval()
    samples = [sample for sample in read_encoded_clips(folder) if sample.speaker in PROFILES][:NUM_CLIPS]
    composer = Composer(samples, PROFILES, "heart", ExampleMix(reference=0.0, plain=0.0))
    losses = []
    for number in range(len(samples)):
        dialogue = composer.compose(number, torch.Generator().manual_seed(number))
        batch = collate([dialogue], processor)
        sums, labels = criterion(batch), counts(batch, criterion.model.config.audio_stream_eos_id)
        losses.append([[float(sums[f"codebook_{k}"]), labels[f"codebook_{k}"]] for k in range(NUM_CODEBOOKS)])
    return losses


def synthesizer(model: Path) -> Callable[[str, str, int], Synthesis]:
    """Returns a system to evaluate: this language model with nano's audio tokenizer."""

    @cache
    def load() -> HiggsAudio:
        processor = HiggsAudioProcessor.from_pretrained(NANO)
        voices = {name: {"profile": profile} for name, profile in PROFILES.items()}
        return HiggsAudio(
            HiggsAudioForConditionalGeneration.from_pretrained(model, dtype=torch.float32), processor, voices
        )

    def synthesize(text: str, voice: str, draw: int) -> Synthesis:
        speech = load().generate(text, voice, seed=draw, **SAMPLING)
        return Synthesis(speech.waveform, speech.finish_reason == "stop")

    return synthesize


def loss_table(losses: dict[str, np.ndarray]) -> str:
    """Returns a table of the mean losses in nats, by codebook and overall, and the paired difference from the first
    arm."""
    first = next(iter(losses.values()))
    lines = ["| | " + " | ".join([*map(str, range(NUM_CODEBOOKS)), "all", "DualFFN less (95 %)"]) + " |"]
    lines.append("| --- |" + " ---: |" * (NUM_CODEBOOKS + 2))
    for arm, values in losses.items():
        means = values[..., 0].sum(0) / values[..., 1].sum(0)
        difference = values[..., 0].sum(1) - first[..., 0].sum(1)  # [N]
        labels = values[..., 1].sum(1)
        low, high = bootstrap_interval(difference, labels)
        cells = [*(f"{mean:.2f}" for mean in means), f"{values[..., 0].sum() / labels.sum():.3f}"]
        cells.append("-" if values is first else f"{difference.sum() / labels.sum():.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "heldout" in line]


def plot(curves: dict[str, list[dict[str, float]]], losses: dict[str, np.ndarray], path: Path) -> None:
    """Plots the held-out loss over the steps, and the final loss of each codebook with its interval."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for number, (arm, curve) in enumerate(curves.items()):
        left.plot([line["step"] for line in curve], [line["heldout_0"] for line in curve], marker="o", label=arm)
        values = losses[arm]
        means = values[..., 0].sum(0) / values[..., 1].sum(0)
        limits = np.array([bootstrap_interval(values[:, k, 0], values[:, k, 1]) for k in range(NUM_CODEBOOKS)]).T
        positions = np.arange(NUM_CODEBOOKS) + 0.25 * (number - 1)
        right.errorbar(positions, means, [means - limits[0], limits[1] - means], fmt="o", capsize=3, label=arm)
    left.set(xlabel="step", ylabel="held-out loss of codebook 0, nats")
    right.set(xlabel="codebook", ylabel="held-out loss at the end, nats, 95 %")
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
