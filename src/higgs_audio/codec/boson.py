"""The audio tokenizer's original layout: nine numbers in `config.json`, and `model.pth` with weights `v * g / |v|`.

The nine numbers do not determine all sizes: the rest are constants of the original program. A tokenizer with other
sizes stores them under the key "sizes", which the original program rejects: it could not run such a tokenizer.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.errors import CheckpointError, first_line

# Keys that no other layout has. The published file misspells "teacher".
REQUIRED_KEYS = ("D", "ratios", "semantic_techer")
PADDING = 320  # samples on each side, 160 for each of the two HuBERT frames in a frame
TEACHERS = ("hubert_base_general", "hubert_base")  # both have the sizes of HuBERT base, and weights in model.pth
SIZES_KEY = "sizes"
N_FILTERS = 32  # in the published file; no implementation reads it
# Our field -> key among the nine numbers. A missing key stands for the field's default.
NUMBERS = {"sample_rate": "sample_rate", "codebook_size": "bins", "num_codebooks": "n_q"}
# Fields that the nine numbers do not contain.
OTHER_FIELDS = (
    *("semantic_sample_rate", "downsample_factor"),
    *("kernel_size", "unit_kernel_size", "block_dilations", "num_blocks"),
)
# Fields of HuBERT that change its inference.
HUBERT_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation"),
    *("feat_proj_layer_norm", "do_stable_layer_norm"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_batch_norm"),
)
# Published tensors that no implementation uses.
UNUSED_TENSORS = re.compile(r"semantic_model\.masked_spec_embed|fc1\..*")
RESIDUAL_UNIT = ("snake1", "conv1", "snake2", "conv2")  # layers in order
RENAMES = (
    (r"^(encoder_semantic\.conv|decoder_semantic\.conv[12])\.", r"\1.conv."),
    (r"^((?:en|de)coder_semantic\.conv_blocks\.\d+\.(?:res_units\.\d+\.conv1|conv))\.", r"\1.conv."),
    (r"^quantizer\.quantizers\.", "quantizer.vq.layers."),
    (r"\.codebook\.", "._codebook."),
    (r"^fc\.", "fc_prior."),
    (r"^fc1\.", "fc_post1."),
    (r"^fc2\.", "fc_post2."),
)


def read_config(config: Mapping[str, Any]) -> HiggsAudioTokenizerConfig:
    """Converts the nine numbers, and "sizes" if present, to a config.

    Raises:
        CheckpointError: an unsupported semantic teacher or quantizer.
    """
    if config["semantic_techer"] not in TEACHERS:
        known = ", ".join(TEACHERS)
        raise CheckpointError(f"config.json has semantic_techer {config['semantic_techer']!r}; known: {known}")
    if "bins" in config and not isinstance(config["bins"], int):
        raise CheckpointError(
            f"config.json has bins {config['bins']!r}; expected one integer, the number of entries of a codebook"
        )
    fields = {field: config[key] for field, key in NUMBERS.items() if key in config}
    fields["codebook_dim"] = config.get("codebook_dim") or HiggsAudioTokenizerConfig.codebook_dim
    fields["acoustic_padding"] = PADDING
    ratios = list(config["ratios"])
    sizes = dict(config.get(SIZES_KEY) or {})
    acoustic = {"hidden_size": config["D"], "downsampling_ratios": ratios, "upsampling_ratios": ratios}
    acoustic |= sizes.pop("acoustic_model_config", {})
    return HiggsAudioTokenizerConfig(acoustic_model_config=acoustic, **(fields | sizes))


def write_config(config: HiggsAudioTokenizerConfig) -> dict[str, Any]:
    """Returns the content of `config.json`.

    Raises:
        CheckpointError: an acoustic model other than "dac", or ratios that differ between encoder and decoder.
    """
    acoustic = config.acoustic
    if config.body != "dac" or acoustic["downsampling_ratios"] != acoustic["upsampling_ratios"]:
        raise CheckpointError(
            f"an audio tokenizer with body {config.body!r} does not fit the layout 'boson', which supports only 'dac' "
            "with equal downsampling_ratios and upsampling_ratios: write it as 'native'"
        )
    nine = {
        "n_filters": N_FILTERS,
        "D": acoustic["hidden_size"],
        "codebook_dim": config.codebook_dim,
        # As published: the last entry is the bandwidth of twice as many codebooks as there are.
        "target_bandwidths": [*bandwidths(config), 2 * bandwidths(config)[-1]],
        "ratios": list(acoustic["downsampling_ratios"]),
        **{key: getattr(config, field) for field, key in NUMBERS.items()},
        "semantic_techer": TEACHERS[0],
    }
    sizes = _different_sizes(config, read_config(nine))
    return nine | ({SIZES_KEY: sizes} if sizes else {})


def bandwidths(config: HiggsAudioTokenizerConfig) -> list[float]:
    """Returns the kbit/s of 2, 4, 6, ... and all codebooks; 0.5, 1, 1.5, 2 at the published sizes."""
    one = (config.codebook_size - 1).bit_length() * -(-config.sample_rate // config.hop_length) / 1000
    rates = [count * one for count in (*range(2, config.num_codebooks, 2), config.num_codebooks)]
    return [int(rate) if rate == int(rate) else rate for rate in rates]


def _different_sizes(config: HiggsAudioTokenizerConfig, base: HiggsAudioTokenizerConfig) -> dict[str, Any]:
    """Returns the fields of `config` that differ from `base`, the config that the nine numbers alone determine."""
    sizes = {name: getattr(config, name) for name in OTHER_FIELDS if _field(config, name) != _field(base, name)}
    acoustic = {name: value for name, value in config.acoustic.items() if value != base.acoustic[name]}
    hubert = {
        name: getattr(config.semantic, name)
        for name in HUBERT_FIELDS
        if _field(config.semantic, name) != _field(base.semantic, name)
    }
    parts = {"acoustic_model_config": acoustic, "semantic_model_config": hubert}
    return sizes | {name: part for name, part in parts.items() if part}


def _field(config: object, name: str) -> object:
    """Returns a field for comparison: defaults may be tuples, values from a file are lists."""
    value = getattr(config, name)
    return list(value) if isinstance(value, tuple) else value


def stored_names(names: Iterable[str], num_blocks: int) -> dict[str, tuple[str, ...]]:
    """Returns our name -> names in model.pth: `weight_g` and `weight_v` of acoustic convolutions, else one name.

    Args:
        names: names of the tensors of a `HiggsAudioTokenizer`.
        num_blocks: number of blocks of the acoustic encoder, and of the acoustic decoder.
    """
    return {name: _stored_name(name, num_blocks) for name in names}


def stored_shapes(
    shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[int, ...]]:
    """Returns name in model.pth -> shape; `weight_g` is `[C, 1, 1]`.

    Args:
        shapes: our name -> shape.
        names: from `stored_names`.
    """
    stored: dict[str, tuple[int, ...]] = {}
    for name, parts in names.items():
        shape = shapes[name]
        stored[parts[-1]] = shape
        if len(parts) == 2:
            stored[parts[0]] = (shape[0], *[1] * (len(shape) - 1))
    return stored


def _stored_name(name: str, num_blocks: int) -> tuple[str, ...]:
    part, _, rest = name.partition(".")
    if part not in ("acoustic_encoder", "acoustic_decoder"):
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        return (name,)
    is_encoder = part == "acoustic_encoder"
    *path, parameter = rest.split(".")
    layer = ".".join(map(str, _layer_path(path, is_encoder, num_blocks)))
    prefix = f"{'encoder.block' if is_encoder else 'decoder_2.model'}.{layer}"
    return (f"{prefix}.weight_g", f"{prefix}.weight_v") if parameter == "weight" else (f"{prefix}.{parameter}",)


def _layer_path(path: list[str], is_encoder: bool, num_blocks: int) -> list[int | str]:
    """Returns the path of an acoustic layer in the original's nested `nn.Sequential` modules."""
    if path[0] != "block":  # before or after the blocks
        return [{"conv1": 0, "snake1": num_blocks + 1, "conv2": num_blocks + 2}[path[0]]]
    block: list[int | str] = [int(path[1]) + 1, "block"]
    if len(path) == 3:  # the block's own layers: after its residual units in the encoder, before them in the decoder
        return [*block, {"snake1": 3, "conv1": 4}[path[2]] if is_encoder else {"snake1": 0, "conv_t1": 1}[path[2]]]
    unit = int(path[2].removeprefix("res_unit")) - 1
    return [*block, unit if is_encoder else unit + 2, "block", RESIDUAL_UNIT.index(path[3])]


