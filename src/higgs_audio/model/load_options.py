"""The keyword options of the language model's `from_pretrained`."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.quantization_config import QuantizationConfigMixin
from typing_extensions import TypedDict

from higgs_audio.checkpoint import FOLDER_OPTIONS, FolderOptions
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.errors import OptionError, nearest


class PassedOptions(TypedDict, total=False):
    """Options that are passed unchanged to transformers' `from_pretrained`."""

    attn_implementation: str | dict[str, str] | None
    device_map: str | int | torch.device | dict[str, Any] | None
    dtype: str | torch.dtype | None
    torch_dtype: str | torch.dtype | None
    max_memory: dict[int | str, int | str] | None
    offload_folder: str | os.PathLike[str] | None
    offload_buffers: bool
    quantization_config: QuantizationConfigMixin | dict[str, Any] | None
    output_loading_info: bool
    distributed_config: Any
    use_kernels: bool
    kernel_config: Any


class UnusedOptions(TypedDict, total=False):
    """Options that are accepted without effect: weights are always safetensors, loaded strictly and without code."""

    use_safetensors: bool | None
    low_cpu_mem_usage: bool | None
    trust_remote_code: bool | None
    weights_only: bool
    ignore_mismatched_sizes: bool
    adapter_kwargs: dict[str, Any] | None


class ConfigFields(TypedDict, total=False):
    """Fields of `HiggsAudioConfig` that replace the fields of the checkpoint's config."""

    text_config: dict[str, Any] | PreTrainedConfig | None
    audio_adapter_type: str
    audio_dual_ffn_layers: list[int] | None
    audio_num_codebooks: int
    audio_codebook_size: int
    audio_stream_bos_id: int
    audio_stream_eos_id: int
    audio_bos_token_id: int
    audio_eos_token_id: int
    audio_out_bos_token_id: int
    audio_delay_token_id: int
    audio_in_token_idx: int
    audio_out_token_idx: int
    skip_audio_tower: bool
    encode_whisper_embed: bool
    encode_audio_in_tokens: bool
    audio_encoder_config: dict[str, Any] | PreTrainedConfig | None
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    tie_word_embeddings: bool
    initializer_range: float
    codec: str | None
    use_text_head: bool


class LoadOptions(FolderOptions, PassedOptions, UnusedOptions, ConfigFields, total=False):
    """Keyword options of `HiggsAudioPreTrainedModel.from_pretrained`, which documents them.

    config: replaces the checkpoint's config.
    generation_config: replaces the checkpoint's sampling options.
    state_dict: weights in memory, with None as the name: transformers then builds the model from them and `config`.
    """

    config: HiggsAudioConfig | str | os.PathLike[str] | None
    generation_config: GenerationConfig | None
    state_dict: Mapping[str, Tensor] | None


PASSED_OPTIONS = tuple(PassedOptions.__annotations__)
# The last three are added by transformers' Auto classes and pipelines.
UNUSED_OPTIONS = (*UnusedOptions.__annotations__, "_from_auto", "_from_pipeline", "_commit_hash")
LOAD_OPTIONS = (*PASSED_OPTIONS, "config", "generation_config")


def config_overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that are fields of the config.

    Raises:
        OptionError: an unknown option or attention implementation.
    """
    fields = set(HiggsAudioConfig.__dataclass_fields__)
    known = {*FOLDER_OPTIONS, *LOAD_OPTIONS, *UNUSED_OPTIONS}
    if unknown := sorted(set(options) - known - fields):
        public = (*FOLDER_OPTIONS, *LOAD_OPTIONS)
        raise OptionError(f"from_pretrained has no option {unknown[0]!r}; {nearest(unknown[0], public)}, config fields")
    attention = options.get("attn_implementation")
    offered = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    if isinstance(attention, str) and "/" not in attention and attention not in offered:
        raise OptionError(f"attn_implementation={attention!r}; {nearest(attention, offered)}")
    return {name: value for name, value in options.items() if name in fields - known}
