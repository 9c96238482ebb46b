"""Recipes: YAML files with all settings of a training run, validated and read into frozen dataclasses."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml

from higgs_audio.errors import RecipeError, nearest
from higgs_audio.files import remove_leftovers, write_atomic

R = TypeVar("R")


def load_recipe(path: str | Path, kind: type[R], overrides: dict[str, Any] | None = None) -> R:
    """Reads the YAML file at `path` into the dataclass `kind`.

    Relative paths in a recipe are relative to the working directory.

    Args:
        path: the file.
        kind: the dataclass.
        overrides: values that replace single keys; the key `a.b` replaces b in the mapping a.

    Raises:
        RecipeError: no such file, an unknown key (the message suggests the nearest), a missing key, or a value of
            another type.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{str(path)!r} is not a file: give the path of a .yaml file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must contain `key: value` lines, found {type(values).__name__}")
    for key, value in (overrides or {}).items():
        values = _replaced(values, key.split("."), value, key)
    return build(kind, values, str(path))


def _replaced(values: dict[str, Any], path: Sequence[str], value: Any, key: str) -> dict[str, Any]:
    """Returns a copy of `values` with the entry at `path` replaced."""
    first, *rest = path
    if not rest:
        return {**values, first: value}
    inner = values.get(first, {})
    if not isinstance(inner, dict):
        raise RecipeError(f"{key}: {first} is {inner!r}, which has no keys; override {first} instead")
    return {**values, first: _replaced(inner, rest, value, key)}


def build(kind: type[R], values: dict[str, Any], where: str) -> R:
    """Returns `values` as an instance of the dataclass `kind`; checks every key and type.

    Raises:
        RecipeError: an unknown or missing key, or a value of another type; the message begins with `where`.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {key!r}; {nearest(key, fields)}")
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := required - values.keys():
        raise RecipeError(f"{where}: missing {', '.join(sorted(missing))}; add the missing keys")
    kinds = get_type_hints(kind)
    typed: dict[str, Any] = {key: _typed(key, value, kinds[key], where) for key, value in values.items()}
    return kind(**typed)


def _typed(name: str, value: object, kind: Any, where: str) -> object:
    """Converts a YAML value to the type `kind`: lists to tuples, and integers and 1e-3 (a string in YAML) to floats.

    Raises:
        RecipeError: another type.
    """
    target = get_origin(kind) or kind
    if target is tuple and isinstance(value, list):
        return tuple(value)
    if target is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, target) or (isinstance(value, bool) and target is not bool):
        raise RecipeError(f"{where}: {name}={value!r} must be a {target.__name__}")
    return value


def save_recipe(recipe: Any, path: Path) -> None:
    """Writes the resolved recipe to `path`."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(recipe).items()}
    remove_leftovers(path.parent, path.name, single_writer=True)
    write_atomic(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
