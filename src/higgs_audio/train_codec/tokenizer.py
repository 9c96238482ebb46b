"""Training the audio tokenizer: one straight loop."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import HubertForCTC

from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
from higgs_audio.codec.model import TokenizerTrainingOutput
from higgs_audio.data.clips import Sounds
from higgs_audio.data.manifest import read_manifests
from higgs_audio.errors import RecipeError
from higgs_audio.train_codec.codebook import rebalance, revive, start_codebooks, update_codebook
from higgs_audio.train_codec.decoder import train_decoder
from higgs_audio.train_codec.pitch import pitch_losses, random_phase, track_pitch
from higgs_audio.train_codec.recipe import TokenizerRecipe
from higgs_audio.train_codec.semantic import heard_error, relative_error
from higgs_audio.train_codec.spectral import spectral_losses
from higgs_audio.train_codec.trainer import CodecTrainer
from higgs_audio.training.run import seed_step

SAMPLE_RATE = 24_000
REVIVE_EVERY = 50  # steps
KMEANS_STEPS = 10


def first_tokenizer(recipe: TokenizerRecipe) -> HiggsAudioTokenizer:
    """The tokenizer to train, with everything frozen that stays as it is."""
    if bool(recipe.start) == bool(recipe.teacher) or (recipe.decoder_only and not recipe.start):
        raise RecipeError(
            f"start={recipe.start!r}, teacher={recipe.teacher!r}, decoder_only={recipe.decoder_only}: give a teacher "
            "for a new tokenizer, or the start of one to train on; the decoder alone is trained from a start only"
        )
    tokenizer = HiggsAudioTokenizer.from_pretrained(recipe.start) if recipe.start else new_tokenizer(recipe)
    tokenizer.semantic_model.requires_grad_(False)
    for layer in quantizers(tokenizer):  # axes of the latents, refitted: trained, they outrun the running averages
        layer.project_in.requires_grad_(False)
        layer.project_out.requires_grad_(False)
    return tokenizer


def new_tokenizer(recipe: TokenizerRecipe) -> HiggsAudioTokenizer:
    """A tokenizer with the teacher's HuBERT inside."""
    teacher = HubertForCTC.from_pretrained(recipe.teacher)
    torch.manual_seed(recipe.seed)
    semantic = teacher.hubert.config.to_dict()
    semantic.pop("_name_or_path", None)  # where the teacher lay on the machine that trained
    config = HiggsAudioTokenizerConfig(
        acoustic_model_config=dict(recipe.body),
        semantic_model_config=semantic,
        codebook_dim=recipe.codebook_dim,
    )
    tokenizer = HiggsAudioTokenizer(config)
    tokenizer.semantic_model.load_state_dict(teacher.hubert.state_dict())
    if not recipe.semantic_branch:
        silence(tokenizer.encoder_semantic)
    return tokenizer


def silence(branch: nn.Module) -> None:
    """Makes a stack of convolutions give zeros for good."""
    for weight in branch.requires_grad_(False).parameters():
        nn.init.zeros_(weight)


def train_tokenizer(recipe: TokenizerRecipe) -> Path:
    """Trains the tokenizer; writes a checkpoint to `output/model` and returns that path."""
    clips, tokenizer = read_manifests(recipe.data, "train"), first_tokenizer(recipe)
    if recipe.decoder_only:
        return train_decoder(recipe, tokenizer, clips)
    shop = CodecTrainer(recipe, tokenizer)
    sounds = Sounds(clips, SAMPLE_RATE, shop.device if recipe.in_memory else None)
    while shop.is_open:
        generator = seed_step(recipe.seed, shop.step)
        if is_refit(recipe, shop.step):
            fit_quantizers(tokenizer, sounds, recipe, generator)
        waveform = crops(sounds, recipe, generator).to(shop.device)  # [B, 1, S]
        depth = draw_depth(recipe, generator).to(shop.device) if is_quantized(recipe, shop.step) else None
        output, losses = passed(tokenizer, waveform, depth, recipe, generator)
        seen = {} if output.quantized is None else {"left_first": output.quantized.left[0]}
        shop.learn(losses, waveform[:, 0], output.audio_values[:, 0], seen)  # type: ignore[index]
        update_codebooks(tokenizer, output, recipe, shop.step, generator)
        shop.keep()
    return shop.close()


def passed(
    tokenizer: HiggsAudioTokenizer,
    waveform: Tensor,
    depth: Tensor | None,
    recipe: TokenizerRecipe,
    generator: torch.Generator,
) -> tuple[TokenizerTrainingOutput, dict[str, Tensor]]:
    """A training pass and its losses, unweighted."""
    hop = tokenizer.pitch_hop
    pitch = None if hop is None else track_pitch(waveform[:, 0], hop, SAMPLE_RATE)
    before = None if pitch is None else random_phase(len(waveform), generator, waveform.device)
    output = tokenizer(waveform, depth, pitch, before)
    losses = tokenizer_losses(tokenizer, output, waveform, recipe)
    return output, losses if pitch is None else losses | pitch_losses(output.pitch, pitch)


