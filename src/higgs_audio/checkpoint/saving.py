"""Writes the folder of a checkpoint atomically: it holds all of the new files or none of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import GenerationConfig

from higgs_audio.checkpoint.names import CONFIG_FILE, GENERATION_FILE, INDEX_FILE, SINGLE_FILE
from higgs_audio.errors import CheckpointError, first_line
from higgs_audio.files import temporary_folder

PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder; at the end, moves the files written there, subfolders included, into `folder`.

    If the block fails or the process is killed, `folder` is unchanged. Other files in it are kept, except the weights
    of an earlier save. Files get the permissions of newly created ones.

    Args:
        folder: created if it does not exist.

    Raises:
        CheckpointError: `folder` is a file or cannot be written, for lack of permission or of disk space.
    """
    folder = Path(os.path.abspath(folder))
    if os.path.isfile(folder):
        raise CheckpointError(f"{folder} is a file; give a folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(_temporary_parent(folder), folder.name) as part:
            yield part
            _move_in(part, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be written: {first_line(error)}; give another folder, or free disk space"
        ) from error


@contextmanager
def saved_model(model: Any, folder: str | Path, push_to_hub: bool, options: dict[str, Any]) -> Iterator[Path]:
    """`atomic_folder` for a model's `save_pretrained`, followed by the upload if `push_to_hub` is set.

    Args:
        model: the model to save.
        folder: as in `atomic_folder`.
        push_to_hub: whether to upload the model to the repository `repo_id` of the options, the folder's name by
            default.
        options: keyword arguments of `save_pretrained`; those of `PUSH_OPTIONS` are removed.
    """
    hub = {name: options.pop(name) for name in PUSH_OPTIONS if name in options}
    with atomic_folder(folder) as part:
        yield part
    if push_to_hub:
        model.push_to_hub(hub.pop("repo_id", Path(os.path.abspath(folder)).name), **hub)


def _temporary_parent(folder: Path) -> Path:
    """Returns where new files for `folder` are written: beside it, or inside it if its parent is on another disk or is
    not writable."""
    parent = folder.parent
    is_inside = folder.exists() and (folder.stat().st_dev != parent.stat().st_dev or not os.access(parent, os.W_OK))
    return folder if is_inside else parent


def _move_in(part: Path, folder: Path) -> None:
    """Moves the files of `part` into `folder`, every config.json last."""
    files = sorted((file for file in part.rglob("*") if file.is_file()), key=lambda file: file.name == CONFIG_FILE)
    permissions = part.stat().st_mode & 0o666
    for file in files:
        file.chmod(permissions)  # safetensors creates files that only their owner may read
    if not folder.exists():
        os.replace(part, folder)
        return
    for inside in {file.parent.relative_to(part) for file in files}:
        (folder / inside).mkdir(parents=True, exist_ok=True)
    for file in files:
        os.replace(file, folder / file.relative_to(part))
    for parent in {file.parent for file in files if file.name in (INDEX_FILE, SINGLE_FILE)}:
        new = {file.name for file in files if file.parent == parent}
        _remove_old_weights(folder / parent.relative_to(part), new)


def _remove_old_weights(folder: Path, new: set[str]) -> None:
    """Removes weight files of an earlier save, those not in `new`."""
    for file in (*folder.glob("model-*-of-*.safetensors"), folder / SINGLE_FILE, folder / INDEX_FILE):
        if file.name not in new:
            file.unlink(missing_ok=True)


def write_generation_config(sampling: GenerationConfig | None, folder: Path) -> None:
    """Writes generation_config.json, unless `sampling` is None."""
    if sampling is not None:
        (folder / GENERATION_FILE).write_text(sampling.to_json_string(), encoding="utf-8")
