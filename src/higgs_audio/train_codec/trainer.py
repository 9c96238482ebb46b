"""Where an audio tokenizer is trained: its optimizer, its judges, its checkpoints; one step like another."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.device import read_device
from higgs_audio.train_codec.adversarial import AdversarialLoss
from higgs_audio.train_codec.codebook import perplexity
from higgs_audio.train_codec.recipe import TokenizerRecipe, check_precisions
from higgs_audio.training.recipe import save_recipe
from higgs_audio.training.run import Run, apply_gradients, decay_groups, learning_rate


class CodecTrainer:
    """A run of a recipe, begun or gone on with.

    Args:
        recipe: what to do.
        tokenizer: to train; moved to the recipe's device, and where the run was before.

    Attributes:
        step: steps that are done.
    """

    def __init__(self, recipe: TokenizerRecipe, tokenizer: HiggsAudioTokenizer) -> None:
        check_precisions(recipe)
        torch.set_float32_matmul_precision(recipe.matmul_precision)
        self.recipe, self.device = recipe, read_device(recipe.device or None)
        tokenizer.to(self.device)  # type: ignore[arg-type]  # transformers' types know no device
        self.tokenizer = tokenizer
        self._optimizer = torch.optim.AdamW(decay_groups(tokenizer, recipe.weight_decay), betas=(0.8, 0.99), fused=True)
        self._parts: dict[str, Any] = {"model": tokenizer, "optimizer": self._optimizer}
        self._court = AdversarialLoss(recipe, self.device) if recipe.adversarial_weight else None
        if self._court is not None:
            self._parts |= {"judges": self._court.judges, "judges_optimizer": self._court.optimizer}
        self._run = Run(recipe.output, recipe.save_every, recipe.log_every)
        self.step = self._run.resume(self._parts)
        save_recipe(recipe, self._run.folder / "recipe.yaml")

    @property
    def is_open(self) -> bool:
        """Whether steps are left."""
        return self.step < self.recipe.num_steps

    def learn(self, losses: dict[str, Tensor], recorded: Tensor, made: Tensor, seen: dict[str, Tensor]) -> None:
        """One step of the optimizer on `losses` and on what the judges say of sound `[B, S]`; logs them and `seen`."""
        recipe, verdict = self.recipe, {}
        if self._court is not None and self.step >= recipe.adversarial_from:
            heard = max(1, round(recipe.judged_share * len(recorded)))
            deceived, verdict["judging"] = self._court.losses(recorded[:heard], made[:heard], self.step)
            losses = losses | deceived
        rate = learning_rate(self.step, recipe.num_steps, recipe.peak_rate, recipe.warmup, recipe.final_rate)
        norm = apply_gradients(total_loss(losses, recipe), self.tokenizer, self._optimizer, rate, recipe.max_norm)
        self.step += 1
        self._run.log(self.step, numbers(losses | seen) | verdict | {"norm": norm})

    def keep(self) -> None:
        """A checkpoint where one is due."""
        if self._run.due(self.step, self.recipe.num_steps):
            self._run.save(self.step, self._parts)
            books = enumerate(quantizer.codebook for quantizer in self.tokenizer.quantizer.layers)
            self._run.record(self.step, {f"perplexity_{k}": perplexity(book) for k, book in books})

    def close(self) -> Path:
        """Writes the checkpoint `output/model` and returns that path."""
        self.tokenizer.save_pretrained(self._run.folder / "model")
        return self._run.folder / "model"


def total_loss(losses: dict[str, Tensor], recipe: TokenizerRecipe) -> Tensor:
    """The weighted sum; the recipe's `<name>_weight` is the weight of loss `name`."""
    return torch.stack([getattr(recipe, f"{name}_weight") * value for name, value in losses.items()]).sum()


def numbers(values: dict[str, Tensor]) -> dict[str, float]:
    """All in one transfer: each would make the host wait for a GPU."""
    return dict(zip(values, torch.stack([value.detach() for value in values.values()]).tolist(), strict=True))
