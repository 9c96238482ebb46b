"""Tests that invalid recipes of a language model are errors before anything is written."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from runs import GROUPED_TEXT, lm_recipe
from safetensors.numpy import load_file, save_file

from higgs_audio.data.shards import metadata_of
from higgs_audio.errors import RecipeError
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.recipe import LanguageModelRecipe, example_mix, loss_weights
from higgs_audio.training.recipe import load_recipe


@pytest.mark.parametrize("name", ["precision", "frozen_precision"])
def test_an_unknown_precision_is_a_recipe_error(recipe, name):
    with pytest.raises(RecipeError, match="did you mean 'bfloat16'"):
        lm.train_language_model(dataclasses.replace(recipe, **{name: "bfloat"}))


@pytest.mark.parametrize(
    "change",
    [
        {"lora_rank": -1},
        {"accumulate": 0},
        {"num_samples": 0},
        {"num_steps": 0},
        {"log_every": 0},
        {"patience": -1},
        {"reference_labels_after": -5},
        {"voice_weight": -1.0},
        {"z_weight": float("nan")},
        {"attention": "flash"},
        {"train": ("adio",)},
        {"voice_layers": (9,)},
        {"name_layer": 9},
        {"num_workers": -1},
        {"switch_share": 7.0},
        {"several_share": -0.1},
    ],
    ids=str,
)
def test_an_invalid_value_is_a_recipe_error_before_anything_is_written(recipe, change):
    """Earlier, some divided by zero, some raised errors of other packages, and some ran."""
    with pytest.raises(RecipeError, match=next(iter(change))):
        lm.train_language_model(dataclasses.replace(recipe, **change))
    assert not Path(recipe.output).exists()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").rglob("*lm*.yaml")), ids=str)
def test_every_language_model_recipe_of_the_repository_is_valid(path):
    recipe = load_recipe(path, LanguageModelRecipe)
    assert example_mix(recipe) and len(recipe.codebook_weights) == 8
    assert loss_weights(recipe, 0).of("codebook_0") > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guide_layers": (0, 2)}, "guide_layers has layer 2; the model has the layers 0 to 1"),
        ({"guide_layers": (-1,)}, "guide_layers has layer -1"),
        ({"guide_layers": ("0",)}, "guide_layers has layer 0"),
        ({"guide_layers": ()}, "guide_layers is empty"),
        ({"phone_layer": 2}, "phone_layer has layer 2; the model has the layers 0 to 1"),
        ({"codebook_weights": (1.0,) * 7}, "codebook_weights has 7 numbers and the model 8"),
        ({"codebook_weights": (0.0,) * 8}, "at least one above 0"),
        ({"codebook_weights": (1.0,) * 7 + (-1.0,)}, "must be 0 or more"),
        ({"reference_frames": (3,)}, "must be a minimum and a maximum"),
    ],
    ids=str,
)
def test_a_recipe_that_does_not_fit_its_model_is_an_error_before_anything_is_written(
    encoded, tiny_checkpoint, tmp_path, fields, message
):
    recipe = lm_recipe(encoded, tiny_checkpoint, **{**fields, "output": str(tmp_path / "run")})
    with pytest.raises(RecipeError, match=message):
        lm.train_language_model(recipe)
    assert not (tmp_path / "run").exists()


def test_codes_of_another_audio_tokenizer_are_an_error_before_training(encoded, tiny_checkpoint, tmp_path):
    copy = shutil.copytree(encoded, tmp_path / "copy")
    for file in copy.glob("*.safetensors"):
        save_file(load_file(file), file, metadata_of({"codec": "another"}))
    with pytest.raises(RecipeError, match="codec is another there"):
        lm.train_language_model(lm_recipe(copy, tiny_checkpoint, output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_state_of_another_model_is_a_recipe_error(recipe):
    lm.train_language_model(dataclasses.replace(recipe, num_steps=3))
    wider = {**GROUPED_TEXT, "hidden_size": 64}
    with pytest.raises(RecipeError, match=r"a run of another recipe: .* there and .* here"):
        lm.train_language_model(dataclasses.replace(recipe, text_config=wider))
