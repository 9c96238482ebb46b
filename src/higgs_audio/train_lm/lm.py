"""Training the language model: one straight loop, in one process or many."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from higgs_audio.data.phones import PHONES
from higgs_audio.data.shards import EncodedClip, Stamp, read_encoded_clips, stamp_of
from higgs_audio.errors import RecipeError, first_line, nearest
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_lm.batches import BatchOrder, MicroBatcher, training_steps
from higgs_audio.train_lm.collate import Batch
from higgs_audio.train_lm.composer import Composer, usable
from higgs_audio.train_lm.guide import Guide
from higgs_audio.train_lm.heldout import check
from higgs_audio.train_lm.lora import add_lora, choose_trained, merged
from higgs_audio.train_lm.losses import LanguageModelLoss, counts, weighted
from higgs_audio.train_lm.recipe import (
    LanguageModelRecipe,
    blend,
    check_numbers,
    is_guided,
    lora_of,
    mix_of,
    unguided,
    weights_of,
)
from higgs_audio.train_lm.samples import speak_samples
from higgs_audio.train_lm.start import check_fit, compile_parts, first_model
from higgs_audio.train_lm.tokens import add_tokens, check_read
from higgs_audio.training.parallel import PRECISIONS, World, join_world, shard
from higgs_audio.training.recipe import save_recipe
from higgs_audio.training.run import Run, apply_step, decay_groups, learning_rate, seed_step
from higgs_audio.training.sharded import ShardedState


def train_language_model(recipe: LanguageModelRecipe) -> Path:
    """Trains the language model; writes a checkpoint to `output/model` and returns that path.

    Raises RecipeError for a recipe that cannot be followed and where a process that makes batches is lost,
    NumericsError where a loss is not finite, CheckpointError where something cannot be read or written.
    """
    check_numbers(recipe)
    for name in ("precision", "frozen_precision"):
        if getattr(recipe, name) not in PRECISIONS:
            raise RecipeError(f"{name}={getattr(recipe, name)!r}; {nearest(getattr(recipe, name), PRECISIONS)}")
    world = join_world(recipe.device)
    try:
        return _train(recipe, world)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch tells it by a signal, wherever the step is
            raise
        raise RecipeError(
            f"a process that makes batches was lost ({first_line(error)}). What {recipe.output!r} has is whole: start "
            f"the same run again; fewer than num_workers={recipe.num_workers} need less memory, 0 makes them here"
        ) from error
    finally:
        world.leave()


def _train(recipe: LanguageModelRecipe, world: World) -> Path:
    processor = HiggsAudioProcessor.from_pretrained(recipe.processor)
    add_tokens(processor, recipe.new_tokens)
    stamp = stamp_for(processor, recipe.processor)
    samples, heldout = (
        usable(read_encoded_clips(recipe.data, stamp), recipe.profiles),
        read_encoded_clips(recipe.heldout, stamp),
    )
    if not any(len(sample.phones) for sample in samples):
        recipe = unguided(recipe)
    composer = Composer(samples, recipe.profiles, recipe.default_speaker, mix_of(recipe))
    model = first_model(recipe, processor).train()
    check_fit(recipe, model)
    if recipe.sample_every and processor.audio_tokenizer is None:
        raise RecipeError(f"sample_every: {recipe.processor!r} has no audio tokenizer to make sounds with; add one")
    speakers = {name: number for number, name in enumerate(sorted({sample.speaker for sample in samples}))}
    lesson = assemble(model, recipe, world, len(speakers))
    optimizer = torch.optim.AdamW(decay_groups(lesson, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    run = Run(recipe.output, recipe.save_every, recipe.log_every, quiet=not world.is_first)
    state = ShardedState(run.folder, lesson, optimizer, world)
    done, place = state.resume()
    step = run.continue_from(done)
    if world.is_first:
        save_recipe(recipe, run.folder / "recipe.yaml")
    order = BatchOrder(recipe.batch_positions, int(recipe.short_share * recipe.num_steps), recipe.seed)
    cutter = cutter_of(recipe, model, processor, world, speakers if recipe.name_weight else {})
    if recipe.num_workers and world.device.type == "cuda":
        torch.set_num_threads(1)  # the workers have the cores: threads that wait for one another hold the step up
    steps = training_steps(composer, samples, order, step, cutter, recipe.num_workers, place)
    while step < recipe.num_steps and not run.is_stale("heldout", recipe.patience):
        seed_step(recipe.seed, step)
        corruption = blend(recipe.corruption, recipe.final_corruption, step / recipe.num_steps)
        shares, place = next(steps)
        values = train_step(lesson, optimizer, cutter.finish(shares, step, corruption), recipe, world, step)
        step += 1
        run.log(step, values)
        if step % recipe.check_every == 0 or step == recipe.num_steps:
            run.record(step, check(lesson, heldout, recipe, processor))
            if recipe.patience and run.is_best("heldout"):
                export(lesson, recipe, run.folder / "best", world, processor)
        if recipe.sample_every and step % recipe.sample_every == 0:
            run.record(step, sample(lesson, recipe, processor, heldout, world, step))
        if run.due(step, recipe.num_steps):
            state.save(step, place)
    if lesson.guide is not None:
        lesson.guide.close()
    return export(lesson, recipe, run.folder / "model", world, processor)


def stamp_for(processor: HiggsAudioProcessor, folder: str) -> Stamp:
    """What the codes of the material must be: the processor's sizes, and its audio tokenizer's if that is at hand."""
    config = processor.config
    sizes = {"num_codebooks": str(config.audio_num_codebooks), "codebook_size": str(config.audio_codebook_size)}
    tokenizer = processor.audio_tokenizer if (Path(folder) / config.codec).is_dir() else None
    return sizes if tokenizer is None else stamp_of(tokenizer)


def assemble(
    model: HiggsAudioForConditionalGeneration, recipe: LanguageModelRecipe, world: World, num_speakers: int = 0
) -> LanguageModelLoss:
    """The model with what is not trained of it frozen, its guide, on the device, in shards."""
    if lora := lora_of(recipe):
        add_lora(model, lora)
    else:
        choose_trained(model, recipe.train)
    check_read(model, recipe.new_tokens)
    hold_frozen(model, recipe.frozen_precision, world)
    try:
        model.set_attn_implementation(recipe.attention)
    except (ValueError, ImportError) as error:  # no such name, or its package is not installed
        raise RecipeError(f"attention={recipe.attention!r}: {first_line(error)}") from error
    if recipe.compile:
        compile_parts(model)
    if recipe.gradient_checkpointing:
        renamed = getattr(model, "activation_checkpointing_enable", None)  # by transformers 5.24
        (renamed or model.gradient_checkpointing_enable)()
    guided = is_guided(recipe)
    layers = (recipe.guide_layers, recipe.phone_layer, len(PHONES) + 1, recipe.voice_layers, recipe.name_layer)
    guide = Guide(model, *layers, num_speakers if recipe.name_weight else 0) if guided else None
    lesson = LanguageModelLoss(model, guide, with_z=recipe.z_weight > 0).to(world.device)
    if world.size > 1:
        shard(lesson, list(model.model.layers), world, recipe.precision, regather=not guided)
    return lesson


def hold_frozen(model: HiggsAudioForConditionalGeneration, precision: str, world: World) -> None:
    """Converts the parameters that are not trained, in place.

    Raises RecipeError where the model is in shards: those of a layer have one type.
    """
    if precision == "float32":
        return
    if world.size > 1:
        raise RecipeError(f"frozen_precision={precision!r} with {world.size} processes: leave it at float32")
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(PRECISIONS[precision])


def cutter_of(
    recipe: LanguageModelRecipe,
    model: HiggsAudioForConditionalGeneration,
    processor: HiggsAudioProcessor,
    world: World,
    speakers: Mapping[str, int],
) -> MicroBatcher:
    """How this run's steps are cut into micro-batches."""
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
    lesson: LanguageModelLoss,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    recipe: LanguageModelRecipe,
    world: World,
    step: int,
) -> dict[str, float]:
    """One step over this process's micro-batches; the mean of every loss over the labels of all processes."""
    numbers = add_up([counts(batch, lesson.model.config.audio_stream_eos_id) for batch in batches], world)
    optimizer.zero_grad(set_to_none=True)
    sums: list[dict[str, Tensor]] = []
    for batch in batches:
        with computing_in(recipe.precision, world):
            terms = lesson(batch.to(world.device))
        loss = weighted(terms, numbers, weights_of(recipe, step))
        (loss * world.size).backward()  # gradients are averaged over the processes
        sums.append({name: value.detach() for name, value in terms.items()})
    values = {name: total / max(1.0, numbers[name]) for name, total in add_up(sums, world).items()}
    rate = learning_rate(step, recipe.num_steps, recipe.peak_rate, recipe.warmup, recipe.final_rate)
    total = sum(weights_of(recipe, step).of(name) * value for name, value in values.items())
    return {"loss": total, **values, "norm": apply_step(total, lesson, optimizer, rate, recipe.max_norm)}


