"""Tests of recipes: YAML files that are read strictly into dataclasses, and written back."""

import pytest
from corpus import HUBERT
from killing import hidden_names, run_until_rename
from runs import VOCOS

from higgs_audio.data.prepare import PrepareRecipe
from higgs_audio.errors import RecipeError
from higgs_audio.train_codec.recipe import TokenizerRecipe
from higgs_audio.train_codec.teacher import TeacherRecipe
from higgs_audio.train_lm.recipe import LanguageModelRecipe
from higgs_audio.training.recipe import load_recipe, save_recipe

RECIPE = "data: corpus\nteacher: t\noutput: run\n"


def read_recipe(tmp_path, text, kind=TokenizerRecipe, **overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, kind, overrides)


def test_a_recipe_has_the_values_of_its_file_defaults_and_overrides(tmp_path):
    recipe = read_recipe(tmp_path, RECIPE + "peak_rate: 1e-3\nmel_weight: 3\nbody: {body: dac}\n", seed=7)
    assert (recipe.peak_rate, recipe.mel_weight, recipe.body, recipe.seed) == (1e-3, 3.0, {"body": "dac"}, 7)
    assert recipe.num_steps == TokenizerRecipe("", "").num_steps


def test_a_dotted_override_replaces_one_entry_of_a_mapping(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{data: a, heldout: b, processor: c, output: d, text_config: {hidden_size: 8, head_dim: 4}}")
    recipe = load_recipe(path, LanguageModelRecipe, {"text_config.hidden_size": 16, "text_config.mlp.bias": True})
    assert recipe.text_config == {"hidden_size": 16, "head_dim": 4, "mlp": {"bias": True}}
    with pytest.raises(RecipeError, match="has no keys"):
        load_recipe(path, LanguageModelRecipe, {"output.here": 1})


def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match=r"unknown key 'num_step'; did you mean 'num_steps'\?"):
        read_recipe(tmp_path, RECIPE + "num_step: 3\n")
    with pytest.raises(RecipeError, match="did you mean 'seed'"):
        read_recipe(tmp_path, RECIPE, sed=3)


@pytest.mark.parametrize(
    "line",
    [
        *("num_steps: many", "num_steps: 1.5", "num_steps: true", "num_steps:", "peak_rate: high"),
        *("num_steps: [3]", "body: vocos", "data: 3", "peak_rate: true"),
    ],
)
def test_a_value_of_another_type_is_a_recipe_error(tmp_path, line):
    with pytest.raises(RecipeError, match=line.split(":")[0]):
        read_recipe(tmp_path, RECIPE + line + "\n")


@pytest.mark.parametrize("text", ["data: corpus\n", "[1, 2]", "- a\n- b", "a: [", ""])
def test_a_missing_key_or_file_or_mapping_is_a_recipe_error(tmp_path, text):
    with pytest.raises(RecipeError):
        read_recipe(tmp_path, text)
    with pytest.raises(RecipeError, match="is not a file"):
        load_recipe(tmp_path / "none.yaml", TokenizerRecipe)


@pytest.mark.parametrize(
    "recipe",
    [
        TeacherRecipe("corpus", "run", hubert=HUBERT, peak_rate=2e-5),
        TokenizerRecipe("corpus", "run", teacher="teacher", body=VOCOS),
        LanguageModelRecipe("a", "b", "c", "d", profiles={"ava": "Ava"}, guide_layers=(0,)),
        PrepareRecipe("a", "b", "c", "d"),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_a_saved_recipe_loads_as_it_was(tmp_path, recipe):
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml", type(recipe)) == recipe


SAVE = """
from pathlib import Path
from higgs_audio.data.prepare import PrepareRecipe
from higgs_audio.training.recipe import save_recipe
save_recipe(PrepareRecipe("a", "b", "c", "new"), Path(sys.argv[1]))
"""


def test_a_killed_save_keeps_the_recipe_and_the_next_one_removes_its_temporary_file(tmp_path):
    path, recipe = tmp_path / "recipe.yaml", PrepareRecipe("a", "b", "c", "old")
    save_recipe(recipe, path)
    run_until_rename(SAVE, path)
    (leftover,) = hidden_names(tmp_path)
    assert leftover.startswith(".recipe.yaml.")
    assert load_recipe(path, PrepareRecipe) == recipe
    save_recipe(recipe, path)
    assert list(tmp_path.iterdir()) == [path]
