"""The configs that transformers' implementations of the audio tokenizer write. Names of weights are ours as well."""

from collections.abc import Mapping
from typing import Any

from higgs_audio.codec.boson import bandwidths
from higgs_audio.codec.config import DAC_BODY, HiggsAudioTokenizerConfig
from higgs_audio.errors import CheckpointError

MODEL_TYPE = "higgs_audio_v2_tokenizer"
EARLY_KEYS = ("num_quantizers", "target_bandwidths")  # the early form has our model type, and "codebooks" are ours
UNUSED = "semantic_model.masked_spec_embed"  # made where mask_time_prob > 0, read in training only
# The early implementation adds 160 samples on each side and then fails on a fifth of all lengths, where it has no
# codes: ours are those of the original, whose weights it holds.
PADDING, EARLY_PADDING = 480, 320
COMMON = (
    *("sample_rate", "semantic_sample_rate", "codebook_size", "codebook_dim", "downsample_factor"),
    *("kernel_size", "unit_kernel_size", "block_dilations", "initializer_range"),
)
PUBLISHED_CODEBOOKS = 8


def read_config(config: Mapping[str, Any], num_codebooks: int) -> HiggsAudioTokenizerConfig:
    """A config of either form as ours.

    Args:
        config: content of config.json.
        num_codebooks: in the weights. The config need not say: the published one has a list of bandwidths that ends in
            one of 16 codebooks, and 8 were trained.

    Raises:
        CheckpointError: another number is said, or there is something that this package does not build.
    """
    _check_codebooks(config, num_codebooks)
    acoustic, semantic = (_part(config, key, kind) for key, kind in (("acoustic", "dac"), ("semantic", "hubert")))
    for key in ("strides", "channel_ratios"):
        if set(config.get(key) or [1]) != {1}:
            raise CheckpointError(f"config.json has {key} {config[key]!r}; this package knows ones only")
    fields = {key: config[key] for key in COMMON if config.get(key) is not None}
    fields["block_dilations"] = list(fields.get("block_dilations", (1, 1)))
    return HiggsAudioTokenizerConfig(
        acoustic_model_config={key: acoustic[key] for key in DAC_BODY if key in acoustic and key != "body"},
        semantic_model_config={**semantic, "mask_time_prob": 0.0, "mask_feature_prob": 0.0},
        num_codebooks=num_codebooks,
        num_blocks=len(config.get("strides") or (1, 1)),
        acoustic_padding=PADDING if config["model_type"] == MODEL_TYPE else EARLY_PADDING,
        **fields,
    )


def _check_codebooks(config: Mapping[str, Any], found: int) -> None:
    """What the config says of the codebooks' number, against the weights."""
    said = config.get("num_quantizers")
    if said is not None and said != found:
        raise CheckpointError(f"config.json says num_quantizers {said}, the weights hold {found} codebooks")
    if said is not None or not config.get("target_bandwidths"):
        return
    body = DAC_BODY | dict(config.get("acoustic_model_config") or {})
    one = HiggsAudioTokenizerConfig(
        acoustic_model_config={"downsampling_ratios": body["downsampling_ratios"]},
        sample_rate=config.get("sample_rate", 24000),
        codebook_size=config.get("codebook_size", 1024),
        num_codebooks=1,
    )
    implied = int(config["target_bandwidths"][-1] // bandwidths(one)[0])
    if found not in (implied, PUBLISHED_CODEBOOKS):
        raise CheckpointError(
            f"config.json has target_bandwidths up to {config['target_bandwidths'][-1]}, which is {implied} codebooks, "
            f"the weights hold {found}"
        )


def _part(config: Mapping[str, Any], name: str, kind: str) -> dict[str, Any]:
    """Fields of one of the two models inside."""
    part = dict(config.get(f"{name}_model_config") or {})
    if part.get("model_type", kind) != kind:
        raise CheckpointError(
            f"config.json has a {name} model of type {part['model_type']!r}; this package knows {kind!r}"
        )
    return {key: value for key, value in part.items() if key not in ("architectures", "_name_or_path", "torch_dtype")}


def write_config(config: HiggsAudioTokenizerConfig, dtype: str) -> dict[str, Any]:
    """Our config as transformers' `config.json`.

    Raises:
        CheckpointError: a body that transformers does not know.
    """
    if config.body != "dac":
        raise CheckpointError(
            f"an audio tokenizer of body {config.body!r} does not fit the layout 'transformers', which knows 'dac': "
            "write it as 'native'"
        )
    ones = [1] * config.num_blocks
    body = {key: value for key, value in config.acoustic.items() if key != "body"}
    return {
        "architectures": ["HiggsAudioV2TokenizerModel"],
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        "target_bandwidths": bandwidths(config),
        "channel_ratios": ones,
        "strides": ones,
        **{key: getattr(config, key) for key in COMMON},
        "acoustic_model_config": {"model_type": "dac", **body, "hop_length": config.hop_length},
        "semantic_model_config": {**config.semantic.to_dict(), "model_type": "hubert", "dtype": dtype},
    }


def feature_extractor(config: HiggsAudioTokenizerConfig) -> dict[str, Any]:
    """`preprocessor_config.json`, which transformers reads beside the tokenizer."""
    return {
        "feature_extractor_type": "DacFeatureExtractor",
        "feature_size": 1,
        "hop_length": config.hop_length,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": config.sample_rate,
    }
