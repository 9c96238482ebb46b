"""The commands of `higgs-audio train`: each reads a recipe and runs it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from higgs_audio.errors import OptionError

R = TypeVar("R")
Recipe = Annotated[Path, typer.Argument(help="A recipe: a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override an entry of the recipe; repeatable.")
]


def language_model(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train a language model on the output of train prepare."""
    from higgs_audio.train_lm.lm import train_language_model
    from higgs_audio.train_lm.recipe import LanguageModelRecipe

    _run(train_language_model, LanguageModelRecipe, recipe, overrides)


def audio_tokenizer(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train an audio tokenizer on recordings."""
    from higgs_audio.train_codec.recipe import TokenizerRecipe
    from higgs_audio.train_codec.tokenizer import train_tokenizer

    _run(train_tokenizer, TokenizerRecipe, recipe, overrides)


def semantic_teacher(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train the semantic teacher of an audio tokenizer on transcribed recordings."""
    from higgs_audio.train_codec.teacher import TeacherRecipe, train_teacher

    _run(train_teacher, TeacherRecipe, recipe, overrides)


def prepare_clips(recipe: Recipe, overrides: Overrides = None) -> None:
    """Encode and align transcribed recordings, as input of train lm."""
    from higgs_audio.data.prepare import PrepareRecipe, prepare

    _run(prepare, PrepareRecipe, recipe, overrides)


def _run(function: Callable[[R], object], kind: type[R], path: Path, overrides: Sequence[str] | None) -> None:
    """Reads the recipe, calls `function` with it and prints the result: a path, or counts."""
    from higgs_audio.training.recipe import load_recipe

    print(function(load_recipe(path, kind, parse_overrides(overrides or ()))))


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """Parses KEY=VALUE strings, with values in YAML.

    >>> parse_overrides(["num_steps=20", "body={body: dac}"])
    {'num_steps': 20, 'body': {'body': 'dac'}}

    Raises:
        OptionError: a string without "=", or a value that is not YAML.
    """
    import yaml

    overrides = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise OptionError(f"--set {item!r}; give KEY=VALUE")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"--set {item!r}: the value is not YAML; quote it") from error
    return overrides
