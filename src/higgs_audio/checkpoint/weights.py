"""Weights: the tensors of a checkpoint's safetensors files by our names, none of them read before it is asked for."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from higgs_audio.checkpoint import layouts
from higgs_audio.checkpoint.layouts import Layout
from higgs_audio.errors import CheckpointError, OptionError, nearest

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_NAME = 255  # bytes of a file's name, as common file systems have it
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Weight:
    """A tensor that lies in a file, whole or in parts that follow one another on dimension 0.

    Indexing reads it: `weight[...]` is the tensor. transformers takes it in a state dict, as it does safetensors'
    slices, whose methods it has.
    """

    parts: tuple[Any, ...]  # slices of safetensors

    def __getitem__(self, index: Any) -> Tensor:
        read = [part[...] for part in self.parts]
        return (read[0] if len(read) == 1 else torch.cat(read))[index]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Its shape; of parts, with dimension 0 added up."""
        first, *others = (tuple(part.get_shape()) for part in self.parts)
        return (first[0] + sum(other[0] for other in others), *first[1:]) if others else first

    def get_shape(self) -> list[int]:
        """`shape`, as safetensors gives it."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """As safetensors writes it: "BF16", "F32" ..."""
        return str(self.parts[0].get_dtype())

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in its file: a number has 2 of "BF16", 1 of "F8_E4M3" and of "BOOL"."""
        bits = re.search(r"\d+", self.get_dtype())
        return self.numel * (int(bits[0]) // 8 if bits else 1)


@dataclass(frozen=True)
class Weights(Mapping[str, Weight]):
    """A language model's weights: our name -> `Weight`.

    Attributes:
        layout: of the files.
        unknown: names in the files that have no place in our module tree.
    """

    layout: Layout
    by_name: dict[str, Weight]
    unknown: tuple[str, ...]

    def __getitem__(self, name: str) -> Weight:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


def open_weights(folder: str | Path) -> Weights:
    """The weights of a language model in any layout; their headers alone are read.

    Raises:
        CheckpointError: no config.json, no weights, damaged files, files of more than one layout, or parts of a table
            that do not fit together.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_FILE)
    layouts.check_model_type(config, str(folder))
    slices = open_slices(folder)
    layout = layouts.recognise(config, slices, str(folder))
    parts, unknown = layouts.place(slices, layout)
    for names in parts.values():
        _check_parts({name: slices[name] for name in names})
    by_name = {ours: Weight(tuple(slices[name] for name in names)) for ours, names in parts.items()}
    return Weights(layout, by_name, tuple(unknown))


def _check_parts(parts: Mapping[str, Any]) -> None:
    """Raises CheckpointError where the parts of a table differ in type, of which one would be lost, or in width."""
    kinds = [(name, part.get_dtype(), list(part.get_shape())) for name, part in parts.items()]
    rows = {(dtype, len(shape), *shape[1:]) for _, dtype, shape in kinds}
    if len(kinds) > 1 and (len(rows) > 1 or not kinds[0][2]):
        listed = ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in kinds)
        raise CheckpointError(f"the parts of a table do not fit together: {listed}; they need one type and one width")


def open_slices(folder: str | Path) -> dict[str, Any]:
    """Name -> unread slice of every tensor in the weight files of a folder, spelled as there.

    Raises:
        CheckpointError: no weights, or damaged ones.
    """
    folder = Path(folder)
    slices: dict[str, Any] = {}
    files = weight_files(folder)
    for file in files:
        try:
            tensors = safe_open(file, framework="pt")
            slices |= {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} is not a whole safetensors file: {error}; fetch it again") from error
    if files[0].name != SINGLE_FILE and (lost := sorted(set(read_index(folder)) - set(slices))):
        raise CheckpointError(f"{folder / INDEX_FILE} names {len(lost)} weights that no file has: {', '.join(lost)}")
    return slices


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights.

    Where both a single file and the index of several are there, as in the published repository since April 2026, the
    original's config goes with the several, and every other with the single one.

    Raises:
        CheckpointError: none, or a file that the index names is missing.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file() and not (index.is_file() and prefers_index(read_json(folder / CONFIG_FILE))):
        return [single]
    if not index.is_file():
        raise CheckpointError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; fetch or train its weights")
    files = [folder / name for name in sorted(set(read_index(folder).values()))]
    if lost := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(lost)}, which {INDEX_FILE} names; fetch them again")
    return files


def prefers_index(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of the layout that was published in several files."""
    return config.get("model_type") == layouts.BOSON.model_type


def read_index(folder: Path) -> dict[str, str]:
    """Name of a weight -> name of its file beside the index.

    Raises:
        CheckpointError: not an index, or one that leads out of the folder.
    """
    names = read_json(folder / INDEX_FILE).get("weight_map")
    if isinstance(names, dict) and names and all(map(_is_file_name, names.values())):
        return names
    raise CheckpointError(f'{folder / INDEX_FILE} must hold {{"weight_map": {{weight: file beside it, ...}}}}')


def _is_file_name(name: Any) -> bool:
    """Whether a value from a file can be the name of one beside it."""
    return isinstance(name, str) and name == Path(name).name and 0 < len(name.encode()) <= MAX_NAME and "\0" not in name


def read_dtype(given: Any) -> torch.dtype:
    """A type of weights, by its name or itself.

    Raises:
        OptionError: none of floating-point numbers.
    """
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        names = ["auto", *(str(known).removeprefix("torch.") for known in FLOATS.values())]
        raise OptionError(f"dtype={given!r}; {nearest(str(given), names)}")
    return dtype


def read_json(file: Path) -> dict[str, Any]:
    """An object in a JSON file.

    Raises:
        CheckpointError: no such file, or no JSON object in it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds {type(content).__name__}; expected a JSON object")
    return content
