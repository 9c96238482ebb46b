"""Configs of the audio tokenizer in transformers' two layouts. Tensors have the same names there as in this package."""

from collections.abc import Mapping
from typing import Any

from higgs_audio.codec import boson
from higgs_audio.codec.config import DAC_DEFAULTS, HiggsAudioTokenizerConfig
from higgs_audio.errors import CheckpointError

MODEL_TYPE = "higgs_audio_v2_tokenizer"
# Keys that distinguish the layout "early" from "native", which has the same model type.
EARLY_KEYS = ("num_quantizers", "target_bandwidths")
UNUSED_TENSOR = "semantic_model.masked_spec_embed"  # present if mask_time_prob > 0, used in training only
PADDING = 480  # samples on each side
# The early implementation adds 160 samples on each side and then fails on a fifth of all lengths, so that it has no
# codes for them. Its weights equal the original's, so this package encodes as the original does.
EARLY_PADDING = boson.PADDING
SHARED_KEYS = (
    *("sample_rate", "semantic_sample_rate", "codebook_size", "codebook_dim", "downsample_factor"),
    *("kernel_size", "unit_kernel_size", "block_dilations", "initializer_range"),
)


def read_config(config: Mapping[str, Any], num_codebooks: int) -> HiggsAudioTokenizerConfig:
    """Converts a config of the layout "early" or "transformers".

    Args:
        config: content of config.json.
        num_codebooks: number of codebooks in the weights. The config may not contain it: the published list of
            bandwidths ends with the bandwidth of 16 codebooks, of which 8 were trained.

    Raises:
        CheckpointError: the config has another number of codebooks, or an unsupported architecture.
    """
    _check_codebooks(config, num_codebooks)
    acoustic, semantic = (_part(config, name, kind) for name, kind in (("acoustic", "dac"), ("semantic", "hubert")))
    for key in ("strides", "channel_ratios"):
        if set(config.get(key) or [1]) != {1}:
            raise CheckpointError(f"config.json has {key} {config[key]!r}; this package supports only 1 in every place")
    fields = {key: config[key] for key in SHARED_KEYS if config.get(key) is not None}
    fields["block_dilations"] = list(fields.get("block_dilations", HiggsAudioTokenizerConfig.block_dilations))
    return HiggsAudioTokenizerConfig(
        acoustic_model_config={key: acoustic[key] for key in DAC_DEFAULTS if key in acoustic and key != "body"},
        semantic_model_config={**semantic, "mask_time_prob": 0.0, "mask_feature_prob": 0.0},
        num_codebooks=num_codebooks,
        num_blocks=len(config["strides"]) if config.get("strides") else HiggsAudioTokenizerConfig.num_blocks,
        acoustic_padding=PADDING if config["model_type"] == MODEL_TYPE else EARLY_PADDING,
        **fields,
    )


def _check_codebooks(config: Mapping[str, Any], num_codebooks: int) -> None:
    """Raises CheckpointError unless the config contains or implies the number of codebooks of the weights."""
    given = config.get("num_quantizers")
    if given is not None and given != num_codebooks:
        raise CheckpointError(f"config.json has num_quantizers {given}, but the weights have {num_codebooks} codebooks")
    if given is not None or not config.get("target_bandwidths"):
        return
    acoustic = DAC_DEFAULTS | dict(config.get("acoustic_model_config") or {})
    single = HiggsAudioTokenizerConfig(
        acoustic_model_config={"downsampling_ratios": acoustic["downsampling_ratios"]},
        num_codebooks=1,
        **{key: config[key] for key in ("sample_rate", "codebook_size") if key in config},
    )
    largest = config["target_bandwidths"][-1]
    implied = int(largest // boson.bandwidths(single)[0])
    if num_codebooks not in (implied, HiggsAudioTokenizerConfig.num_codebooks):
        raise CheckpointError(
            f"config.json has target_bandwidths up to {largest}, which is {implied} codebooks, but the weights have "
            f"{num_codebooks}; use files of one checkpoint"
        )


def _part(config: Mapping[str, Any], name: str, kind: str) -> dict[str, Any]:
    """Returns the fields of the acoustic or semantic model inside a config."""
    part = dict(config.get(f"{name}_model_config") or {})
    if part.get("model_type", kind) != kind:
        raise CheckpointError(
            f"config.json has a {name} model of type {part['model_type']!r}; this package supports only {kind!r}"
        )
    return {key: value for key, value in part.items() if key not in ("architectures", "_name_or_path", "torch_dtype")}


def write_config(config: HiggsAudioTokenizerConfig, dtype: str) -> dict[str, Any]:
    """Returns the content of transformers' `config.json`.

    Raises:
        CheckpointError: transformers does not have the acoustic model.
    """
    if config.body != "dac":
        raise CheckpointError(
            f"an audio tokenizer with body {config.body!r} does not fit the layout 'transformers', which supports only "
            "'dac': write it as 'native'"
        )
    ones = [1] * config.num_blocks
    acoustic = {key: value for key, value in config.acoustic.items() if key != "body"}
    return {
        "architectures": ["HiggsAudioV2TokenizerModel"],
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        "target_bandwidths": boson.bandwidths(config),
        "channel_ratios": ones,
        "strides": ones,
        **{key: getattr(config, key) for key in SHARED_KEYS},
        "acoustic_model_config": {"model_type": "dac", **acoustic, "hop_length": config.hop_length},
        "semantic_model_config": {**config.semantic.to_dict(), "model_type": "hubert", "dtype": dtype},
    }


def feature_extractor(config: HiggsAudioTokenizerConfig) -> dict[str, Any]:
    """Returns the content of `preprocessor_config.json`, which transformers reads beside the tokenizer."""
    return {
        "feature_extractor_type": "DacFeatureExtractor",
        "feature_size": 1,
        "hop_length": config.hop_length,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": config.sample_rate,
    }
