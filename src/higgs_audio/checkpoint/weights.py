"""Weights: tensors in the safetensors files of a checkpoint, under the names of our module tree, read when accessed."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from higgs_audio.checkpoint import layouts
from higgs_audio.checkpoint.checkpoint import Checkpoint, as_checkpoint
from higgs_audio.checkpoint.layouts import Layout
from higgs_audio.checkpoint.names import INDEX_FILE, SINGLE_FILE
from higgs_audio.errors import CheckpointError, OptionError, nearest

MAX_NAME_BYTES = 255  # bytes of a file's name on common file systems
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Weight:
    """A tensor in a file, whole or in parts that are joined on dimension 0.

    Indexing reads it: `weight[...]` is the tensor. It has the methods of a safetensors slice, so that transformers
    accepts it in a state dict.

    Attributes:
        parts: safetensors slices, in order.
    """

    parts: tuple[Any, ...]

    def __getitem__(self, index: Any) -> Tensor:
        tensors = [part[...] for part in self.parts]
        return (tensors[0] if len(tensors) == 1 else torch.cat(tensors))[index]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the joined tensor."""
        first, *rest = (tuple(part.get_shape()) for part in self.parts)
        return (first[0] + sum(shape[0] for shape in rest), *first[1:]) if rest else first

    def get_shape(self) -> list[int]:
        """Returns `shape` as a list, as safetensors does."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Returns the dtype by its safetensors name: "BF16", "F32", ..."""
        return str(self.parts[0].get_dtype())

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size in the file: 2 bytes per element of "BF16", 1 of "F8_E4M3" and "BOOL"."""
        bits = re.search(r"\d+", self.get_dtype())
        return self.numel * (int(bits[0]) // 8 if bits else 1)


@dataclass(frozen=True)
class Weights(Mapping[str, Weight]):
    """The weights of a language model: name in our module tree -> `Weight`.

    Attributes:
        layout: layout of the files.
        by_name: the mapping.
        unknown: names in the files that have no counterpart in our module tree.
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


def open_weights(folder: str | Path | Checkpoint) -> Weights:
    """Opens the weights of a language model in any layout; reads only the headers of the files.

    Raises:
        CheckpointError: no config.json, no weights, damaged files, files of more than one layout, or parts of a weight
            that do not fit together.
    """
    checkpoint = as_checkpoint(folder)
    layouts.check_model_type(checkpoint.config, str(checkpoint))
    slices = open_slices(checkpoint)
    layout = layouts.detect_layout(checkpoint.config, slices, str(checkpoint))
    sources, unknown = layouts.match_names(slices, layout)
    for names in sources.values():
        _check_parts({name: slices[name] for name in names})
    by_name = {name: Weight(tuple(slices[part] for part in parts)) for name, parts in sources.items()}
    return Weights(layout, by_name, tuple(unknown))


def _check_parts(parts: Mapping[str, Any]) -> None:
    """Raises CheckpointError if parts of a weight differ in width, or in dtype, which joining would convert."""
    kinds = [(name, part.get_dtype(), list(part.get_shape())) for name, part in parts.items()]
    rows = {(dtype, len(shape), *shape[1:]) for _, dtype, shape in kinds}
    if len(kinds) > 1 and (len(rows) > 1 or not kinds[0][2]):
        listed = ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in kinds)
        raise CheckpointError(f"the parts of a weight do not fit together: {listed}; give parts of one dtype and width")


def save_weights(weights: Mapping[str, Weight], file: Path) -> None:
    """Copies tensors into one safetensors file; only weights that are joined from parts are loaded into memory."""
    save_file({name: weight[...] for name, weight in weights.items()}, file, metadata={"format": "pt"})


def open_slices(folder: str | Path | Checkpoint) -> dict[str, Any]:
    """Opens the weight files of a folder: stored name of every tensor -> its slice, not read yet.

    Raises:
        CheckpointError: no weights, or damaged files.
    """
    checkpoint = as_checkpoint(folder)
    slices: dict[str, Any] = {}
    files = weight_files(checkpoint)
    for file in files:
        try:
            tensors = safe_open(file, framework="pt")
            slices |= {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} is not a complete safetensors file: {error}; download it again") from error
    if files[0].name != SINGLE_FILE and (missing := sorted(set(read_index(checkpoint)) - set(slices))):
        index = checkpoint.path(INDEX_FILE)
        listed = ", ".join(missing)
        raise CheckpointError(f"{index} lists {len(missing)} weights that no file has: {listed}; download it again")
    return slices


def weight_files(folder: str | Path | Checkpoint) -> list[Path]:
    """Returns the safetensors files that hold a model's weights.

    A folder may contain both a single file and an index of several, as the published repository does since April 2026.
    Then an original config.json belongs to the several files, and any other to the single one.

    Raises:
        CheckpointError: no weights, or a file in the index is missing.
    """
    checkpoint = as_checkpoint(folder)
    has_index = checkpoint.has(INDEX_FILE)
    if checkpoint.has(SINGLE_FILE) and not (has_index and prefers_index(checkpoint.config)):
        return [checkpoint.path(SINGLE_FILE)]
    if not has_index:
        raise CheckpointError(f"{checkpoint} has neither {SINGLE_FILE} nor {INDEX_FILE}; download or train the weights")
    names = sorted(set(read_index(checkpoint).values()))
    if missing := [name for name in names if not checkpoint.has(name)]:
        raise CheckpointError(f"{checkpoint} lacks {', '.join(missing)}, which {INDEX_FILE} lists; download them again")
    return [checkpoint.path(name) for name in names]


def prefers_index(config: Mapping[str, Any]) -> bool:
    """Whether a config.json has the layout that was published in several files."""
    return config.get("model_type") == layouts.BOSON.model_type


def read_index(folder: str | Path | Checkpoint) -> dict[str, str]:
    """Reads the index: name of a weight -> name of its file, which is beside the index.

    Raises:
        CheckpointError: not an index, or an index that lists a file outside the folder.
    """
    checkpoint = as_checkpoint(folder)
    names = checkpoint.read(INDEX_FILE).get("weight_map")
    if isinstance(names, dict) and names and all(map(_is_file_name, names.values())):
        return names
    index = checkpoint.path(INDEX_FILE)
    raise CheckpointError(f'{index} must contain {{"weight_map": {{weight: file beside it, ...}}}}; download it again')


def _is_file_name(name: Any) -> bool:
    """Whether a value is the name of a file, without a folder."""
    return (
        isinstance(name, str)
        and name == Path(name).name
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
        and "\0" not in name
    )


def read_dtype(given: Any) -> torch.dtype:
    """Converts the name of a floating-point dtype to the dtype; returns a dtype unchanged.

    Raises:
        OptionError: another type or name.
    """
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        names = ["auto", *(str(known).removeprefix("torch.") for known in FLOATS.values())]
        raise OptionError(f"dtype={given!r}; {nearest(str(given), names)}")
    return dtype
