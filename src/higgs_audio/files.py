"""Atomic writes: a file appears complete under its name, or not at all.

A new file is written under a temporary name in the same folder and then renamed. This protects readers and earlier
files from errors, interrupts and kills of the process; it does not flush to the disk, so it does not protect from a
power failure.
"""

import glob
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["remove_leftovers", "replacing", "replacing_path", "temporary_folder", "temporary_path", "write_atomic"]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file in the folder of `path` and renames it to `path` when the block ends.

    An existing file is replaced. If the block or the rename raises, the temporary file is deleted and `path` stays as
    it was. A process that is killed leaves at most a hidden temporary file, which `remove_leftovers` deletes.

    Raises:
        OSError: `path` is a folder or cannot be written.
    """
    with replacing_path(path) as temporary, open(temporary, "xb") as file:
        yield file


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """Like `replacing`, for writers that need a path: yields the temporary path, where the block creates the file.

    Raises:
        OSError: the block has created no file, or `path` is a folder or cannot be written.
    """
    temporary = temporary_path(path.parent, path.name)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes bytes, or text in UTF-8, through `replacing`.

    Raises:
        OSError: the file cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path) as file:
        file.write(data)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Creates a hidden folder in `parent`, which the block may rename to `name`; deletes it at the end otherwise.

    Leftovers of killed processes for `name` are removed before, see `remove_leftovers`.

    Raises:
        OSError: `parent` cannot be written.
    """
    remove_leftovers(parent, name)
    temporary = temporary_path(parent, name)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_path(folder: Path, name: str) -> Path:
    """Returns a new hidden name in `folder` for a file or folder that will be renamed to `name`.

    The name contains the machine, the process id and a random token, so that no other writer uses it.
    """
    return folder / f"{_prefix(name)}.{os.getpid()}.{secrets.token_hex(4)}.part"


def remove_leftovers(folder: Path, name: str, *, single_writer: bool = False) -> None:
    """Deletes the temporary files and folders for `name` that killed processes of this machine left in `folder`.

    Lists the whole folder: call it once per run, or where the folder is small.

    Args:
        folder: the folder that contains the leftovers.
        name: the name of the file or folder that the killed processes were writing.
        single_writer: whether no other process writes `name` now; leftovers of other machines are then deleted too.
    """
    start = f".{name:.30}" if single_writer else _prefix(name)
    for leftover in folder.glob(f"{glob.escape(start)}.*.part"):
        if not single_writer and _is_running(leftover.name.split(".")[-3]):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):
                leftover.unlink()


def _prefix(name: str) -> str:
    """Returns the start of temporary names for `name`; at most 255 bytes are allowed, and a character can take four."""
    return f".{name:.30}.{platform.node():.30}"


def _is_running(process_id: str) -> bool:
    """Whether a process of this machine has the id; True on systems where testing for it could end the process."""
    if os.name != "posix" or not process_id.isdecimal():
        return True
    try:
        os.kill(int(process_id), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