def sample(
    lesson: LanguageModelLoss,
    recipe: LanguageModelRecipe,
    processor: HiggsAudioProcessor,
    heldout: Sequence[EncodedClip],
    world: World,
    step: int,
) -> dict[str, float]:
    """What the model says now, in output/samples/STEP. Shards are gathered for it; one process speaks."""
    folder = Path(recipe.output) / "samples" / str(step)
    texts = list(dict.fromkeys(sample.text for sample in heldout))[: recipe.num_samples]
    gathered = export(lesson, recipe, folder / "model", world, processor) if world.size > 1 else None
    if not world.is_first:
        return {}
    model = lesson.model if gathered is None else HiggsAudioForConditionalGeneration.from_pretrained(gathered)
    if gathered is not None:
        shutil.rmtree(gathered)
    return speak_samples(model, processor, texts, recipe.profiles.get(recipe.default_speaker), folder)


def add_up(micro: Sequence[Mapping[str, Any]], world: World) -> dict[str, float]:
    """The sum of each entry over micro-batches and processes."""
    names = list(micro[0])
    rows = [torch.stack([torch.as_tensor(values[name]) for name in names]) for values in micro]  # one transfer in all
    own = torch.stack(rows).double().cpu().sum(0)
    return dict(zip(names, world.total(own).tolist(), strict=True))


def computing_in(precision: str, world: World) -> contextlib.AbstractContextManager[Any]:
    """Autocast where one process computes in less than float32; shards are cast as they are gathered."""
    if precision == "float32" or world.size > 1:
        return contextlib.nullcontext()
    return torch.autocast(world.device.type, PRECISIONS[precision])


def export(
    lesson: LanguageModelLoss, recipe: LanguageModelRecipe, folder: Path, world: World, processor: HiggsAudioProcessor
) -> Path:
    """Writes the model as a plain checkpoint, gathered and with adapters merged; every process must call it.

    Beside it goes the processor where the recipe gives its tokenizer new tokens.
    """
    options = StateDictOptions(full_state_dict=world.size > 1, cpu_offload=world.size > 1)
    state: dict[str, Any] = get_model_state_dict(lesson, options=options)
    prefix = "model."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if world.is_first:
        lesson.model.save_pretrained(folder, state_dict=merged(own, lora_of(recipe)))
        if recipe.new_tokens:
            processor.save_pretrained(folder)
    world.wait()
    return folder
