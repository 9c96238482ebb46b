"""`Checkpoint`: the local folder of a checkpoint. Each JSON file in it is read at most once."""

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
    """The local folder of a checkpoint, with the contents of the JSON files that have been read from it.

    `open_checkpoint` creates one. Functions that take the name or folder of a checkpoint also take a `Checkpoint`, so
    that model, processor, audio tokenizer and voices are loaded from one set of contents. It is a path (`os.PathLike`),
    and `str()` returns the folder.

    A file is not read again when it changes: after writing to the folder, open it again.

    Attributes:
        folder: the folder that holds the files.

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
        """Returns the path of a file or folder of the checkpoint, whether it exists or not."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether the folder contains a file of this name now."""
        return self.path(name).is_file()

    def read(self, name: str) -> Fields:
        """Returns a copy of the object in a JSON file.

        Raises:
            CheckpointError: no such file, or no JSON object in it.
        """
        if name not in self._contents:
            self._contents[name] = read_json(self.path(name))
        return copy.deepcopy(self._contents[name])

    def read_if_present(self, name: str) -> Fields:
        """Returns a copy of the object in a JSON file, or an empty dict if there is no such file.

        Raises:
            CheckpointError: no JSON object in the file.
        """
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
        """The object in voices.json; empty without such a file. `speech.voices.read_voices` checks it."""
        return self.read_if_present(VOICES_FILE)

    @property
    def codec(self) -> "Checkpoint | None":
        """The audio tokenizer inside this checkpoint; None if it has none."""
        return self.inside(CODEC_FOLDER) if self.path(CODEC_FOLDER).is_dir() else None

    def inside(self, subfolder: str | None) -> "Checkpoint":
        """Returns the checkpoint in a subfolder, whether it exists or not; this checkpoint for None and ""."""
        return self._inside.setdefault(subfolder, Checkpoint(self.path(subfolder))) if subfolder else self


def as_checkpoint(folder: "str | Path | Checkpoint") -> Checkpoint:
    """Converts the path of an existing folder to a `Checkpoint`; returns a `Checkpoint` unchanged."""
    return folder if isinstance(folder, Checkpoint) else Checkpoint(Path(folder))


def read_json(file: Path) -> Fields:
    """Returns the object in a JSON file.

    Raises:
        CheckpointError: no such file, or no JSON object in it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} contains a value of type {type(content).__name__}; expected a JSON object")
    return content
