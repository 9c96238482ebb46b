"""Adversarial training: the discriminators of a run, their optimizer, and the losses of discriminators and decoder."""

import torch
from torch import Tensor

from higgs_audio.train_codec.discriminator import Discriminators, discriminator_loss, feature_loss, generator_loss
from higgs_audio.train_codec.recipe import TokenizerRecipe
from higgs_audio.training.parallel import PRECISIONS
from higgs_audio.training.run import apply_gradients, decay_groups, learning_rate

MIN_RMS = 1e-3  # -60 dBFS


class AdversarialLoss:
    """The discriminators and their optimizer. Each step trains them, then computes the decoder's adversarial losses.

    Args:
        recipe: the recipe of the run.
        device: the device; the CPU when None.
    """

    def __init__(self, recipe: TokenizerRecipe, device: torch.device | None = None) -> None:
        self.recipe, self.device = recipe, device or torch.device("cpu")
        torch.manual_seed(recipe.seed)
        self.discriminators = Discriminators(recipe.period_channels, recipe.spectrum_channels).to(self.device)
        self.optimizer = torch.optim.AdamW(decay_groups(self.discriminators, 0.0), betas=(0.8, 0.99), fused=True)

    def update(self, real: Tensor, decoded: Tensor, step: int) -> tuple[dict[str, Tensor], float]:
        """Trains the discriminators on waveforms `[B, S]`.

        Returns:
            The losses "adversarial" and "feature" of `decoded`, and the discriminators' own loss before this step.
        """
        rms = real.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=MIN_RMS)  # [B, 1]
        real, decoded = real / rms, decoded / rms  # biases dominate the features of quiet audio
        own_loss = self._train(real, decoded.detach(), step - self.recipe.adversarial_from)
        self.discriminators.requires_grad_(False)
        with self._autocast():
            decoded_maps = self.discriminators(decoded)
            with torch.no_grad():
                real_maps = self.discriminators(real)
            losses = {"adversarial": generator_loss(decoded_maps), "feature": feature_loss(real_maps, decoded_maps)}
        self.discriminators.requires_grad_(True)
        return losses, own_loss

    def _train(self, real: Tensor, decoded: Tensor, step: int) -> float:
        """Runs step number `step` of the discriminators' optimizer; returns their loss before it."""
        recipe = self.recipe
        with self._autocast():
            loss = discriminator_loss(self.discriminators(real), self.discriminators(decoded))
        num_steps = max(1, recipe.num_steps - recipe.adversarial_from)
        rate = learning_rate(step, num_steps, recipe.judge_rate, recipe.warmup, recipe.judge_rate / 10)
        apply_gradients(loss, self.discriminators, self.optimizer, rate, recipe.max_norm)
        return float(loss.detach())

    def _autocast(self) -> torch.autocast:
        """Returns autocast to the recipe's precision; STFTs stay in float32."""
        dtype = PRECISIONS[self.recipe.judge_precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
