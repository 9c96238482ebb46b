"""CodecTrainer: the optimizer, discriminators, checkpoints and metrics of a tokenizer run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.device import resolve_device
from higgs_audio.train_codec.adversarial import AdversarialLoss
from higgs_audio.train_codec.codebook import perplexity
from higgs_audio.train_codec.recipe import TokenizerRecipe, check_precisions
from higgs_audio.train_codec.semantic import first_share
from higgs_audio.training.recipe import save_recipe
from higgs_audio.training.run import Run, apply_gradients, decay_groups, learning_rate


class CodecTrainer:
    """Starts or resumes the run of a recipe.

    Args:
        recipe: the recipe of the run.
        tokenizer: the model to train; moved to the recipe's device and loaded from the run's last checkpoint.

    Attributes:
        step: number of finished steps.
    """

    def __init__(self, recipe: TokenizerRecipe, tokenizer: HiggsAudioTokenizer) -> None:
        check_precisions(recipe)
        torch.set_float32_matmul_precision(recipe.matmul_precision)
        self.recipe, self.device = recipe, resolve_device(recipe.device or None)
        tokenizer.to(self.device)  # type: ignore[arg-type]  # missing in the annotations of transformers
        self.tokenizer = tokenizer
        self._optimizer = torch.optim.AdamW(decay_groups(tokenizer, recipe.weight_decay), betas=(0.8, 0.99), fused=True)
        self._parts: dict[str, Any] = {"model": tokenizer, "optimizer": self._optimizer}
        self._adversarial = AdversarialLoss(recipe, self.device) if recipe.adversarial_weight else None
        if self._adversarial is not None:  # saved states have these keys
            self._parts |= {
                "judges": self._adversarial.discriminators,
                "judges_optimizer": self._adversarial.optimizer,
            }
        self._run = Run(recipe.output, recipe.save_every, recipe.log_every)
        self.step = self._run.resume(self._parts)
        save_recipe(recipe, self._run.folder / "recipe.yaml")

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.recipe.num_steps

    def train_step(
        self, losses: dict[str, Tensor], recorded: Tensor, decoded: Tensor, metrics: dict[str, Tensor]
    ) -> None:
        """Runs one optimizer step on `losses` and the adversarial losses of waveforms `[B, S]`; logs all metrics.

        Args:
            losses: name -> unweighted loss.
            recorded, decoded: `[B, S]`, inputs of the discriminators.
            metrics: other values to log.

        Raises:
            NumericsError: a loss is not finite.
        """
        recipe, own_loss = self.recipe, {}
        if self._adversarial is not None and self.step >= recipe.adversarial_from:
            real, fake = (first_share(waveforms, recipe.judged_share) for waveforms in (recorded, decoded))
            adversarial, own_loss["judging"] = self._adversarial.update(real, fake, self.step)
            losses = losses | adversarial
        rate = learning_rate(self.step, recipe.num_steps, recipe.peak_rate, recipe.warmup, recipe.final_rate)
        norm = apply_gradients(total_loss(losses, recipe), self.tokenizer, self._optimizer, rate, recipe.max_norm)
        self.step += 1
        self._run.log(self.step, to_floats(losses | metrics) | own_loss | {"norm": norm})

    def save_if_due(self) -> None:
        """Saves a checkpoint and records the codebooks' perplexities, every `save_every` steps and after the last."""
        if self._run.should_save(self.step, self.recipe.num_steps):
            self._run.save(self.step, self._parts)
            books = enumerate(quantizer.codebook for quantizer in self.tokenizer.quantizer.layers)
            self._run.record(self.step, {f"perplexity_{k}": perplexity(book) for k, book in books})

    def export(self) -> Path:
        """Writes the tokenizer to `output/model` and returns that path."""
        self.tokenizer.save_pretrained(self._run.folder / "model")
        return self._run.folder / "model"


def total_loss(losses: dict[str, Tensor], recipe: TokenizerRecipe) -> Tensor:
    """Returns the weighted sum; the recipe's `<name>_weight` is the weight of loss `name`."""
    return torch.stack([getattr(recipe, f"{name}_weight") * value for name, value in losses.items()]).sum()


def to_floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Converts scalars in one transfer, because each transfer makes the host wait for a GPU."""
    return dict(zip(values, torch.stack([value.detach() for value in values.values()]).tolist(), strict=True))
