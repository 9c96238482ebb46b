"""Training of the audio tokenizer: one loop over random crops of clips."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import HubertForCTC

from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
from higgs_audio.codec.model import TokenizerTrainingOutput
from higgs_audio.data.clips import ClipAudio
from higgs_audio.data.manifest import read_manifests
from higgs_audio.errors import RecipeError
from higgs_audio.train_codec.codebook import init_codebooks, rebalance, replace_dead_entries, update_codebook
from higgs_audio.train_codec.decoder import train_decoder
from higgs_audio.train_codec.pitch import pitch_losses, random_phase, track_pitch
from higgs_audio.train_codec.recipe import GAIN_DB, TokenizerRecipe
from higgs_audio.train_codec.semantic import consistency_loss, relative_error
from higgs_audio.train_codec.spectral import spectral_losses
from higgs_audio.train_codec.trainer import CodecTrainer
from higgs_audio.training.run import seed_step

KMEANS_STEPS = 10


def initial_tokenizer(recipe: TokenizerRecipe) -> HiggsAudioTokenizer:
    """Returns the tokenizer at the start of a run, with semantic model and quantizer projections frozen.

    Raises:
        RecipeError: the recipe must have either a teacher (for a new tokenizer) or a start.
    """
    needs_start = recipe.decoder_only or recipe.fixed_codebooks
    if bool(recipe.start) == bool(recipe.teacher) or (needs_start and not recipe.start):
        raise RecipeError(
            f"start={recipe.start!r}, teacher={recipe.teacher!r}, decoder_only={recipe.decoder_only}, "
            f"fixed_codebooks={recipe.fixed_codebooks}: give a teacher for a new tokenizer, or a start to continue an "
            "existing one; decoder_only and fixed_codebooks require a start"
        )
    tokenizer = HiggsAudioTokenizer.from_pretrained(recipe.start) if recipe.start else new_tokenizer(recipe)
    tokenizer.semantic_model.requires_grad_(False)
    for layer in tokenizer.quantizer.layers:  # trained projections change faster than the codebooks' running averages
        layer.project_in.requires_grad_(False)
        layer.project_out.requires_grad_(False)
    return tokenizer


def new_tokenizer(recipe: TokenizerRecipe) -> HiggsAudioTokenizer:
    """Returns a tokenizer with random weights and the teacher's HuBERT."""
    teacher = HubertForCTC.from_pretrained(recipe.teacher)
    torch.manual_seed(recipe.seed)
    semantic = teacher.hubert.config.to_dict()
    semantic.pop("_name_or_path", None)  # a path of the training machine
    config = HiggsAudioTokenizerConfig(
        acoustic_model_config=dict(recipe.body),
        semantic_model_config=semantic,
        codebook_dim=recipe.codebook_dim,
    )
    tokenizer = HiggsAudioTokenizer(config)
    tokenizer.semantic_model.load_state_dict(teacher.hubert.state_dict())
    if not recipe.semantic_branch:
        zero_and_freeze(tokenizer.encoder_semantic)
    return tokenizer


def zero_and_freeze(module: nn.Module) -> None:
    """Sets all parameters to zero and freezes them, so that a stack of convolutions always outputs zeros."""
    for weight in module.requires_grad_(False).parameters():
        nn.init.zeros_(weight)


def train_tokenizer(recipe: TokenizerRecipe) -> Path:
    """Trains the tokenizer; writes a checkpoint to `output/model` and returns that path.

    Raises:
        RecipeError: no usable clip, or impossible values.
        NumericsError: a loss is not finite.
        CheckpointError: a checkpoint cannot be read or written.
    """
    clips, tokenizer = read_manifests(recipe.data, "train"), initial_tokenizer(recipe)
    if recipe.decoder_only:
        return train_decoder(recipe, tokenizer, clips)
    trainer = CodecTrainer(recipe, tokenizer)
    audio = ClipAudio(clips, tokenizer.config.sample_rate, trainer.device if recipe.in_memory else None)
    while not trainer.is_finished:
        generator = seed_step(recipe.seed, trainer.step)
        if is_refit(recipe, trainer.step):
            fit_quantizers(tokenizer, audio, recipe, generator)
        waveform = random_crops(audio, tokenizer.config, recipe, generator).to(trainer.device)  # [B, 1, S]
        depth = draw_depth(recipe, generator).to(trainer.device) if is_quantized(recipe, trainer.step) else None
        output, losses = forward_pass(tokenizer, waveform, depth, recipe, generator)
        metrics = {} if output.quantized is None else {"left_first": output.quantized.residual_energy[0]}
        trainer.train_step(losses, waveform[:, 0], output.audio_values[:, 0], metrics)  # type: ignore[index]
        if not recipe.fixed_codebooks:
            update_codebooks(tokenizer, output, recipe, trainer.step, generator)
        trainer.save_if_due()
    return trainer.export()


def forward_pass(
    tokenizer: HiggsAudioTokenizer,
    waveform: Tensor,
    depth: Tensor | None,
    recipe: TokenizerRecipe,
    generator: torch.Generator,
) -> tuple[TokenizerTrainingOutput, dict[str, Tensor]]:
    """Runs the tokenizer on `waveform [B, 1, S]`; returns its output and the unweighted losses."""
    hop = tokenizer.pitch_hop
    pitch = None if hop is None else track_pitch(waveform[:, 0], hop, tokenizer.config.sample_rate)
    phase = None if pitch is None else random_phase(len(waveform), generator, waveform.device)
    output = tokenizer(waveform, depth, pitch, phase)
    losses = tokenizer_losses(tokenizer, output, waveform, recipe)
    return output, losses if pitch is None else losses | pitch_losses(output.pitch, pitch)