def fuse_weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Returns the weight `v * (g / |v|)` of `g [C, 1, 1]` and `v [C, D, T]`; |v| is over all dimensions but the first.

    The norm is computed in fp64 and rounded once, so that it is the same on every machine and for any order of
    summation. torch's own kernel sums in fp32 and differs by up to 4.3e-7 of a weight (for sums of 6,144 numbers).
    """
    return v * (g / _norm(v))


def split_weight_norm(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `g, v` from which `fuse_weight_norm` restores `weight` bit for bit: v is the weight and g its norm.

    Rows of zeros have no direction; they get g = 0 and the first axis as v.
    """
    v = weight.float().clone()
    g = _norm(v)
    v.view(len(v), -1)[:, 0].masked_fill_(g.view(-1) == 0, 1.0)
    return g, v


def _norm(v: Tensor) -> Tensor:
    return v.double().flatten(1).norm(dim=1).float().view(-1, *[1] * (v.ndim - 1))


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of `model.pth`, without other entries such as the byte buffers in the published file.

    Only tensors, plain containers and `io.BytesIO` are unpickled. A file that contains anything else is rejected before
    any of it is executed.

    Raises:
        CheckpointError: the file does not exist, is damaged or contains anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has the original config.json but no {path.name}; download it again")
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"more than tensors ({match[1]})" if match else "more than tensors"
        raise CheckpointError(  # without torch's message, which explains how to execute the file
            f"{path} is damaged or contains {found}; none of it was executed. Download it again, or use a checkpoint "
            "in safetensors"
        ) from None
    except Exception as error:  # torch, zipfile and the unpickler raise a dozen types for damaged files
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{path} does not load: {reason}; download it again") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} contains a {type(content).__name__}; expected a mapping from names to tensors")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
