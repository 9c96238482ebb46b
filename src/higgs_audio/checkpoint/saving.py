"""Saving checkpoint folders as a whole."""

import glob
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import GenerationConfig

from higgs_audio.checkpoint.find import GENERATION_FILE
from higgs_audio.checkpoint.weights import CONFIG_FILE as CONFIG_FILE
from higgs_audio.checkpoint.weights import INDEX_FILE, SINGLE_FILE
from higgs_audio.errors import CheckpointError, first_line

PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


# Saving.


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A new folder to write into; its files, and those in its folders, come into `folder` when all are written.

    When something goes wrong before, or the process is killed, `folder` is what it was. Other files that are there
    stay, but weights of an earlier save go. Files get the rights that the process gives to new ones.

    Args:
        folder: made where it is missing.

    Raises:
        CheckpointError: `folder` is a file, or cannot be written: no right to, a full disk.
    """
    folder = Path(os.path.abspath(folder))
    if os.path.isfile(folder):
        raise CheckpointError(f"{folder} is a file; give a folder")
    try:
        part = _new_part(folder)
        try:
            yield part
            _move_in(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be written: {first_line(error)}; give another folder, or room"
        ) from error


@contextmanager
def saved_model(model: Any, folder: str | Path, push_to_hub: bool, options: dict[str, Any]) -> Iterator[Path]:
    """`whole_folder` for a model's `save_pretrained`, whose folder is uploaded afterwards if it is asked for.

    Args:
        model: that is saved.
        push_to_hub: whether to upload it, to the `repo_id` in the options or one of the folder's name.
        options: of the caller; those of the upload are taken out.
    """
    hub = {name: options.pop(name) for name in PUSH_OPTIONS if name in options}
    with whole_folder(folder) as part:
        yield part
    if push_to_hub:
        model.push_to_hub(hub.pop("repo_id", Path(os.path.abspath(folder)).name), **hub)


def _new_part(folder: Path) -> Path:
    """A hidden folder beside `folder`, or inside where that is another disk or may not be written.

    Its name ends in node, process and a random token, so that nobody else writes there; those that processes of this
    node left behind when they were killed are removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.parent
    if folder.exists() and (folder.stat().st_dev != place.stat().st_dev or not os.access(place, os.W_OK)):
        place = folder
    begin = f".{folder.name:.30}.{platform.node():.30}"  # in bytes it may be four times as long, and 255 are allowed
    for left in place.glob(f"{glob.escape(begin)}.*.*.part"):
        if not _is_running(left.name.split(".")[-3]):
            shutil.rmtree(left, ignore_errors=True)
    part = place / f"{begin}.{os.getpid()}.{secrets.token_hex(4)}.part"
    part.mkdir()
    return part


def _is_running(process: str) -> bool:
    """Whether a process id of this machine is taken; where that cannot be asked harmlessly, it is."""
    if os.name != "posix" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _move_in(part: Path, folder: Path) -> None:
    """Files of `part` into `folder`, each folder's config.json after its other files."""
    files = sorted((file for file in part.rglob("*") if file.is_file()), key=lambda file: file.name == CONFIG_FILE)
    rights = part.stat().st_mode & 0o666
    for file in files:
        file.chmod(rights)  # safetensors writes files that nobody else may read
    if not folder.exists():
        os.replace(part, folder)
        return
    for inside in {file.parent.relative_to(part) for file in files}:
        (folder / inside).mkdir(parents=True, exist_ok=True)
    for file in files:
        os.replace(file, folder / file.relative_to(part))
    for written in {file.parent for file in files if file.name in (INDEX_FILE, SINGLE_FILE)}:
        _remove_old_weights(folder / written.relative_to(part), {file.name for file in files if file.parent == written})


def _remove_old_weights(folder: Path, written: set[str]) -> None:
    """Weights in a folder that are not those that were written."""
    for old in (*folder.glob("model-*-of-*.safetensors"), folder / SINGLE_FILE, folder / INDEX_FILE):
        if old.name not in written:
            old.unlink(missing_ok=True)


def write_generation_config(sampling: GenerationConfig | None, folder: Path) -> None:
    """Writes generation_config.json, where there is something to write."""
    if sampling is not None:
        (folder / GENERATION_FILE).write_text(sampling.to_json_string(), encoding="utf-8")
