"""Compares training speed: this package, transformers, and dense models in place of the DualFFN.

    python benchmarks/training.py RECIPE.yaml OUT.json [--rounds 5] [--steps 4] [--set key=value ...]

RECIPE trains a language model (`recipes/ablation-lm-dual.yaml`). Its features that transformers lacks are switched off,
so that all rows do the same work: forward, loss of text and of each codebook, backward, clipping, AdamW. A round trains
every row on the same `--steps` batches; ratios are medians of the ratios within a round. "dense" has one feed-forward
network of the recipe's width, "equal" one of twice that width: as many parameters as the DualFFN.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from engine import transformers_model
from timing import clock, median_and_range

from higgs_audio.data.shards import read_encoded_clips
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm.batches import BatchOrder, training_steps
from higgs_audio.train_lm.composer import Composer, usable
from higgs_audio.train_lm.lm import build_module, micro_batcher, train_step
from higgs_audio.train_lm.recipe import LanguageModelRecipe, example_mix
from higgs_audio.train_lm.start import initial_model
from higgs_audio.training.parallel import World, init_distributed
from higgs_audio.training.recipe import load_recipe
from higgs_audio.training.run import apply_step, decay_groups

COMPARABLE = {
    "reference_share": 0.0,
    "several_share": 0.0,
    "guide_weight": 0.0,
    "phone_weight": 0.0,
    "text_weight": 1.0,
    "corruption": 0.0,
    "final_corruption": 0.0,
    "codebook_weights": (1.0,) * 8,
}
FRAME_RATE = 25
Step = Callable[[Any, int], None]


def main() -> None:
    args = parse_arguments()
    recipe = replace(
        load_recipe(args.recipe, LanguageModelRecipe, dict(entry.split("=", 1) for entry in args.set)), **COMPARABLE
    )
    world = init_distributed(recipe.device)
    processor = HiggsAudioProcessor.from_pretrained(recipe.processor)
    batches, seconds = prepare(recipe, processor, world, args.steps)
    rows = step_functions(recipe, processor, world)
    rounds = [{name: measure(step, batches) for name, step in rows.items()} for _ in range(args.rounds + 1)][1:]
    report = summary(rounds, seconds, args)
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML recipe of a language model")
    parser.add_argument("out", help="JSON report")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="training steps of a round (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    return parser.parse_args()


def prepare(
    recipe: LanguageModelRecipe, processor: HiggsAudioProcessor, world: World, num_steps: int
) -> tuple[list[Any], float]:
    """Returns the micro-batches of `num_steps` steps, and the seconds of audio in them."""
    samples = usable(read_encoded_clips(recipe.data), recipe.profiles)
    composer = Composer(samples, recipe.profiles, recipe.default_speaker, example_mix(recipe))
    batcher = micro_batcher(recipe, initial_model(recipe, processor), processor, world, {})
    steps = training_steps(composer, samples, BatchOrder(recipe.batch_positions, 0, recipe.seed), 0, batcher, 0)
    batches = [batcher.finish(parts, number, 0.0) for number, (parts, _) in enumerate(islice(steps, num_steps))]
    frames = sum(int((batch.inputs["audio_labels"][..., 0] >= 0).sum()) for step in batches for batch in step)
    return batches, frames / FRAME_RATE


def step_functions(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor, world: World) -> dict[str, Step]:
    """Returns, for each row, a function that runs one step, given its micro-batches and its number."""
    wide = {**recipe.text_config, "intermediate_size": 2 * recipe.text_config["intermediate_size"]}
    recipes = {
        "DualFFN": recipe,
        "dense": replace(recipe, audio_adapter_type="stack"),
        "equal": replace(recipe, audio_adapter_type="stack", text_config=wide),
    }
    reference = transformers_model(copy.deepcopy(initial_model(recipe, processor))).train().to(world.device)
    rows = {"transformers": transformers_step(reference, recipe)}
    return rows | {name: package_step(variant, processor, world) for name, variant in recipes.items()}


def package_step(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor, world: World) -> Step:
    module = build_module(initial_model(recipe, processor).train(), recipe, world)
    optimizer = torch.optim.AdamW(decay_groups(module, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    return lambda batches, number: train_step(module, optimizer, batches, recipe, world, number) and None


def transformers_step(model: Any, recipe: LanguageModelRecipe) -> Step:
    """Returns a step of the training loop in the transformers documentation: loss of the forward pass, backward,
    optimizer step."""
    optimizer = torch.optim.AdamW(decay_groups(model, recipe.weight_decay), betas=(0.9, 0.98), fused=True)

    def step(batches: Any, number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            inputs = {name: value.to(model.device) for name, value in batch.inputs.items()}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                loss = model(**inputs, use_cache=False).loss
            loss.backward()
        apply_step(float(loss.detach()), model, optimizer, 1e-4, recipe.max_norm)

    return step


def measure(step: Step, batches: list[Any]) -> float:
    """Returns the seconds that the steps take."""
    start = clock()
    for number, batch in enumerate(batches):
        step(batch, number)
    return clock() - start


def summary(rounds: list[dict[str, float]], seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for name in rounds[0]:
        seconds_per_round = [times[name] for times in rounds]
        rows.append(
            {
                "row": name,
                "seconds of sound a second": seconds / statistics.median(seconds_per_round),
                "over transformers": median_and_range([times["transformers"] / times[name] for times in rounds]),
                "over dense": median_and_range([times["dense"] / times[name] for times in rounds]),
            }
        )
    return {"arguments": vars(args), "threads": torch.get_num_threads(), "seconds of sound": seconds, "rows": rows}


def table(report: dict[str, Any]) -> str:
    lines = ["| | audio trained per second | times transformers | of dense |", "| --- | ---: | ---: | ---: |"]
    for row in report["rows"]:
        ratio, share = row["over transformers"], row["over dense"]
        lines.append(
            f"| {row['row']} | {row['seconds of sound a second']:.1f} s | "
            f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}) | "
            f"{100 * share[0]:.0f} % ({100 * share[1]:.0f} to {100 * share[2]:.0f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
