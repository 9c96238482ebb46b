"""Training the audio tokenizer: one straight loop."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertForCTC

from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
from higgs_audio.codec.model import TokenizerTrainingOutput
from higgs_audio.device import read_device
from higgs_audio.errors import RecipeError, nearest
from higgs_audio.train.clips import Sounds
from higgs_audio.train.codebook import perplexity, rebalance, revive, start_codebooks, update_codebook
from higgs_audio.train.discriminator import Discriminators, deceiving_loss, feature_loss, judging_loss
from higgs_audio.train.manifest import read_manifests
from higgs_audio.train.parallel import PRECISIONS
from higgs_audio.train.recipe import save_recipe
from higgs_audio.train.run import Run, apply_gradients, decay_groups, learning_rate, seed_step
from higgs_audio.train.spectral import spectral_losses

SAMPLE_RATE = 24_000
MATMUL_PRECISIONS = ("highest", "high", "medium")
QUIET = 1e-3  # of a crop, -60 dBFS
REVIVE_EVERY = 50  # steps
KMEANS_STEPS = 10


@dataclass(frozen=True)
class TokenizerRecipe:
    """Everything a tokenizer run depends on.

    `data` is a folder with manifests, `teacher` a HubertForCTC checkpoint (frozen), `output` the run's folder.
    `depth_one` and `depth_any` are the shares of samples that use one codebook, or a random number of them; the rest
    use all. Without `semantic_branch` the teacher's features do not enter the quantizer: an ablation, with
    `semantic_weight` and `first_weight` 0 and `acoustic_share` 1. With `start` a trained tokenizer is trained on, the
    teacher is its own, and `body` and `codebook_dim` are not read. With `decoder_only` codes stay what they are, so
    language models that speak them remain good.
    With `adversarial_weight` above 0 discriminators judge, from step `adversarial_from` on, the first
    `judged_share` of every batch. `in_memory` holds all sound on the device, 2.9 MB a minute, and `matmul_precision`
    is torch's for float32 matrices: "high" lets a GPU multiply them in TF32.
    """

    data: str
    output: str
    teacher: str = ""
    start: str = ""
    decoder_only: bool = False
    body: dict[str, Any] = field(default_factory=lambda: {"body": "vocos"})
    codebook_dim: int = 64
    semantic_branch: bool = True
    num_steps: int = 4000
    batch: int = 16
    crop_seconds: float = 1.6
    warmup_unquantized: int = 500
    kmeans_batches: int = 25
    refit_every: int = 210  # steps between new axes and k-means: the latents move away from the axes of the start
    refit_share: float = 0.75  # of the steps, after which the quantizers stay as they are
    decay: float = 0.97
    acoustic_share: float = 0.65  # of the quantizer's attention; the rest is for the semantic features
    depth_one: float = 0.15
    depth_any: float = 0.35
    mel_weight: float = 15.0
    convergence_weight: float = 1.0
    semantic_weight: float = 1.0
    first_weight: float = 1.0
    heard_weight: float = 0.0
    heard_share: float = 0.25
    commitment_weight: float = 3.0
    scale_weight: float = 0.1
    adversarial_weight: float = 0.0
    feature_weight: float = 2.0
    adversarial_from: int = 0
    judged_share: float = 1.0
    period_channels: int = 8
    spectrum_channels: int = 16
    judge_rate: float = 3e-4
    judge_precision: str = "float32"  # or bfloat16: on a GPU the judges are most of a step
    peak_rate: float = 1e-3
    final_rate: float = 5e-5
    warmup: int = 200
    weight_decay: float = 0.01
    max_norm: float = 5.0
    device: str = ""  # cpu or cuda; "": a GPU where there is one
    in_memory: bool = False
    matmul_precision: str = "highest"
    seed: int = 0
    save_every: int = 200
    log_every: int = 20


def first_tokenizer(recipe: TokenizerRecipe) -> HiggsAudioTokenizer:
    """The tokenizer to train, with everything frozen that stays as it is."""
    if bool(recipe.start) == bool(recipe.teacher) or (recipe.decoder_only and not recipe.start):
        raise RecipeError(
            f"start={recipe.start!r}, teacher={recipe.teacher!r}, decoder_only={recipe.decoder_only}: give a teacher "
            "for a new tokenizer, or the start of one to train on; the decoder alone is trained from a start only"
        )
    tokenizer = HiggsAudioTokenizer.from_pretrained(recipe.start) if recipe.start else new_tokenizer(recipe)
    if recipe.decoder_only:
        tokenizer.requires_grad_(False)
        tokenizer.acoustic_decoder.requires_grad_(True)
        tokenizer.fc2.requires_grad_(True)
        return tokenizer
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
    device = read_device(recipe.device or None)
    check_precisions(recipe)
    torch.set_float32_matmul_precision(recipe.matmul_precision)
    sounds = Sounds(read_manifests(recipe.data, "train"), SAMPLE_RATE, device if recipe.in_memory else None)
    tokenizer: Any = first_tokenizer(recipe)
    tokenizer.to(device)
    optimizer = torch.optim.AdamW(decay_groups(tokenizer, recipe.weight_decay), betas=(0.8, 0.99), fused=True)
    parts: dict[str, Any] = {"model": tokenizer, "optimizer": optimizer}
    court = Court(recipe, device) if recipe.adversarial_weight else None
    if court is not None:
        parts |= {"judges": court.judges, "judges_optimizer": court.optimizer}
    run = Run(recipe.output, recipe.save_every, recipe.log_every)
    step = run.resume(parts)
    save_recipe(recipe, run.folder / "recipe.yaml")
    while step < recipe.num_steps:
        generator = seed_step(recipe.seed, step)
        if is_refit(recipe, step):
            fit_quantizers(tokenizer, sounds, recipe, generator)
        waveform = crops(sounds, recipe, generator).to(device)  # [B, 1, S]
        depth = draw_depth(recipe, generator).to(device) if is_quantized(recipe, step) else None
        output = tokenizer(waveform, depth)
        losses = tokenizer_losses(tokenizer, output, waveform, recipe)
        seen = {}
        if court is not None and step >= recipe.adversarial_from:
            heard = max(1, round(recipe.judged_share * len(waveform)))
            deceived, seen["judging"] = court.hear(waveform[:heard, 0], output.audio_values[:heard, 0], step)
            losses |= deceived
        rate = learning_rate(step, recipe.num_steps, recipe.peak_rate, recipe.warmup, recipe.final_rate)
        norm = apply_gradients(total_loss(losses, recipe), tokenizer, optimizer, rate, recipe.max_norm)
        step += 1
        update_codebooks(tokenizer, output, recipe, step, generator)
        run.log(step, numbers(losses, output) | seen | {"norm": norm})
        if run.due(step, recipe.num_steps):
            run.save(step, parts)
            run.record(step, {f"perplexity_{k}": perplexity(q.codebook) for k, q in enumerate(quantizers(tokenizer))})
    tokenizer.save_pretrained(run.folder / "model")
    return run.folder / "model"


def check_precisions(recipe: TokenizerRecipe) -> None:
    """Raises RecipeError for a precision that there is not; of one of matrices torch itself only warns."""
    for name, allowed in (("matmul_precision", MATMUL_PRECISIONS), ("judge_precision", tuple(PRECISIONS))):
        given = getattr(recipe, name)
        if given not in allowed:
            raise RecipeError(f"{name}={given!r}; {nearest(given, allowed)}")


def numbers(losses: dict[str, Tensor], output: TokenizerTrainingOutput) -> dict[str, float]:
    """The losses and what the first codebook leaves, in one transfer: each would make the host wait for a GPU."""
    values = dict(losses) | ({} if output.quantized is None else {"left_first": output.quantized.left[0]})
    return dict(zip(values, torch.stack([value.detach() for value in values.values()]).tolist(), strict=True))


class Court:
    """The judges of a run and their optimizer: every step they learn first, then say what the decoder is to learn."""

    def __init__(self, recipe: TokenizerRecipe, device: torch.device | None = None) -> None:
        self.recipe, self.device = recipe, device or torch.device("cpu")
        torch.manual_seed(recipe.seed)
        self.judges = Discriminators(recipe.period_channels, recipe.spectrum_channels).to(self.device)
        self.optimizer = torch.optim.AdamW(decay_groups(self.judges, 0.0), betas=(0.8, 0.99), fused=True)

    def hear(self, recorded: Tensor, made: Tensor, step: int) -> tuple[dict[str, Tensor], float]:
        """Sounds `[B, S]` -> the losses "adversarial" and "feature" of `made`, and the judges' own before its step."""
        recipe, since = self.recipe, step - self.recipe.adversarial_from
        loudness = recorded.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=QUIET)  # [B, 1]
        recorded, made = recorded / loudness, made / loudness  # biases drown what is small
        left = max(1, recipe.num_steps - recipe.adversarial_from)
        with self._computing():
            judging = judging_loss(self.judges(recorded), self.judges(made.detach()))
        rate = learning_rate(since, left, recipe.judge_rate, recipe.warmup, recipe.judge_rate / 10)
        apply_gradients(judging, self.judges, self.optimizer, rate, recipe.max_norm)
        self.judges.requires_grad_(False)
        with self._computing():
            seen = self.judges(made)
            with torch.no_grad():
                known = self.judges(recorded)
            losses = {"adversarial": deceiving_loss(seen), "feature": feature_loss(known, seen)}
        self.judges.requires_grad_(True)
        return losses, float(judging.detach())

    def _computing(self) -> Any:
        """Autocast where the recipe wants the judges in less than float32; spectra stay in it."""
        wanted = PRECISIONS[self.recipe.judge_precision]
        return torch.autocast(self.device.type, wanted, enabled=wanted != torch.float32)


