"""Names and paths of checkpoints to folders, strict loading, whole saving, and what a folder holds."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from transformers import GenerationConfig

from higgs_audio.checkpoint.weights import CONFIG_FILE as CONFIG_FILE
from higgs_audio.checkpoint.weights import INDEX_FILE, SINGLE_FILE, prefers_index, read_index, read_json
from higgs_audio.errors import CheckpointError, checkpoint_errors, first_line, nearest

NANO = Path(__file__).parents[1] / "nano"  # the checkpoint that comes with the package
NAMES = {"nano": NANO}
CODEC_FOLDER = "codec"
GENERATION_FILE = "generation_config.json"
DOWNLOADED = ("*.json", "*.jinja", "codec/*")  # what every checkpoint may need; weights are asked for by name
PICKLE_FILE = "model.pth"  # of the original audio tokenizer alone
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
FOLDER_OPTIONS = (*HUB_OPTIONS, "subfolder")  # which folder is meant
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(
    name_or_path: str | Path,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
    subfolder: str | None = None,
    needs: str = CONFIG_FILE,
    **hub: Any,
) -> Path:
    """The folder of a checkpoint.

    Args:
        name_or_path: "nano", an existing folder, or a hub repository "org/name", which is downloaded once: its small
            files, and of its weights those that its config asks for.
        revision: branch, tag or commit of a repository; has no meaning for the others.
        patterns: of the files that are downloaded from a repository instead.
        subfolder: in which the checkpoint lies there.
        needs: the file that must be there.
        **hub: cache_dir, token, local_files_only, force_download, as in huggingface_hub.

    Raises:
        CheckpointError: none of these, a folder without the file that it needs, or a repository that cannot be had.

    >>> resolve("nano") == NANO  # doctest: +SKIP
    True
    """
    name, inside = str(name_or_path), subfolder or ""
    if name in NAMES:
        return _checked(NAMES[name] / inside, needs, "this installation lacks the checkpoint of the package")
    if name and os.path.isdir(name):
        folder = Path(name) / inside
        complaint = f"{str(folder)!r} is a folder without {needs}; give the folder of a checkpoint"
        return _checked(folder, needs, complaint)
    if isinstance(name_or_path, str) and _REPOSITORY.fullmatch(name):
        folder = _download(name, revision, patterns, inside, hub)
        return _checked(folder, needs, f"the repository {name!r} holds no {os.path.join(inside, needs)}")
    raise CheckpointError(f"no model {name!r:.300}; {nearest(name, NAMES)}, a folder, or a hub repository 'org/name'")


def _checked(folder: Path, needs: str, complaint: str) -> Path:
    if not os.path.isfile(folder / needs):
        raise CheckpointError(complaint)
    return folder


def _download(
    repository: str, revision: str | None, patterns: Sequence[str] | None, inside: str, hub: Mapping[str, Any]
) -> Path:
    """Config first, then the weights of its layout: the published repository holds those of two, 11.5 GB each."""
    begin = f"{inside}/" if inside else ""
    try:
        small = [begin + pattern for pattern in patterns or DOWNLOADED]
        whole = Path(snapshot_download(repository, revision=revision, allow_patterns=small, **hub))
        folder = whole / inside
        for names in [] if patterns else _weights_wanted(folder):
            wanted = [begin + name for name in names]
            snapshot_download(repository, revision=whole.name, allow_patterns=wanted, **hub)  # of the same commit
            if any((folder / name).is_file() for name in names):
                break
        return folder
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository!r} has no revision {revision!r}; give a branch, a tag or a commit"
        ) from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository!r} is neither a folder here nor a repository that can be downloaded now "
            f"({first_line(error)}); without a network: {nearest(repository, NAMES)}"
        ) from error


def _weights_wanted(folder: Path) -> list[list[str]]:
    """Sets of weight files that the downloaded small files ask for, the wanted one first."""
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    several = [sorted(set(read_index(folder).values()))] if (folder / INDEX_FILE).is_file() else []
    if several and prefers_index(config):
        return several
    return [[SINGLE_FILE], *several, *([] if "model_type" in config else [[PICKLE_FILE]])]


def read_generation_config(folder: str | Path) -> GenerationConfig | None:
    """The sampling that goes with a checkpoint; None without generation_config.json.

    Raises:
        CheckpointError: the file does not load.
    """
    path = Path(folder) / GENERATION_FILE
    if not path.is_file():
        return None
    with checkpoint_errors(f"{path} does not load"):
        return GenerationConfig.from_dict(read_json(path))


def num_bytes(folder: str | Path) -> int:
    """Bytes of all files in a folder and below."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
