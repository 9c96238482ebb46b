"""Tests of the discriminators: their inputs, the losses of both sides, and their precision."""

import dataclasses

import pytest
import torch

from higgs_audio.train_codec.adversarial import AdversarialLoss
from higgs_audio.train_codec.discriminator import (
    MIN_SAMPLES,
    PERIODS,
    SPECTRA,
    Discriminators,
    PeriodDiscriminator,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from higgs_audio.train_codec.recipe import TokenizerRecipe

RECIPE = TokenizerRecipe(
    data="", output="", adversarial_weight=1.0, period_channels=2, spectrum_channels=2, num_steps=100, warmup=1
)


def harmonic(seed, num=2):
    """Returns harmonic waveforms `[num, 4096]` with random pitches."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 100 + 100 * torch.rand(num, 1, 1, generator=generator)
    t = torch.arange(4096) / 24_000
    harmonics = torch.arange(1, 9)[:, None]
    return (torch.sin(2 * torch.pi * pitch * harmonics * t).sum(1) / 8).float()


def test_there_is_a_discriminator_with_one_score_map_for_each_period_and_resolution():
    maps = Discriminators(2, 2)(harmonic(0))
    assert len(maps) == len(PERIODS) + len(SPECTRA)
    assert all(len(one) == 5 and one[-1].shape[:2] == (2, 1) for one in maps)


def test_zero_channels_omit_a_kind_of_discriminators():
    assert len(Discriminators(0, 2)(harmonic(0))) == len(SPECTRA)
    assert len(Discriminators(2, 0)(harmonic(0))) == len(PERIODS)


def test_a_period_discriminator_has_columns_of_samples_one_period_apart():
    discriminator = PeriodDiscriminator(3, 2)
    one, other = torch.zeros(1, 300), torch.zeros(1, 300)
    other[0, 1::3] = torch.randn(100)
    changed = (discriminator(one)[-1] != discriminator(other)[-1]).any(dim=2)[0, 0]  # [period]
    assert changed.tolist() == [False, True, False]


def test_losses_have_their_known_values():
    real, decoded = Discriminators(2, 2)(harmonic(0)), Discriminators(2, 2)(harmonic(1))
    assert feature_loss(real, real) == 0 < feature_loss(real, decoded)
    ones = [[*maps[:-1], torch.ones_like(maps[-1])] for maps in real]
    zeros = [[*maps[:-1], torch.zeros_like(maps[-1])] for maps in real]
    assert discriminator_loss(ones, zeros) == 0 and discriminator_loss(ones, ones) == 1
    assert generator_loss(ones) == 0 and generator_loss(zeros) == 1


def test_discriminators_learn_to_distinguish_harmonics_from_noise_and_their_gradient_improves_the_noise():
    torch.manual_seed(0)
    adversarial = AdversarialLoss(dataclasses.replace(RECIPE, judge_rate=3e-3))
    noise = torch.randn(2, 4096) * 0.3
    own_losses = [adversarial.update(harmonic(step), noise, step)[1] for step in range(30)]
    assert own_losses[-1] < 0.5 * own_losses[0]
    decoded = noise.clone().requires_grad_()
    losses, _ = adversarial.update(harmonic(0), decoded, 30)
    losses["adversarial"].backward()
    better = decoded.detach() - 3.0 * decoded.grad / decoded.grad.abs().max()
    with torch.no_grad():
        scores = [generator_loss(adversarial.discriminators(waveform)) for waveform in (better, noise)]
    assert scores[0] < scores[1]


def test_the_losses_of_the_decoder_add_nothing_to_the_gradients_of_the_discriminators():
    adversarial = AdversarialLoss(RECIPE)
    decoded = harmonic(1).requires_grad_()
    losses, _ = adversarial.update(harmonic(0), decoded, 0)
    assert decoded.grad is None
    before = [p.grad.clone() for p in adversarial.discriminators.parameters()]
    (losses["adversarial"] + losses["feature"]).backward()
    assert decoded.grad.abs().sum() > 0
    after = [p.grad for p in adversarial.discriminators.parameters()]
    assert all(torch.equal(*pair) for pair in zip(after, before, strict=True))
    assert all(p.requires_grad for p in adversarial.discriminators.parameters())


def test_losses_do_not_depend_on_the_level_of_the_waveforms():
    """At the level of speech, biases would dominate the features, which then differ by 5 % instead of 50 %."""
    losses = [AdversarialLoss(RECIPE).update(level * harmonic(0), level * harmonic(1), 0) for level in (1.0, 0.05)]
    assert float(losses[0][0]["feature"]) == pytest.approx(float(losses[1][0]["feature"]), rel=1e-3)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-3)


def test_discriminators_in_bfloat16_have_nearly_the_same_loss():
    half = dataclasses.replace(RECIPE, judge_precision="bfloat16")
    one, other = (AdversarialLoss(recipe).update(harmonic(0), harmonic(1), 0)[0] for recipe in (RECIPE, half))
    assert float(one["feature"]) == pytest.approx(float(other["feature"]), rel=0.02)
    assert other["feature"].dtype == torch.float32


def test_a_waveform_shorter_than_a_window_is_an_assertion_error():
    with pytest.raises(AssertionError):
        Discriminators(2, 2)(torch.zeros(1, MIN_SAMPLES - 1))