def quantizers(tokenizer: HiggsAudioTokenizer) -> list[Any]:
    """The K vector quantizers."""
    return tokenizer.quantizer.layers


def crops(sounds: Sounds, recipe: TokenizerRecipe, generator: torch.Generator) -> Tensor:
    """A batch of random crops `[B, 1, S]`, S a multiple of the hop, each at a random level (-10 to +3 dB)."""
    length = round(recipe.crop_seconds * 25) * 960
    waveform = sounds.random_crops(recipe.batch, length, generator)
    decibels = (-10 + 13 * torch.rand(recipe.batch, 1, generator=generator)).to(waveform.device)
    return (waveform * 10 ** (decibels / 20)).clamp(-1, 1)[:, None]


def draw_depth(recipe: TokenizerRecipe, generator: torch.Generator, num_codebooks: int = 8) -> Tensor:
    """Codebooks that each sample of a batch uses, `[B]`."""
    draw = torch.rand(recipe.batch, generator=generator)
    anything = torch.randint(1, num_codebooks + 1, (recipe.batch,), generator=generator)
    depth = torch.where(draw < recipe.depth_one + recipe.depth_any, anything, num_codebooks)
    return torch.where(draw < recipe.depth_one, 1, depth)


def is_quantized(recipe: TokenizerRecipe, step: int) -> bool:
    """Whether this step goes through the quantizer; a new tokenizer warms up without it."""
    return bool(recipe.start) or step >= recipe.warmup_unquantized


def is_refit(recipe: TokenizerRecipe, step: int) -> bool:
    """Whether the quantizers are fitted to the latents before this step: at the first quantized one, then at times."""
    if recipe.start:
        return False
    since = step - recipe.warmup_unquantized
    return since == 0 or (
        since > 0 and since % recipe.refit_every == 0 and step < recipe.refit_share * recipe.num_steps
    )


@torch.no_grad()
def fit_quantizers(
    tokenizer: HiggsAudioTokenizer, sounds: Sounds, recipe: TokenizerRecipe, generator: torch.Generator
) -> None:
    """Axes and k-means of every codebook over the latents of many batches, ten vectors an entry or more.

    Raises RecipeError where the recipe's batches have fewer vectors than a codebook has entries.
    """
    found = recipe.kmeans_batches * recipe.batch * round(recipe.crop_seconds * 25)
    if found < tokenizer.config.codebook_size:
        raise RecipeError(
            f"{found} vectors for {tokenizer.config.codebook_size} entries: raise kmeans_batches or batch"
        )
    place = tokenizer.device
    batches = [tokenizer(crops(sounds, recipe, generator).to(place), None).latent for _ in range(recipe.kmeans_batches)]
    latents = rebalance(tokenizer, torch.cat([b.flatten(0, 1) for b in batches]), recipe.acoustic_share)  # [N, D]
    start_codebooks(tokenizer.quantizer, latents, KMEANS_STEPS, 1 / recipe.kmeans_batches, generator)


def tokenizer_losses(
    tokenizer: HiggsAudioTokenizer, output: TokenizerTrainingOutput, waveform: Tensor, recipe: TokenizerRecipe
) -> dict[str, Tensor]:
    """Every loss of a step, unweighted."""
    made, wanted = output.audio_values[:, 0], waveform[:, 0]  # type: ignore[index]
    mel, convergence = spectral_losses(made, wanted, tokenizer.config.sample_rate)
    losses = {"mel": mel, "convergence": convergence, "semantic": semantic_loss(output.semantic_values, output)}
    losses["scale"] = output.latent.pow(2).sum(-1).mean().log().pow(2)  # type: ignore[union-attr]  # of a frame, to 1
    if output.quantized is not None:
        losses["first"] = semantic_loss(output.semantic_first, output)
        losses["commitment"] = output.quantized.commitment
    if recipe.heard_weight:
        losses["heard"] = heard_error(tokenizer, made, output.semantic_target, recipe.heard_share)  # type: ignore[arg-type]
    return losses


def semantic_loss(values: Tensor | None, output: TokenizerTrainingOutput) -> Tensor:
    """Error of rebuilt semantic features, relative to the target's variance: 1 is as good as their mean."""
    assert values is not None and output.semantic_target is not None
    return relative_error(values, output.semantic_target)


def update_codebooks(
    tokenizer: HiggsAudioTokenizer,
    output: TokenizerTrainingOutput,
    recipe: TokenizerRecipe,
    step: int,
    generator: torch.Generator,
) -> None:
    """Moves every codebook by what this step asked of it."""
    if output.quantized is None:
        return
    for number, quantizer in enumerate(quantizers(tokenizer)):
        vectors = output.quantized.projected[number].flatten(0, 1)  # [B * F, width]
        update_codebook(quantizer.codebook, vectors, output.quantized.codes[number].flatten(), recipe.decay)
        if step % REVIVE_EVERY == 0:
            revive(quantizer.codebook, vectors, generator)
