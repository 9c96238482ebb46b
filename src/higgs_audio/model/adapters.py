"""Adapter folders, as PEFT saves them: the base model with the adapter merged into its weights."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel

from higgs_audio.checkpoint.names import CONFIG_FILE
from higgs_audio.errors import CheckpointError, MissingExtraError, checkpoint_errors

ADAPTER_FILE = "adapter_config.json"
M = TypeVar("M", bound=PreTrainedModel)


def is_adapter(name: object) -> bool:
    """Whether a path is a folder with an adapter and without a model."""
    if not isinstance(name, (str, os.PathLike)):
        return False
    folder = Path(name)
    try:
        return (folder / ADAPTER_FILE).is_file() and not (folder / CONFIG_FILE).exists()
    except (OSError, ValueError):  # a name that is too long, or contains NUL
        return False


def load_with_adapter(folder: Path, load_base: Callable[[str], M]) -> M:
    """Returns the base model of an adapter, loaded by `load_base(name)`, with the adapter merged.

    Raises:
        CheckpointError: the folder does not name its base model, or does not fit it.
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("peft", "train") from error
    with checkpoint_errors(f"{folder / ADAPTER_FILE} cannot be read"):
        base = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder / ADAPTER_FILE} has no base_model_name_or_path; load the base model, then "
            "PeftModel.from_pretrained(base, folder)"
        )
    model = load_base(base)
    with checkpoint_errors(f"{folder} is no adapter of {base}"):
        merged: Any = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return merged.eval()
