"""Names and paths of checkpoints to folders, strict loading, whole saving, and what a folder holds."""

import glob
import os
import platform
import re
import secrets
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
from safetensors import SafetensorError
from transformers import GenerationConfig

from higgs_audio import NANO
from higgs_audio.errors import CheckpointError, checkpoint_errors, first_line, nearest
from higgs_audio.weights import CONFIG_FILE as CONFIG_FILE
from higgs_audio.weights import INDEX_FILE, SINGLE_FILE, prefers_index, read_index, read_json

NAMES = {"nano": NANO}
CODEC_FOLDER = "codec"
GENERATION_FILE = "generation_config.json"
VOICES_FILE = "voices.json"
DOWNLOADED = ("*.json", "*.jinja", "codec/*")  # what every checkpoint may need; weights are asked for by name
PICKLE_FILE = "model.pth"  # of the original audio tokenizer alone
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
FOLDER_OPTIONS = (*HUB_OPTIONS, "subfolder")  # which folder is meant
PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
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
    voices = read_json(path)
    if not all(name and _is_voice(entry) for name, entry in voices.items()):
        raise CheckpointError(f'{path} must be like {{"ava": {{"profile": "Ava", "description": "..."}}}}')
    return {name: {"description": "", **entry} for name, entry in voices.items()}


def _is_voice(entry: Any) -> bool:
    """Strings throughout, the profile one line among them."""
    texts = isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values())
    return texts and len(entry.get("profile", "").splitlines()) == 1


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
