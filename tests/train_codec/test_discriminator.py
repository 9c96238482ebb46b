"""Discriminators: what they see, what both sides learn, and that a run with them resumes bit for bit."""

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
    deceiving_loss,
    feature_loss,
    judging_loss,
)
from higgs_audio.train_codec.recipe import TokenizerRecipe

RECIPE = TokenizerRecipe(
    data="", output="", adversarial_weight=1.0, period_channels=2, spectrum_channels=2, num_steps=100, warmup=1
)


def sounds(seed, num=2):
    """Harmonic sounds `[num, 4096]`."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 100 + 100 * torch.rand(num, 1, 1, generator=generator)
    t = torch.arange(4096) / 24_000
    harmonics = torch.arange(1, 9)[:, None]
    return (torch.sin(2 * torch.pi * pitch * harmonics * t).sum(1) / 8).float()


def test_every_period_and_every_resolution_has_a_judge_with_one_score_map():
    maps = Discriminators(2, 2)(sounds(0))
    assert len(maps) == len(PERIODS) + len(SPECTRA)
    assert all(len(one) == 5 and one[-1].shape[:2] == (2, 1) for one in maps)


def test_either_kind_of_judge_can_be_left_out():
    assert len(Discriminators(0, 2).judges) == len(SPECTRA)
    assert len(Discriminators(2, 0).judges) == len(PERIODS)


def test_a_period_judge_sees_columns_of_samples_one_period_apart():
    judge = PeriodDiscriminator(3, 2)
    one, other = torch.zeros(1, 300), torch.zeros(1, 300)
    other[0, 1::3] = torch.randn(100)
    changed = (judge(one)[-1] != judge(other)[-1]).any(dim=2)[0, 0]  # [period]
    assert changed.tolist() == [False, True, False]


def test_losses_have_their_known_values():
    real, made = Discriminators(2, 2)(sounds(0)), Discriminators(2, 2)(sounds(1))
    assert feature_loss(real, real) == 0 < feature_loss(real, made)
    perfect = [[*maps[:-1], torch.ones_like(maps[-1])] for maps in real]
    caught = [[*maps[:-1], torch.zeros_like(maps[-1])] for maps in real]
    assert judging_loss(perfect, caught) == 0 and judging_loss(perfect, perfect) == 1
    assert deceiving_loss(perfect) == 0 and deceiving_loss(caught) == 1


def test_judges_learn_to_tell_harmonic_sound_from_noise_and_a_sound_learns_to_deceive_them():
    torch.manual_seed(0)
    court = AdversarialLoss(dataclasses.replace(RECIPE, judge_rate=3e-3))
    noise = torch.randn(2, 4096) * 0.3
    scores = [court.losses(sounds(step), noise, step)[1] for step in range(30)]
    assert scores[-1] < 0.5 * scores[0]
    made = noise.clone().requires_grad_()
    losses, _ = court.losses(sounds(0), made, 30)
    losses["adversarial"].backward()
    better = made.detach() - 3.0 * made.grad / made.grad.abs().max()
    with torch.no_grad():
        assert deceiving_loss(court.judges(better)) < deceiving_loss(court.judges(noise))


def test_hearing_a_sound_moves_the_judges_by_their_own_loss_alone():
    """What the decoder learns from them adds nothing to their gradients."""
    court = AdversarialLoss(RECIPE)
    made = sounds(1).requires_grad_()
    losses, _ = court.losses(sounds(0), made, 0)
    assert made.grad is None
    before = [p.grad.clone() for p in court.judges.parameters()]
    (losses["adversarial"] + losses["feature"]).backward()
    assert made.grad.abs().sum() > 0
    assert all(torch.equal(p.grad, g) for p, g in zip(court.judges.parameters(), before, strict=True))
    assert all(p.requires_grad for p in court.judges.parameters())


def test_judges_hear_a_quiet_sound_as_they_hear_a_loud_one():
    """At the level of speech, biases would be most of what they see: features differed by 5 % instead of 50."""
    losses = [AdversarialLoss(RECIPE).losses(level * sounds(0), level * sounds(1), 0) for level in (1.0, 0.05)]
    assert float(losses[0][0]["feature"]) == pytest.approx(float(losses[1][0]["feature"]), rel=1e-3)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-3)


def test_judges_in_bfloat16_hear_nearly_the_same():
    half = dataclasses.replace(RECIPE, judge_precision="bfloat16")
    one, other = (AdversarialLoss(recipe).losses(sounds(0), sounds(1), 0)[0] for recipe in (RECIPE, half))
    assert float(one["feature"]) == pytest.approx(float(other["feature"]), rel=0.02)
    assert other["feature"].dtype == torch.float32


def test_a_sound_shorter_than_a_window_is_an_error_of_ours():
    with pytest.raises(AssertionError):
        Discriminators(2, 2)(torch.zeros(1, MIN_SAMPLES - 1))
