"""Training of the language model: one loop for one process or many."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from higgs_audio.data.phones import PHONES
from higgs_audio.data.shards import EncodedClip, Fingerprint, codec_fingerprint, read_encoded_clips
from higgs_audio.errors import RecipeError, first_line, nearest
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm.batches import BatchOrder, MicroBatcher, training_steps
from higgs_audio.train_lm.collate import Batch
from higgs_audio.train_lm.composer import Composer, usable
from higgs_audio.train_lm.guide import Guide
from higgs_audio.train_lm.heldout import evaluate_heldout
from higgs_audio.train_lm.lora import add_lora, freeze_except, merge_adapters
from higgs_audio.train_lm.losses import LanguageModelLoss, counts, weighted_loss
from higgs_audio.train_lm.recipe import (
    LanguageModelRecipe,
    check_numbers,
    example_mix,
    interpolate,
    is_guided,
    lora_options,
    loss_weights,
    without_guide,
)
from higgs_audio.train_lm.samples import generate_samples
from higgs_audio.train_lm.start import check_recipe_fits, compile_modules, initial_model
from higgs_audio.train_lm.tokens import add_tokens, check_trained
from higgs_audio.training.parallel import PRECISIONS, World, init_distributed, shard
from higgs_audio.training.recipe import save_recipe
from higgs_audio.training.run import Run, apply_step, decay_groups, learning_rate, seed_step
from higgs_audio.training.sharded import ShardedState


def train_language_model(recipe: LanguageModelRecipe) -> Path:
    """Trains the language model; writes a checkpoint to `output/model` and returns that path.

    Raises:
        RecipeError: the recipe has impossible values, or a data loading process was killed.
        NumericsError: a loss is not finite.
        CheckpointError: a checkpoint cannot be read or written.
        OptionError: the device is not available.
    """
    check_numbers(recipe)
    for name in ("precision", "frozen_precision"):
        if getattr(recipe, name) not in PRECISIONS:
            raise RecipeError(f"{name}={getattr(recipe, name)!r}; {nearest(getattr(recipe, name), PRECISIONS)}")
    world = init_distributed(recipe.device)
    try:
        return _train(recipe, world)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch reports it through a signal, at any point of a step
            raise
        raise RecipeError(
            f"a data loading process was killed ({first_line(error)}). The last checkpoint in {recipe.output!r} is "
            f"complete: start the same run again to resume it. Fewer than num_workers={recipe.num_workers} processes "
            "need less memory; 0 loads the data in the training process"
        ) from error
    finally:
        world.destroy()


def _train(recipe: LanguageModelRecipe, world: World) -> Path:
    processor = HiggsAudioProcessor.from_pretrained(recipe.processor)
    add_tokens(processor, recipe.new_tokens)
    fingerprint = expected_fingerprint(processor, recipe.processor)
    samples = usable(read_encoded_clips(recipe.data, fingerprint), recipe.profiles)
    heldout = read_encoded_clips(recipe.heldout, fingerprint)
    if not any(len(sample.phones) for sample in samples):
        recipe = without_guide(recipe)
    composer = Composer(samples, recipe.profiles, recipe.default_speaker, example_mix(recipe))
    model = initial_model(recipe, processor).train()
    check_recipe_fits(recipe, model)
    if recipe.sample_every and processor.audio_tokenizer is None:
        raise RecipeError(
            f"sample_every={recipe.sample_every}, but {recipe.processor!r} has no audio tokenizer to decode samples; "
            "add one, or set sample_every to 0"
        )
    speakers = {name: number for number, name in enumerate(sorted({sample.speaker for sample in samples}))}
    module = build_module(model, recipe, world, len(speakers))
    optimizer = torch.optim.AdamW(decay_groups(module, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    run = Run(recipe.output, recipe.save_every, recipe.log_every, quiet=not world.is_first)
    state = ShardedState(run.folder, module, optimizer, world)
    num_done, cursor = state.resume()
    step = run.continue_from(num_done)
    if world.is_first:
        save_recipe(recipe, run.folder / "recipe.yaml")
    batcher = micro_batcher(recipe, model, processor, world, speakers if recipe.name_weight else {})
    if recipe.num_workers and world.device.type == "cuda":
        torch.set_num_threads(1)  # leaves the cores to the workers; threads that wait for each other delay the step
    order = BatchOrder(recipe.batch_positions, int(recipe.short_share * recipe.num_steps), recipe.seed)
    steps = training_steps(composer, samples, order, step, batcher, recipe.num_workers, cursor)
    while step < recipe.num_steps and not run.has_plateaued("heldout", recipe.patience):
        seed_step(recipe.seed, step)
        corruption = interpolate(recipe.corruption, recipe.final_corruption, step / recipe.num_steps)
        collated, cursor = next(steps)
        values = train_step(module, optimizer, batcher.finish(collated, step, corruption), recipe, world, step)
        step += 1
        run.log(step, values)
        evaluate(module, recipe, processor, heldout, world, run, step)
        if run.should_save(step, recipe.num_steps):
            state.save(step, cursor)
    if module.guide is not None:
        module.guide.close()
    return export(module, recipe, run.folder / "model", world, processor)


def evaluate(
    module: LanguageModelLoss,
    recipe: LanguageModelRecipe,
    processor: HiggsAudioProcessor,
    heldout: Sequence[EncodedClip],
    world: World,
    run: Run,
    step: int,
) -> None:
    """Records held-out losses and audio samples at the steps given by the recipe, and exports the best model."""
    if step % recipe.check_every == 0 or step == recipe.num_steps:
        run.record(step, evaluate_heldout(module, heldout, recipe, processor))
        if recipe.patience and run.is_best("heldout"):
            export(module, recipe, run.folder / "best", world, processor)
    if recipe.sample_every and step % recipe.sample_every == 0:
        run.record(step, sample(module, recipe, processor, heldout, world, step))


def expected_fingerprint(processor: HiggsAudioProcessor, folder: str) -> Fingerprint:
    """Returns the fingerprint that prepared clips must match.

    It contains the number and size of the codebooks, and identifies the audio tokenizer if the folder has one.
    """
    config = processor.config
    sizes = {"num_codebooks": str(config.audio_num_codebooks), "codebook_size": str(config.audio_codebook_size)}
    tokenizer = processor.audio_tokenizer if (Path(folder) / config.codec).is_dir() else None
    return sizes if tokenizer is None else codec_fingerprint(tokenizer)


def build_module(
    model: HiggsAudioForConditionalGeneration, recipe: LanguageModelRecipe, world: World, num_speakers: int = 0
) -> LanguageModelLoss:
    """Returns the model with its guide, on the device, with untrained parts frozen; shards it over several processes.

    Raises:
        RecipeError: an attention implementation or a precision that is not available, or no trained parameters.
    """
    if lora := lora_options(recipe):
        add_lora(model, lora)
    else:
        freeze_except(model, recipe.train)
    check_trained(model, recipe.new_tokens)
    cast_frozen(model, recipe.frozen_precision, world)
    try:
        model.set_attn_implementation(recipe.attention)
    except (ValueError, ImportError) as error:  # no such name, or its package is not installed
        raise RecipeError(f"attention={recipe.attention!r}: {first_line(error)}") from error
    if recipe.compile:
        compile_modules(model)
    if recipe.gradient_checkpointing:
        renamed = getattr(model, "activation_checkpointing_enable", None)  # the name since transformers 5.24
        (renamed or model.gradient_checkpointing_enable)()
    guided = is_guided(recipe)
    layers = (recipe.guide_layers, recipe.phone_layer, len(PHONES) + 1, recipe.voice_layers, recipe.name_layer)
    guide = Guide(model, *layers, num_speakers if recipe.name_weight else 0) if guided else None
    module = LanguageModelLoss(model, guide, with_z=recipe.z_weight > 0).to(world.device)
    if world.size > 1:
        shard(module, list(model.model.layers), world, recipe.precision, reshard_after_forward=not guided)
    return module


def cast_frozen(model: HiggsAudioForConditionalGeneration, precision: str, world: World) -> None:
    """Converts the frozen parameters to `precision`, in place.

    Raises:
        RecipeError: the model is sharded; all parameters of a shard must have one dtype.
    """
    if precision == "float32":
        return
    if world.size > 1:
        raise RecipeError(
            f"frozen_precision={precision!r} requires a single process, and this run has {world.size}: use 'float32'"
        )
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(PRECISIONS[precision])


def micro_batcher(
    recipe: LanguageModelRecipe,
    model: HiggsAudioForConditionalGeneration,
    processor: HiggsAudioProcessor,
    world: World,
    speakers: Mapping[str, int],
) -> MicroBatcher:
    """Returns the `MicroBatcher` of this run."""
    return MicroBatcher(
        processor=processor,
        rank=world.rank,
        size=world.size,
        accumulate=recipe.accumulate,
        reference_labels_after=recipe.reference_labels_after,
        packed=recipe.packed,
        codebook_size=model.config.audio_codebook_size,
        seed=recipe.seed,
        speakers=speakers,
    )


def train_step(
    module: LanguageModelLoss,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    recipe: LanguageModelRecipe,
    world: World,
    step: int,
) -> dict[str, float]:
    """Runs one optimizer step over this process's micro-batches.

    Returns:
        The weighted loss, the mean of every term over the labels of all processes, and the gradient norm.
    """
    weights = loss_weights(recipe, step)
    numbers = sum_over_world([counts(batch, module.model.config.audio_stream_eos_id) for batch in batches], world)
    optimizer.zero_grad(set_to_none=True)
    sums: list[dict[str, Tensor]] = []
    for batch in batches:
        with autocast(recipe.precision, world):
            terms = module(batch.to(world.device))
        loss = weighted_loss(terms, numbers, weights)
        (loss * world.size).backward()  # FSDP averages gradients over the processes
        sums.append({name: value.detach() for name, value in terms.items()})
    values = {name: total / max(1.0, numbers[name]) for name, total in sum_over_world(sums, world).items()}
    rate = learning_rate(step, recipe.num_steps, recipe.peak_rate, recipe.warmup, recipe.final_rate)
    total = sum(weights.of(name) * value for name, value in values.items())
    return {"loss": total, **values, "norm": apply_step(total, module, optimizer, rate, recipe.max_norm)}


def sample(
    module: LanguageModelLoss,
    recipe: LanguageModelRecipe,
    processor: HiggsAudioProcessor,
    heldout: Sequence[EncodedClip],
    world: World,
    step: int,
) -> dict[str, float]:
    """Generates held-out sentences and writes them to output/samples/STEP; see `generate_samples`.

    Sharded parameters are gathered first, so every process must call this; only the first process generates.
    """
    folder = Path(recipe.output) / "samples" / str(step)
    texts = list(dict.fromkeys(sample.text for sample in heldout))[: recipe.num_samples]
    gathered = export(module, recipe, folder / "model", world, processor) if world.size > 1 else None
    if not world.is_first:
        return {}
    model = module.model if gathered is None else HiggsAudioForConditionalGeneration.from_pretrained(gathered)
    if gathered is not None:
        shutil.rmtree(gathered)
    return generate_samples(model, processor, texts, recipe.profiles.get(recipe.default_speaker), folder)


def sum_over_world(values: Sequence[Mapping[str, Tensor | float]], world: World) -> dict[str, float]:
    """Returns the sum of each entry over this process's micro-batches and over all processes."""
    names = list(values[0])
    rows = [torch.stack([torch.as_tensor(entry[name]) for name in names]) for entry in values]  # a single transfer
    own = torch.stack(rows).double().cpu().sum(0)
    return dict(zip(names, world.all_reduce(own).tolist(), strict=True))


def autocast(precision: str, world: World) -> contextlib.AbstractContextManager[object]:
    """Returns autocast to `precision` for one process; FSDP casts sharded parameters when it gathers them."""
    if precision == "float32" or world.size > 1:
        return contextlib.nullcontext()
    return torch.autocast(world.device.type, PRECISIONS[precision])


def export(
    module: LanguageModelLoss, recipe: LanguageModelRecipe, folder: Path, world: World, processor: HiggsAudioProcessor
) -> Path:
    """Writes the model as a plain checkpoint, gathered and with adapters merged; every process must call it.

    The processor is written to the same folder if the recipe adds tokens to its tokenizer.
    """
    options = StateDictOptions(full_state_dict=world.size > 1, cpu_offload=world.size > 1)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    prefix = "model."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if world.is_first:
        module.model.save_pretrained(folder, state_dict=merge_adapters(own, lora_options(recipe)))
        if recipe.new_tokens:
            processor.save_pretrained(folder)
    world.barrier()
    return folder
