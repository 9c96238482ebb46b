"""Names and paths of checkpoints to files, strict loading, and what a folder holds without loading it."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel

from higgs_audio import NANO
from higgs_audio.errors import CheckpointError, nearest

M = TypeVar("M", bound=PreTrainedModel)

NAMES = {"nano": NANO}
CONFIG_FILE = "config.json"
CODEC_FOLDER = "codec"
GENERATION_FILE = "generation_config.json"
VOICES_FILE = "voices.json"
DOWNLOADED = ("*.json", "*.jinja", "*.safetensors", "codec/*")  # no pickles, no pictures
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(name_or_path: str | Path, revision: str | None = None, patterns: tuple[str, ...] = DOWNLOADED) -> Path:
    """The folder of a checkpoint.

    Args:
        name_or_path: "nano", an existing folder, or a hub repository "org/name", which is downloaded once.
        revision: branch, tag or commit of a repository; has no meaning for the others.
        patterns: of the files that are downloaded from a repository.

    Raises:
        CheckpointError: none of these, a folder without config.json, or a repository that cannot be had.

    >>> resolve("nano") == NANO  # doctest: +SKIP
    True
    """
    name = str(name_or_path)
    if name in NAMES:
        return _checked(NAMES[name], "this installation lacks the checkpoint that comes with the package")
    if name and Path(name).is_dir():
        return _checked(Path(name), f"{name!r} is a folder without {CONFIG_FILE}; give the folder of a checkpoint")
    if isinstance(name_or_path, str) and _REPOSITORY.fullmatch(name):
        return _download(name, revision, patterns)
    raise CheckpointError(f"no model {name!r}; {nearest(name, NAMES)}, a folder, or a hub repository 'org/name'")


def _checked(folder: Path, complaint: str) -> Path:
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(complaint)
    return folder


def _download(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{repository!r} is neither a folder here nor a repository that can be downloaded now ({reason}); "
            f"without a network: {nearest(repository, NAMES)}"
        ) from error


def load(kind: type[M], folder: str | Path, **options: Any) -> M:
    """`kind.from_pretrained(folder)`, where every weight must be there, fit, and be asked for; in eval mode.

    Args:
        kind: a model class of this package.
        folder: as `resolve` returns it.
        **options: of transformers' `from_pretrained`, such as `dtype`.

    Raises:
        CheckpointError: no safetensors file, a damaged one, or weights that are missing, unknown or of another shape.
    """
    try:
        loaded: Any = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    except CheckpointError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder} does not load as {kind.__name__}: {_first_line(error)}") from error
    model, report = loaded
    for complaint in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(complaint) or ())):
            what = complaint.replace("_keys", " weights")
            raise CheckpointError(f"{folder} has {len(names)} {what} for {kind.__name__}, such as {names[0]!r}")
    return cast(M, model.eval())


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def read_voices(folder: str | Path) -> dict[str, dict[str, str]]:
    """The voices that a checkpoint knows by name, in the file's order: name -> {"profile": ..., "description": ...}.

    `profile` is the text that the model knows the voice by, `description` is for people. None without voices.json.

    Raises:
        CheckpointError: the file is not of that form.
    """
    path = Path(folder) / VOICES_FILE
    if not path.is_file():
        return {}
    try:
        voices = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"description": "", **entry, "profile": str(entry["profile"])} for name, entry in voices.items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise CheckpointError(f'{path} must be like {{"ava": {{"profile": "Ava", "description": "..."}}}}') from error


def read_generation_config(folder: str | Path) -> GenerationConfig | None:
    """The sampling that goes with a checkpoint; None without generation_config.json.

    Raises:
        CheckpointError: the file does not load.
    """
    path = Path(folder) / GENERATION_FILE
    try:
        return GenerationConfig.from_pretrained(folder) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} does not load: {_first_line(error)}") from error


def count_parameters(folder: str | Path, parts: dict[str, str]) -> dict[str, int]:
    """Numbers in the safetensors files of a folder by part, read from their headers.

    Args:
        folder: of a checkpoint.
        parts: regular expression -> name of the part; the first one found in a weight's name counts. A weight that
            none fits counts under "other".

    Raises:
        CheckpointError: no safetensors file, or a damaged one.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file")
    counts: Counter[str] = Counter(dict.fromkeys(parts.values(), 0))
    for file in files:
        for name, size in _sizes(file).items():
            part = next((part for pattern, part in parts.items() if re.search(pattern, name)), "other")
            counts[part] += size
    return {part: count for part, count in counts.items() if count}


def _sizes(file: Path) -> dict[str, int]:
    """Weight -> how many numbers it has."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is not a safetensors file: {_first_line(error)}") from error


def num_bytes(folder: str | Path) -> int:
    """Bytes of all files in a folder and below."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