def quantizers(tokenizer: HiggsAudioTokenizer) -> list[Any]:
    """The K vector quantizers."""
    return tokenizer.quantizer._all_list()


def crops(sounds: Sounds, recipe: TokenizerRecipe, generator: torch.Generator) -> Tensor:
    """A batch of random crops `[B, 1, S]`, S a multiple of the hop, each at a random level (-10 to +3 dB)."""
    length = round(recipe.crop_seconds * 25) * 960
    waveform = sounds.random_crops(recipe.batch, length, generator)
    decibels = (-10 + 13 * torch.rand(recipe.batch, 1, generator=generator)).to(waveform.device)
    return (waveform * 10 ** (decibels / 20)).clamp(-1, 1)[:, None]


def draw_depth(recipe: TokenizerRecipe, generator: torch.Generator, num_codebooks: int = 8) -> Tensor:
    """Codebooks that each sample of a batch uses, `[B]`; all of them where only the decoder learns."""
    if recipe.decoder_only:
        return torch.full((recipe.batch,), num_codebooks)
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
        count = max(1, round(recipe.heard_share * len(made)))
        heard = tokenizer._semantic_features(output.audio_values[:count])  # type: ignore[index]
        losses["heard"] = relative_error(heard, output.semantic_target[:count])  # type: ignore[index]
    return losses


