"""Checkpoints: names, folders, layouts, weights, saving, upload."""

from higgs_audio.checkpoint.find import (
    CODEC_FOLDER,
    CONFIG_FILE,
    DOWNLOADED,
    FOLDER_OPTIONS,
    HUB_OPTIONS,
    NAMES,
    NANO,
    read_generation_config,
    resolve,
)
from higgs_audio.checkpoint.saving import saved_model, whole_folder, write_generation_config

__all__ = [
    "CODEC_FOLDER",
    "CONFIG_FILE",
    "DOWNLOADED",
    "FOLDER_OPTIONS",
    "HUB_OPTIONS",
    "NAMES",
    "NANO",
    "read_generation_config",
    "resolve",
    "saved_model",
    "whole_folder",
    "write_generation_config",
]
