"""The options of `HiggsAudioTokenizer.from_pretrained`, and how it finds the folder, the config and the device."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from typing_extensions import TypedDict

from higgs_audio import checkpoint
from higgs_audio.checkpoint import Checkpoint
from higgs_audio.codec import layout
from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.device import resolve_device
from higgs_audio.errors import OptionError, nearest


class TransformersOptions(TypedDict, total=False):
    """Options that are passed to transformers' `from_pretrained`; its Auto classes add the last three."""

    attn_implementation: str
    quantization_config: Any
    output_loading_info: bool
    trust_remote_code: bool
    adapter_kwargs: dict[str, Any]
    use_safetensors: bool


class LoadOptions(TransformersOptions, checkpoint.HubOptions, total=False):
    """Options of `HiggsAudioTokenizer.from_pretrained`: options of a folder or repository, and fields of the config."""

    subfolder: str | None

    acoustic_model_config: dict[str, Any]
    semantic_model_config: dict[str, Any] | PreTrainedConfig
    sample_rate: int
    semantic_sample_rate: int
    num_codebooks: int
    codebook_size: int
    codebook_dim: int
    downsample_factor: int
    kernel_size: int
    unit_kernel_size: int
    block_dilations: list[int] | tuple[int, ...]
    num_blocks: int
    acoustic_padding: int
    initializer_range: float


def open_tokenizer(name: str | Path | Checkpoint, **hub: Any) -> Checkpoint:
    """Returns the checkpoint of an audio tokenizer, which may be inside the checkpoint of a language model.

    From a repository it downloads `config.json` first, and then only the weights of the layout of that config.

    Args:
        name: "nano", a folder, a hub repository "org/name", or a `Checkpoint`.
        **hub: any of `checkpoint.FOLDER_OPTIONS`.

    Raises:
        CheckpointError: there is no such folder or repository, or it contains no audio tokenizer.
    """
    found = checkpoint.open_checkpoint(name, patterns=("*.json", f"{checkpoint.CODEC_FOLDER}/*"), **hub)
    if found.codec is not None and found.codec.has(checkpoint.CONFIG_FILE):
        return found.codec
    weights = layout.WEIGHT_PATTERNS[layout.detect_layout(found.config)]
    downloaded = checkpoint.open_checkpoint(name, patterns=(checkpoint.CONFIG_FILE, *weights), **hub)
    return found if found == downloaded else downloaded  # the same folder, unless the repository has changed


def apply_options(config: HiggsAudioTokenizerConfig, options: dict[str, Any]) -> HiggsAudioTokenizerConfig:
    """Applies the options that are fields of the config, and removes them from `options`.

    Returns:
        The new config, or `config` itself if none of the options is a field.

    Raises:
        OptionError: an option that neither the config nor transformers has, or a value that does not fit its field.
    """
    known = config.to_dict()
    fields = {name: options.pop(name) for name in list(options) if name in known}
    transformers_options = TransformersOptions.__optional_keys__
    if unknown := {name for name in options if not name.startswith("_")} - transformers_options:
        allowed = {*transformers_options, *checkpoint.FOLDER_OPTIONS, *known}
        raise OptionError(f"option {min(unknown)!r}; {nearest(min(unknown), allowed)}")
    try:
        return HiggsAudioTokenizerConfig.from_dict(known | fields) if fields else config
    except Exception as error:  # values of another type or size raise many kinds of errors
        raise OptionError(f"{', '.join(fields)} cannot be used: {' '.join(str(error).split())}") from error


def single_device(device_map: str | torch.device | dict[str, Any] | None) -> torch.device:
    """Resolves a `device_map`: a device, "auto" for a GPU if there is one, {"": device}, or None for the CPU.

    Raises:
        OptionError: a map over several devices, or a device that this machine does not have.
    """
    device: Any = device_map.get("") if isinstance(device_map, dict) and len(device_map) == 1 else device_map
    return resolve_device("cpu" if device is None else device, "device_map")
