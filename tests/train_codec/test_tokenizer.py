"""Tests of training the audio tokenizer."""

import dataclasses
from pathlib import Path

import pytest
import torch
from runs import VOCOS, check_resumed, tokenizer_recipe

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.errors import RecipeError
from higgs_audio.train_codec import tokenizer
from higgs_audio.train_codec.recipe import TokenizerRecipe
from higgs_audio.training.recipe import load_recipe


def test_waveforms_use_one_codebook_some_or_all():
    recipe = TokenizerRecipe("", "", batch=20_000, depth_one=0.2, depth_any=0.4)
    counts = torch.bincount(tokenizer.draw_depth(recipe, torch.Generator().manual_seed(0)), minlength=9) / 20_000
    assert counts[0] == 0
    assert counts[1] == pytest.approx(0.2 + 0.05, abs=0.02)
    assert counts[5] == pytest.approx(0.05, abs=0.02)
    assert counts[8] == pytest.approx(0.4 + 0.05, abs=0.02)


def test_quantizers_are_fitted_before_their_first_step_and_again_in_the_first_share_of_the_run():
    recipe = TokenizerRecipe("", "", num_steps=100, warmup_unquantized=10, refit_every=20, refit_share=0.7)
    assert [step for step in range(99) if tokenizer.is_refit(recipe, step)] == [10, 30, 50]
    late = dataclasses.replace(recipe, warmup_unquantized=90)
    assert [step for step in range(99) if tokenizer.is_refit(late, step)] == [90]


@pytest.mark.parametrize("head", ["spectrum", "harmonic"])
@pytest.mark.parametrize("kills", [(3,), (6, 1)], ids=["first quantized step", "later"])
def test_a_tokenizer_run_that_is_killed_and_resumed_equals_an_uninterrupted_one(
    corpus, tiny_teacher, tmp_path, kills, head
):
    recipe = TokenizerRecipe(
        data=str(corpus),
        teacher=str(tiny_teacher),
        output="",
        body=VOCOS | {"decoder_head": head},
        codebook_dim=8,
        num_steps=8,
        batch=4,
        crop_seconds=0.4,
        warmup_unquantized=2,
        refit_every=3,
        refit_share=0.9,
        replace_every=3,
        kmeans_batches=26,  # of 40 vectors each: just above the 1024 entries
        heard_weight=0.5,
        adversarial_weight=0.1,
        adversarial_from=3,
        period_channels=2,
        spectrum_channels=2,
        warmup=2,
        save_every=2,
        log_every=2,
    )
    check_resumed(tmp_path, tokenizer.train_tokenizer, recipe, kills)
    trained = HiggsAudioTokenizer.from_pretrained(tmp_path / "whole" / "model")
    assert all(float(layer.codebook.inited) == 1 for layer in trained.quantizer.layers)
    assert trained.encode(torch.zeros(1, 1, 4800)).audio_codes.shape == (1, 8, 5)


def test_gradients_of_a_step_without_quantizer_are_summed_in_one_order(tiny_checkpoint):
    """A run that an earlier version started continues bit for bit. The sum of three floats depends on their order,
    which follows from that of the operations in `forward`; the semantic features once came before the decoder.
    """
    model = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec").train()
    output = model(0.1 * torch.randn(2, 1, 8 * 960, generator=torch.Generator().manual_seed(0)), None)
    losses = [values.pow(2).mean() for values in (output.audio_values, output.semantic_values, output.latent)]
    decoder, semantic, scale = (torch.autograd.grad(loss, output.latent, retain_graph=True)[0] for loss in losses)
    (total,) = torch.autograd.grad(sum(losses), output.latent)
    assert torch.equal(total, scale + semantic + decoder)
    assert not torch.equal(total, scale + decoder + semantic)


def test_an_unknown_matmul_precision_is_a_recipe_error(corpus, tmp_path, tiny_teacher):
    recipe = tokenizer_recipe(corpus, tmp_path / "run", teacher=str(tiny_teacher), matmul_precision="hihg")
    with pytest.raises(RecipeError, match="'high'"):
        tokenizer.train_tokenizer(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").rglob("*tokenizer*.yaml")), ids=str)
def test_every_tokenizer_recipe_of_the_repository_is_read(path):
    assert load_recipe(path, TokenizerRecipe).num_steps >= 1000


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"start": "a", "teacher": "b"},
        *({"teacher": "b", name: True} for name in ("decoder_only", "fixed_codebooks")),
    ],
    ids=["neither", "both", "decoder_only without a start", "fixed_codebooks without a start"],
)
def test_a_run_needs_either_a_teacher_or_a_start(tmp_path, changes):
    with pytest.raises(RecipeError, match="give a teacher for a new tokenizer, or a start"):
        tokenizer.initial_tokenizer(tokenizer_recipe("corpus", tmp_path, **changes))


@pytest.mark.parametrize("fixed", [True, False])
def test_fixed_codebooks_stay_while_encoder_and_decoder_are_trained(corpus, tiny_checkpoint, tmp_path, fixed):
    start = str(tiny_checkpoint / "codec")
    recipe = tokenizer_recipe(
        corpus, tmp_path / "run", start=start, fixed_codebooks=fixed, num_steps=2, replace_every=1
    )
    models = [HiggsAudioTokenizer.from_pretrained(path) for path in (start, tokenizer.train_tokenizer(recipe))]
    before, after = (model.state_dict() for model in models)
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"acoustic_encoder", "acoustic_decoder", "fc"} <= changed
    assert ("quantizer" in changed) is not fixed


def test_the_semantic_branch_of_an_ablation_stays_zero(corpus, tiny_teacher, tmp_path):
    ablation = {"semantic_branch": False, "semantic_weight": 0.0, "first_weight": 0.0, "acoustic_share": 1.0}
    for changes, is_used in (({}, True), (ablation, False)):
        recipe = tokenizer_recipe(corpus, tmp_path / str(is_used), teacher=str(tiny_teacher), num_steps=6, **changes)
        trained = HiggsAudioTokenizer.from_pretrained(tokenizer.train_tokenizer(recipe))
        features = torch.randn(1, trained.config.semantic.hidden_size, 5, generator=torch.Generator().manual_seed(0))
        assert bool(trained.encoder_semantic(features).abs().sum() > 0) is is_used
