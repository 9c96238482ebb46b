"""The named voices of a checkpoint."""

from pathlib import Path
from typing import Any

from higgs_audio.checkpoint.weights import CONFIG_FILE as CONFIG_FILE
from higgs_audio.checkpoint.weights import read_json
from higgs_audio.errors import CheckpointError

VOICES_FILE = "voices.json"


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
