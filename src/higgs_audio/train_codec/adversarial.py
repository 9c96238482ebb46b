"""The judges of a run, their optimizer, and their verdict."""

from typing import Any

import torch
from torch import Tensor

from higgs_audio.train_codec.discriminator import Discriminators, deceiving_loss, feature_loss, judging_loss
from higgs_audio.train_codec.recipe import TokenizerRecipe
from higgs_audio.training.parallel import PRECISIONS
from higgs_audio.training.run import apply_gradients, decay_groups, learning_rate

QUIET = 1e-3  # of a crop, -60 dBFS


class AdversarialLoss:
    """The judges of a run and their optimizer: every step they learn first, then say what the decoder is to learn."""

    def __init__(self, recipe: TokenizerRecipe, device: torch.device | None = None) -> None:
        self.recipe, self.device = recipe, device or torch.device("cpu")
        torch.manual_seed(recipe.seed)
        self.judges = Discriminators(recipe.period_channels, recipe.spectrum_channels).to(self.device)
        self.optimizer = torch.optim.AdamW(decay_groups(self.judges, 0.0), betas=(0.8, 0.99), fused=True)

    def losses(self, recorded: Tensor, made: Tensor, step: int) -> tuple[dict[str, Tensor], float]:
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
