"""The commands of `higgs-audio train`: each reads a recipe and runs it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from higgs_audio.errors import OptionError

Recipe = Annotated[Path, typer.Argument(help="YAML file.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replaces a key of it.")]


def language_model(recipe: Recipe, overrides: Overrides = None) -> None:
    """The language model, on prepared clips."""
    from higgs_audio.train_lm.lm import train_language_model
    from higgs_audio.train_lm.recipe import LanguageModelRecipe

    _train(train_language_model, LanguageModelRecipe, recipe, overrides)


def audio_tokenizer(recipe: Recipe, overrides: Overrides = None) -> None:
    """The audio tokenizer, on recordings."""
    from higgs_audio.train_codec.recipe import TokenizerRecipe
    from higgs_audio.train_codec.tokenizer import train_tokenizer

    _train(train_tokenizer, TokenizerRecipe, recipe, overrides)


def semantic_teacher(recipe: Recipe, overrides: Overrides = None) -> None:
    """The audio tokenizer's semantic teacher, on recordings with their texts."""
    from higgs_audio.train_codec.teacher import TeacherRecipe, train_teacher

    _train(train_teacher, TeacherRecipe, recipe, overrides)


def prepared_clips(recipe: Recipe, overrides: Overrides = None) -> None:
    """Recordings with their texts to what train lm reads: codes, phonemes, alignments."""
    from higgs_audio.data.prepare import PrepareRecipe, prepare

    _train(prepare, PrepareRecipe, recipe, overrides)


def _train(work: Callable[[Any], object], kind: type, path: Path, overrides: Sequence[str] | None) -> None:
    """Reads the recipe, does the work, prints what it returns: a path or counts."""
    from higgs_audio.training.recipe import load_recipe

    print(work(load_recipe(path, kind, _read_overrides(overrides or ()))))


def _read_overrides(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE strings, values as YAML reads them."""
    import yaml

    overrides = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise OptionError(f"--set {item!r}; give KEY=VALUE")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"--set {item!r}: the value is not YAML") from error
    return overrides
