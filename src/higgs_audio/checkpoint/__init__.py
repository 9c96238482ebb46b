"""Checkpoints: names, folders, layouts, weights, saving, upload."""

from higgs_audio.checkpoint.checkpoint import Checkpoint, as_checkpoint
from higgs_audio.checkpoint.find import (
    DOWNLOADED,
    FOLDER_OPTIONS,
    HUB_OPTIONS,
    NAMES,
    NANO,
    FolderOptions,
    HubOptions,
    open_checkpoint,
    read_generation_config,
)
from higgs_audio.checkpoint.names import CODEC_FOLDER, CONFIG_FILE, PROCESSOR_FILE
from higgs_audio.checkpoint.saving import atomic_folder, saved_model, write_generation_config

__all__ = [
    "CODEC_FOLDER",
    "CONFIG_FILE",
    "DOWNLOADED",
    "FOLDER_OPTIONS",
    "HUB_OPTIONS",
    "NAMES",
    "NANO",
    "PROCESSOR_FILE",
    "Checkpoint",
    "FolderOptions",
    "HubOptions",
    "as_checkpoint",
    "atomic_folder",
    "open_checkpoint",
    "read_generation_config",
    "saved_model",
    "write_generation_config",
]
