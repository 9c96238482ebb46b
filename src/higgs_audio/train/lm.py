"""Training the language model: one straight loop."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from higgs_audio import template
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import RecipeError
from higgs_audio.layers import FeedForward, RMSNorm
from higgs_audio.model import HiggsAudioForConditionalGeneration
from higgs_audio.processor import HiggsAudioProcessor
from higgs_audio.train.clips import length_batches
from higgs_audio.train.composer import Composer, Mix, usable
from higgs_audio.train.dialogue import Batch, Dialogue, collate, corrupt
from higgs_audio.train.guide import Guide
from higgs_audio.train.phones import PHONES
from higgs_audio.train.prepare import Sample, read_samples
from higgs_audio.train.recipe import save_recipe
from higgs_audio.train.run import Run, apply_gradients, decay_groups, learning_rate, seed_step

# Fields of HiggsAudioConfig that name a token of the prompt format.
TOKEN_FIELDS = {
    "audio_bos_token_id": template.AUDIO_BOS,
    "audio_eos_token_id": template.AUDIO_EOS,
    "audio_out_bos_token_id": template.AUDIO_OUT_BOS,
    "audio_delay_token_id": template.AUDIO_DELAY,
    "audio_in_token_idx": template.AUDIO_IN,
    "audio_out_token_idx": template.AUDIO_OUT,
    "pad_token_id": template.PAD,
    "bos_token_id": template.BEGIN,
    "eos_token_id": template.END_OF_TURN,
}


@dataclass(frozen=True)
class LanguageModelRecipe:
    """Everything a language-model run depends on.

    `data` and `heldout` are folders of prepared clips, `processor` a folder with the tokenizer and processor files,
    `output` the run's folder, `profiles` speaker -> profile text. `start` is a checkpoint to train on from; the model
    is then its size, and `text_config` is not read. The shares are those of `Mix`.
    """

    data: str
    heldout: str
    processor: str
    output: str
    start: str = ""
    text_config: dict[str, Any] = field(default_factory=dict)
    audio_adapter_type: str = "dual_ffn_fast_forward"
    profiles: dict[str, str] = field(default_factory=dict)
    default_speaker: str = ""
    reference_share: float = 0.15
    plain_share: float = 0.3
    several_share: float = 0.0
    cast_share: float = 0.0
    joined_share: float = 0.0
    reference_frames: tuple[int, ...] = (1, 60)
    more_turns: tuple[float, ...] = (0.6, 0.4)
    reference_labels_after: int = 0  # columns; 0: references are not trained
    num_steps: int = 5000
    batch_positions: int = 3000
    short_share: float = 0.15  # of the steps, on the shorter half of the clips alone
    codebook_weights: tuple[float, ...] = (4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5)
    text_weight: float = 0.1
    corruption: float = 0.2
    final_corruption: float = 0.05
    guide_layers: tuple[int, ...] = (1, 2, 3)
    guide_weight: float = 0.3
    final_guide_weight: float = 0.05
    phone_layer: int = 4
    phone_weight: float = 0.5
    final_phone_weight: float = 0.1
    peak_rate: float = 1.5e-3
    final_rate: float = 5e-5
    warmup: int = 300
    weight_decay: float = 0.05
    max_norm: float = 1.0
    compile: bool = False  # norms and feed-forwards through torch.compile; on a CPU it needs a C++ compiler
    seed: int = 0
    save_every: int = 200
    log_every: int = 20
    check_every: int = 400


def mix_of(recipe: LanguageModelRecipe) -> Mix:
    """The recipe's shares.

    Raises RecipeError where `reference_frames` is not a least and a most, or `more_turns` are no shares.
    """
    frames = recipe.reference_frames
    if len(frames) != 2 or not 1 <= frames[0] <= frames[1]:
        raise RecipeError(f"reference_frames={list(frames)} must be the least and the most, such as [75, 250]")
    if not any(recipe.more_turns) or min(recipe.more_turns) < 0:
        raise RecipeError(f"more_turns={list(recipe.more_turns)} must be shares of no turn more, one, two: [0.6, 0.4]")
    shares = (recipe.reference_share, recipe.plain_share, recipe.several_share, recipe.cast_share, recipe.joined_share)
    return Mix(*shares, (frames[0], frames[1]), recipe.more_turns)


def first_model(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor) -> HiggsAudioForConditionalGeneration:
    """The checkpoint that the recipe starts from, in float32, or a new model.

    Raises RecipeError where the checkpoint's vocabulary is not the processor's.
    """
    if not recipe.start:
        return new_model(recipe, processor)
    model = HiggsAudioForConditionalGeneration.from_pretrained(recipe.start, dtype=torch.float32)
    size, wanted = model.model.text_config.vocab_size, len(processor.tokenizer)
    if size != wanted:
        raise RecipeError(
            f"{recipe.start!r} reads {size} text tokens and the processor writes {wanted}: take the checkpoint's own"
        )
    return model


def new_model(recipe: LanguageModelRecipe, processor: HiggsAudioProcessor) -> HiggsAudioForConditionalGeneration:
    """A model of the recipe's size with the processor's token ids, random weights."""
    text = {"vocab_size": len(processor.tokenizer), **recipe.text_config}
    ids: dict[str, Any] = {
        field: processor.tokenizer.convert_tokens_to_ids(token) for field, token in TOKEN_FIELDS.items()
    }
    config = HiggsAudioConfig(text_config=text, audio_adapter_type=recipe.audio_adapter_type, codec="codec", **ids)
    torch.manual_seed(recipe.seed)
    model = HiggsAudioForConditionalGeneration(config)
    scale = (2 * len(model.model.layers)) ** -0.5  # keeps the residual stream's size at the start
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(scale)
    return model


def compile_parts(model: nn.Module) -> None:
    """Compiles what is elementwise or nearly so, in place, with sizes left open: batches differ in length."""
    for part in model.modules():
        if isinstance(part, RMSNorm | FeedForward):
            part.compile(dynamic=True)


def train_language_model(recipe: LanguageModelRecipe) -> Path:
    """Trains the language model; writes a checkpoint to `output/model` and returns that path."""
    samples, heldout = usable(read_samples(recipe.data), recipe.profiles), read_samples(recipe.heldout)
    processor = HiggsAudioProcessor.from_pretrained(recipe.processor)
    run = Run(recipe.output, recipe.save_every, recipe.log_every)
    save_recipe(recipe, run.folder / "recipe.yaml")
    model = first_model(recipe, processor).train()
    if recipe.compile:
        compile_parts(model)
    guide = Guide(model, recipe.guide_layers, recipe.phone_layer, len(PHONES) + 1)
    trained = nn.ModuleDict({"model": model, "guide": guide})
    optimizer = torch.optim.AdamW(decay_groups(trained, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    parts = {"model": model, "guide": guide, "optimizer": optimizer}
    composer = Composer(samples, recipe.profiles, recipe.default_speaker, mix_of(recipe))
    step = run.resume(parts)
    batches = dialogue_batches(composer, samples, recipe, step)
    while step < recipe.num_steps:
        generator = seed_step(recipe.seed, step)
        batch = collate(next(batches), processor, recipe.reference_labels_after)
        losses = training_losses(model, guide, batch, recipe, step, generator)
        rate = learning_rate(step, recipe.num_steps, recipe.peak_rate, recipe.warmup, recipe.final_rate)
        norm = apply_gradients(losses.pop("total"), trained, optimizer, rate, recipe.max_norm)
        step += 1
        run.log(step, {name: float(value) for name, value in losses.items()} | {"norm": norm})
        if step % recipe.check_every == 0 or step == recipe.num_steps:
            run.record(step, check(model, heldout, recipe, processor))
        if run.due(step, recipe.num_steps):
            run.save(step, parts)
    guide.close()
    model.save_pretrained(run.folder / "model")
    return run.folder / "model"


def dialogue_batches(
    composer: Composer, samples: Sequence[Sample], recipe: LanguageModelRecipe, start: int
) -> Iterator[list[Dialogue]]:
    """Conversations of every step from number `start` on: the shorter half of the clips first, then all."""
    sizes = [s.num_frames + len(s.phonemes) for s in samples]
    short = sorted(range(len(samples)), key=sizes.__getitem__)[: max(1, len(samples) // 2)]
    num_short = int(recipe.short_share * recipe.num_steps)
    if start < num_short:
        yield from itertools.islice(composed(composer, short, recipe, 2 * recipe.seed, start), num_short - start)
    rest = range(len(samples))
    yield from composed(composer, rest, recipe, 2 * recipe.seed + 1, max(0, start - num_short))


def composed(
    composer: Composer, numbers: Sequence[int], recipe: LanguageModelRecipe, seed: int, start: int
) -> Iterator[list[Dialogue]]:
    """Endless batches of conversations, one for each of the samples in an epoch, from batch number `start` on.

    Conversations differ in length by ten times, so they are drawn first and batched by what they turned out to be.
    """
    for epoch in itertools.count():
        sizes = [composer.compose(n, draw_of(seed, epoch, n)).num_positions for n in numbers]
        batches = length_batches(sizes, recipe.batch_positions, seed, epoch)
        for batch in batches[start:]:
            yield [composer.compose(numbers[i], draw_of(seed, epoch, numbers[i])) for i in batch]
        start = max(0, start - len(batches))


def draw_of(seed: int, epoch: int, number: int) -> torch.Generator:
    """The randomness of one conversation."""
    return torch.Generator().manual_seed(hash((seed, epoch, number)) & 0xFFFF_FFFF)


def training_losses(
    model: HiggsAudioForConditionalGeneration,
    guide: Guide,
    batch: Batch,
    recipe: LanguageModelRecipe,
    step: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """All losses of a step and their weighted sum, "total"."""
    done = step / recipe.num_steps
    inputs = dict(batch.inputs)
    share = blend(recipe.corruption, recipe.final_corruption, done)
    size = model.config.audio_codebook_size
    inputs["audio_input_ids"] = corrupt(inputs["audio_input_ids"], batch.turn_labels, share, generator, size)
    output = model(**inputs, codebook_weights=torch.tensor(recipe.codebook_weights), only_loss=True)
    look = guide.attention_loss(batch.look, inputs["attention_mask"])
    phone, accuracy = guide.phone_loss(batch.phones)
    total = output.audio_loss + recipe.text_weight * output.text_loss
    total = total + blend(recipe.guide_weight, recipe.final_guide_weight, done) * look
    total = total + blend(recipe.phone_weight, recipe.final_phone_weight, done) * phone
    books = {f"codebook_{k}": float(value) for k, value in enumerate(output.codebook_losses.detach())}
    losses = {"text": output.text_loss, "look": look, "phone": phone}
    return {"total": total, **{n: float(v.detach()) for n, v in losses.items()}, "phone_accuracy": accuracy, **books}


def blend(first: float, last: float, done: float) -> float:
    """From `first` to `last` over the first half of training, then `last`."""
    return first + (last - first) * min(1.0, 2 * done)


@torch.no_grad()
def check(
    model: HiggsAudioForConditionalGeneration,
    heldout: Sequence[Sample],
    recipe: LanguageModelRecipe,
    processor: HiggsAudioProcessor,
) -> dict[str, float]:
    """Held-out losses by codebook, and how much they grow where every text is another's: the text gain, in nats."""
    model.eval()
    composer = Composer(heldout, recipe.profiles, recipe.default_speaker, Mix(reference=0.0, plain=0.0))
    generator = torch.Generator().manual_seed(0)
    dialogues = [composer.compose(i, generator) for i in range(0, len(heldout), max(1, len(heldout) // 48))]
    true, shuffled = [], []
    for start in range(0, len(dialogues), 16):
        batch = collate(dialogues[start : start + 16], processor)
        true.append(model(**batch.inputs, only_loss=True).codebook_losses)
        shuffled.append(model(**with_other_texts(batch.inputs, batch.look), only_loss=True).codebook_losses)
    model.train()
    losses, wrong = torch.stack(true).mean(0), torch.stack(shuffled).mean(0)
    values = {f"heldout_{k}": float(value) for k, value in enumerate(losses)}
    return values | {"heldout": float(losses.mean()), "text_gain": float(wrong[0] - losses[0])}


def with_other_texts(inputs: dict[str, Tensor], look: Tensor) -> dict[str, Tensor]:
    """The batch with the spoken phonemes of each row in reversed order: the same symbols, another text."""
    ids = inputs["input_ids"].clone()
    for row, places in enumerate(look):
        spoken = places[places >= 0].unique()
        ids[row, spoken] = ids[row, spoken.flip(0)]
    return {**inputs, "input_ids": ids}
