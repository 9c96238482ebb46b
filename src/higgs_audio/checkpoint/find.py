"""Finds checkpoints: a name, path or hub repository -> a `Checkpoint`, downloaded where necessary."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from transformers import GenerationConfig
from typing_extensions import TypedDict, Unpack

from higgs_audio.checkpoint.checkpoint import Checkpoint, as_checkpoint
from higgs_audio.checkpoint.names import (
    CODEC_FOLDER,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    PICKLE_FILE,
    SINGLE_FILE,
)
from higgs_audio.checkpoint.weights import prefers_index, read_index
from higgs_audio.errors import CheckpointError, checkpoint_errors, first_line, nearest

NANO = Path(__file__).parents[1] / "nano"  # the included checkpoint
NAMES = {"nano": NANO}
DOWNLOADED = ("*.json", "*.jinja", f"{CODEC_FOLDER}/*")  # from every repository; weights are downloaded by name
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubOptions(TypedDict, total=False):
    """Options of a download, as in huggingface_hub."""

    cache_dir: str | Path | None
    token: str | bool | None
    local_files_only: bool
    force_download: bool


class FolderOptions(HubOptions, total=False):
    """Options of `open_checkpoint` that callers pass through: those of a download, and where the folder is."""

    revision: str | None
    subfolder: str | None


HUB_OPTIONS = ("revision", *HubOptions.__annotations__)
FOLDER_OPTIONS = tuple(FolderOptions.__annotations__)


def open_checkpoint(
    name_or_path: str | Path | Checkpoint,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
    subfolder: str | None = None,
    required_file: str = CONFIG_FILE,
    **hub: Unpack[HubOptions],
) -> Checkpoint:
    """Finds a checkpoint, and downloads it if it is in a hub repository.

    Args:
        name_or_path: "nano", an existing folder, a hub repository "org/name", or a `Checkpoint`, which is returned.
            From a repository, small files are downloaded first, then the weights that its config.json requires.
        revision: branch, tag or commit of a repository; ignored for folders.
        patterns: glob patterns of the files to download from a repository, in place of small files and weights.
        subfolder: the checkpoint's folder inside `name_or_path`.
        required_file: a file that the folder must contain.
        **hub: options of the download, see `HubOptions`.

    Raises:
        CheckpointError: `name_or_path` is none of these, the folder lacks `required_file`, or the repository cannot be
            downloaded.

    >>> open_checkpoint("nano").folder == NANO
    True
    """
    name, inside = str(name_or_path), subfolder or ""
    if isinstance(name_or_path, Checkpoint):
        return _check_folder(name_or_path.inside(inside), required_file)
    if name in NAMES and not inside:
        return _check(
            Checkpoint(NAMES[name]),
            required_file,
            "this installation lacks the included checkpoint; install the package again",
        )
    if name in NAMES or (name and os.path.isdir(name)):
        return _check_folder(Checkpoint(Path(NAMES.get(name, name)) / inside), required_file)
    if isinstance(name_or_path, str) and _REPOSITORY.fullmatch(name):
        found = _download(name, revision, patterns, inside, hub)
        missing = os.path.join(inside, required_file)
        return _check(
            found, required_file, f"the repository {name!r} has no {missing}; give the repository of a checkpoint"
        )
    raise CheckpointError(f"no model {name!r:.300}; {nearest(name, NAMES)}, a folder, or a hub repository 'org/name'")


def _check_folder(checkpoint: Checkpoint, required_file: str) -> Checkpoint:
    message = f"{str(checkpoint)!r} is a folder without {required_file}; give the folder of a checkpoint"
    return _check(checkpoint, required_file, message)


def _check(checkpoint: Checkpoint, required_file: str, message: str) -> Checkpoint:
    if not checkpoint.has(required_file):
        raise CheckpointError(message)
    return checkpoint


def _download(
    repository: str, revision: str | None, patterns: Sequence[str] | None, inside: str, hub: HubOptions
) -> Checkpoint:
    """Downloads the small files, then the weights of one layout: the published repository holds two, 11.5 GB each."""
    prefix = f"{inside}/" if inside else ""
    try:
        small = [prefix + pattern for pattern in patterns or DOWNLOADED]
        snapshot = Path(snapshot_download(repository, revision=revision, allow_patterns=small, **hub))
        checkpoint = Checkpoint(snapshot / inside)
        for names in [] if patterns else _weight_sets(checkpoint):
            weights = [prefix + name for name in names]
            snapshot_download(repository, revision=snapshot.name, allow_patterns=weights, **hub)  # of the same commit
            if any(map(checkpoint.has, names)):
                break
        return checkpoint
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository!r} has no revision {revision!r}; give a branch, a tag or a commit"
        ) from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository!r} is neither a local folder nor a repository that can be downloaded now "
            f"({first_line(error)}); without a network: {nearest(repository, NAMES)}"
        ) from error


def _weight_sets(checkpoint: Checkpoint) -> list[list[str]]:
    """Returns the sets of files that may hold the weights of a downloaded config.json, the preferred set first."""
    config = checkpoint.read_if_present(CONFIG_FILE)
    shards = [sorted(set(read_index(checkpoint).values()))] if checkpoint.has(INDEX_FILE) else []
    if shards and prefers_index(config):
        return shards
    return [[SINGLE_FILE], *shards, *([] if "model_type" in config else [[PICKLE_FILE]])]


def read_generation_config(folder: str | Path | Checkpoint) -> GenerationConfig | None:
    """Returns the sampling options of a checkpoint; None without generation_config.json.

    Raises:
        CheckpointError: the file does not load.
    """
    checkpoint = as_checkpoint(folder)
    if not checkpoint.has(GENERATION_FILE):
        return None
    with checkpoint_errors(f"{checkpoint.path(GENERATION_FILE)} does not load"):
        return GenerationConfig.from_dict(checkpoint.read(GENERATION_FILE))


def num_bytes(folder: str | Path) -> int:
    """Returns the size of all files in a folder and its subfolders, in bytes."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