def random_crops(
    audio: ClipAudio, config: HiggsAudioTokenizerConfig, recipe: TokenizerRecipe, generator: torch.Generator
) -> Tensor:
    """Draws a batch of crops `[B, 1, S]`, each at a random gain; S is a multiple of the hop length."""
    length = recipe.crop_frames(config.frame_rate) * config.hop_length
    waveform = audio.random_crops(recipe.batch, length, generator)
    low, high = GAIN_DB
    gain_db = (low + (high - low) * torch.rand(recipe.batch, 1, generator=generator)).to(waveform.device)
    return (waveform * 10 ** (gain_db / 20)).clamp(-1, 1)[:, None]


def draw_depth(recipe: TokenizerRecipe, generator: torch.Generator, num_codebooks: int = 8) -> Tensor:
    """Draws the number of codebooks that each waveform of a batch uses, `[B]`."""
    draw = torch.rand(recipe.batch, generator=generator)
    random_depth = torch.randint(1, num_codebooks + 1, (recipe.batch,), generator=generator)
    depth = torch.where(draw < recipe.depth_one + recipe.depth_any, random_depth, num_codebooks)
    return torch.where(draw < recipe.depth_one, 1, depth)


def is_quantized(recipe: TokenizerRecipe, step: int) -> bool:
    """Whether this step uses the quantizer; a new tokenizer warms up without it."""
    return bool(recipe.start) or step >= recipe.warmup_unquantized


def is_refit(recipe: TokenizerRecipe, step: int) -> bool:
    """Whether the quantizers of a new tokenizer are fitted before this step.

    They are fitted before the first quantized step, then every `refit_every` steps in the first `refit_share` of a run.
    """
    if recipe.start:
        return False
    since = step - recipe.warmup_unquantized
    return since == 0 or (
        since > 0 and since % recipe.refit_every == 0 and step < recipe.refit_share * recipe.num_steps
    )


@torch.no_grad()
def fit_quantizers(
    tokenizer: HiggsAudioTokenizer, audio: ClipAudio, recipe: TokenizerRecipe, generator: torch.Generator
) -> None:
    """Fits the projections and codebooks of all quantizers to the latents of `kmeans_batches` batches.

    Use at least ten vectors per entry.

    Raises:
        RecipeError: fewer vectors than entries.
    """
    config = tokenizer.config
    num_vectors = recipe.kmeans_batches * recipe.batch * recipe.crop_frames(config.frame_rate)
    if num_vectors < config.codebook_size:
        raise RecipeError(f"{num_vectors} vectors for {config.codebook_size} entries: increase kmeans_batches or batch")
    latents = []
    for _ in range(recipe.kmeans_batches):
        waveform = random_crops(audio, config, recipe, generator).to(tokenizer.device)
        latents.append(tokenizer(waveform, None).latent.flatten(0, 1))
    balanced = rebalance(tokenizer, torch.cat(latents), recipe.acoustic_share)  # [N, D]
    init_codebooks(tokenizer.quantizer, balanced, KMEANS_STEPS, 1 / recipe.kmeans_batches, generator)


def tokenizer_losses(
    tokenizer: HiggsAudioTokenizer, output: TokenizerTrainingOutput, waveform: Tensor, recipe: TokenizerRecipe
) -> dict[str, Tensor]:
    """Returns the unweighted losses of a step for `waveform [B, 1, S]`."""
    assert output.audio_values is not None and output.latent is not None and output.semantic_target is not None
    decoded, recorded = output.audio_values[:, 0], waveform[:, 0]
    mel, convergence = spectral_losses(decoded, recorded, tokenizer.config.sample_rate)
    losses = {"mel": mel, "convergence": convergence, "semantic": semantic_loss(output.semantic_values, output)}
    losses["scale"] = output.latent.pow(2).sum(-1).mean().log().pow(2)  # keeps the mean energy of a frame near 1
    if output.quantized is not None:
        losses["first"] = semantic_loss(output.semantic_first, output)
        losses["commitment"] = output.quantized.commitment
    if recipe.heard_weight:
        losses["heard"] = consistency_loss(tokenizer, decoded, output.semantic_target, recipe.heard_share)
    return losses


def semantic_loss(values: Tensor | None, output: TokenizerTrainingOutput) -> Tensor:
    """Returns the error of reconstructed semantic features, relative to the target's variance."""
    assert values is not None and output.semantic_target is not None
    return relative_error(values, output.semantic_target)


def update_codebooks(
    tokenizer: HiggsAudioTokenizer,
    output: TokenizerTrainingOutput,
    recipe: TokenizerRecipe,
    step: int,
    generator: torch.Generator,
) -> None:
    """Updates every codebook's running averages; replaces dead entries every `replace_every` steps.

    `step` is the number of finished steps, this one included.
    """
    if output.quantized is None:
        return
    for number, quantizer in enumerate(tokenizer.quantizer.layers):
        vectors = output.quantized.projected[number].flatten(0, 1)  # [B * F, width]
        update_codebook(quantizer.codebook, vectors, output.quantized.codes[number].flatten(), recipe.decay)
        if step % recipe.replace_every == 0:
            replace_dead_entries(quantizer.codebook, vectors, generator)