def semantic_loss(values: Tensor | None, output: TokenizerTrainingOutput) -> Tensor:
    """Error of rebuilt semantic features, relative to the target's variance: 1 is as good as their mean."""
    assert values is not None and output.semantic_target is not None
    return relative_error(values, output.semantic_target)


def relative_error(values: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of `[B, F, D]` over the variance of the target around its mean over the batch."""
    return F.mse_loss(values, target) / target.var(dim=(0, 1)).mean().clamp(min=1e-6)


def total_loss(losses: dict[str, Tensor], recipe: TokenizerRecipe) -> Tensor:
    """The weighted sum; the recipe's `<name>_weight` is the weight of loss `name`."""
    return torch.stack([getattr(recipe, f"{name}_weight") * value for name, value in losses.items()]).sum()


def update_codebooks(
    tokenizer: HiggsAudioTokenizer,
    output: TokenizerTrainingOutput,
    recipe: TokenizerRecipe,
    step: int,
    generator: torch.Generator,
) -> None:
    """Moves every codebook by what this step asked of it."""
    if output.quantized is None or recipe.decoder_only:
        return
    for number, quantizer in enumerate(quantizers(tokenizer)):
        vectors = output.quantized.projected[number].flatten(0, 1)  # [B * F, width]
        update_codebook(quantizer.codebook, vectors, output.quantized.codes[number].flatten(), recipe.decay)
        if step % REVIVE_EVERY == 0:
            revive(quantizer.codebook, vectors, generator)
