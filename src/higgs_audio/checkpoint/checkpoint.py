"""Checkpoint: a checkpoint's folder on this machine. Each JSON file in it is read at most once."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from higgs_audio.checkpoint.names import CODEC_FOLDER, CONFIG_FILE, VOICES_FILE
from higgs_audio.errors import CheckpointError

Fields = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder on this machine and the contents of the JSON files read from it.

    `open_checkpoint` makes one. Functions that take the name or folder of a checkpoint take a `Checkpoint` as well, so
    that the parts loaded from it (model, processor, audio tokenizer, voices) share what has been read. It is a path
    (`os.PathLike`) and prints as one.

    Contents are those of the first read: open the folder again after writing to it.

    Attributes:
        folder: which holds the files.

    >>> from higgs_audio.checkpoint import open_checkpoint
    >>> nano = open_checkpoint("nano")
    >>> nano.config["model_type"], nano.codec.config["model_type"]
    ('higgs_audio', 'higgs_audio_tokenizer')
    """

    folder: Path
    _contents: dict[str, Fields] = field(default_factory=dict, init=False, repr=False, compare=False)
    _inside: "dict[str, Checkpoint]" = field(default_factory=dict, init=False, repr=False, compare=False)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    def path(self, name: str) -> Path:
        """The path of a file or folder of the checkpoint, whether it exists or not."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of this name now."""
        return self.path(name).is_file()

    def read(self, name: str) -> Fields:
        """The object in a JSON file; a copy, which the caller may change.

        Raises:
            CheckpointError: no such file, or no JSON object in it.
        """
        if name not in self._contents:
            self._contents[name] = read_json(self.path(name))
        return copy.deepcopy(self._contents[name])

    def read_if_present(self, name: str) -> Fields:
        """The object in a JSON file, as `read` returns it; empty where there is no such file."""
        return self.read(name) if self.has(name) else {}

    @property
    def config(self) -> Fields:
        """The object in config.json.

        Raises:
            CheckpointError: no such file, or no JSON object in it.
        """
        return self.read(CONFIG_FILE)

    @property
    def voices(self) -> Fields:
        """The object in voices.json; empty where there is no such file. `speech.voices.read_voices` checks it."""
        return self.read_if_present(VOICES_FILE)

    @property
    def codec(self) -> "Checkpoint | None":
        """The audio tokenizer's folder in this one; None where there is none."""
        return self.inside(CODEC_FOLDER) if self.path(CODEC_FOLDER).is_dir() else None

    def inside(self, subfolder: str | None) -> "Checkpoint":
        """The checkpoint in a folder of this one, whether it exists or not; this one for None and ""."""
        return self._inside.setdefault(subfolder, Checkpoint(self.path(subfolder))) if subfolder else self


def as_checkpoint(folder: "str | Path | Checkpoint") -> Checkpoint:
    """The checkpoint in an existing folder, or the same `Checkpoint`."""
    return folder if isinstance(folder, Checkpoint) else Checkpoint(Path(folder))


def read_json(file: Path) -> Fields:
    """The object in a JSON file.

    Raises:
        CheckpointError: no such file, or no JSON object in it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds {type(content).__name__}; expected a JSON object")
    return content
