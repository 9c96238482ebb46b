"""Names and paths of checkpoints to folders, strict loading, whole saving, and what a folder holds."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from higgs_audio import NANO
from higgs_audio.errors import CheckpointError, first_line, nearest
from higgs_audio.weights import CONFIG_FILE as CONFIG_FILE
from higgs_audio.weights import INDEX_FILE, SINGLE_FILE, prefers_index, read_index, read_json

NAMES = {"nano": NANO}
CODEC_FOLDER = "codec"
GENERATION_FILE = "generation_config.json"
VOICES_FILE = "voices.json"
DOWNLOADED = ("*.json", "*.jinja", "codec/*")  # what every checkpoint may need; weights are asked for by name
PICKLE_FILE = "model.pth"  # of the original audio tokenizer alone
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(
    name_or_path: str | Path, revision: str | None = None, patterns: Sequence[str] | None = None, **hub: Any
) -> Path:
    """The folder of a checkpoint.

    Args:
        name_or_path: "nano", an existing folder, or a hub repository "org/name", which is downloaded once: its small
            files, and of its weights those that its config asks for.
        revision: branch, tag or commit of a repository; has no meaning for the others.
        patterns: of the files that are downloaded from a repository instead.
        **hub: cache_dir, token, local_files_only, force_download, as in huggingface_hub.

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
        return _checked(_download(name, revision, patterns, hub), f"the repository {name!r} holds no {CONFIG_FILE}")
    raise CheckpointError(f"no model {name!r}; {nearest(name, NAMES)}, a folder, or a hub repository 'org/name'")


def _checked(folder: Path, complaint: str) -> Path:
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(complaint)
    return folder


def _download(repository: str, revision: str | None, patterns: Sequence[str] | None, hub: Mapping[str, Any]) -> Path:
    """Config first, then the weights of its layout: the published repository holds those of two, 11.5 GB each."""
    try:
        small = list(patterns or DOWNLOADED)
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=small, **hub))
        for names in [] if patterns else _weights_wanted(folder):
            snapshot_download(repository, revision=folder.name, allow_patterns=names, **hub)  # of the same commit
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


# Saving.


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; its files come into `folder` when all of them are written.

    When something goes wrong before, `folder` is what it was. Weights that an earlier save left there are removed.

    Raises:
        CheckpointError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        _move_in(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move_in(part: Path, folder: Path) -> None:
    """Files of `part` into `folder`, config.json last."""
    names = sorted((path.name for path in part.iterdir()), key=lambda name: (name == CONFIG_FILE, name))
    if not names:
        return
    if not folder.exists():
        os.replace(part, folder)
        return
    for name in names:
        os.replace(part / name, folder / name)
    if INDEX_FILE in names or SINGLE_FILE in names:
        for old in (*folder.glob("model-*-of-*.safetensors"), folder / SINGLE_FILE, folder / INDEX_FILE):
            if old.name not in names:
                old.unlink(missing_ok=True)


def write_generation_config(sampling: GenerationConfig | None, folder: Path) -> None:
    """Writes generation_config.json, where there is something to write."""
    if sampling is not None:
        (folder / GENERATION_FILE).write_text(sampling.to_json_string(), encoding="utf-8")


# What a folder holds.


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
        raise CheckpointError(f"{path} does not load: {first_line(error)}") from error


def num_bytes(folder: str | Path) -> int:
    """Bytes of all files in a folder and below."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
