"""The audio tokenizer's original layout: nine numbers in `config.json`, and `model.pth` with weights `v * g / |v|`.

The layout can say no more than the nine numbers; the rest is fixed in the program that it was written for. Where a
tokenizer has other sizes, they go under the key "sizes", which that program refuses, as it could not run them.
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

WEIGHTS_FILE = "model.pth"
KEYS = ("D", "ratios", "semantic_techer")  # that no other layout has; the second "a" is missing in the published file
PADDING = 320  # samples on each side, 160 for each HuBERT frame of a frame
TEACHERS = ("hubert_base_general", "hubert_base")  # of HuBERT base's sizes, their weights are inside model.pth
SIZES = "sizes"
N_FILTERS = 32  # of the published file, read by nobody
FIXED = (
    "semantic_sample_rate",
    "downsample_factor",
    "kernel_size",
    "unit_kernel_size",
    "block_dilations",
    "num_blocks",
)
HUBERT_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation"),
    *("feat_proj_layer_norm", "do_stable_layer_norm"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_batch_norm"),
)  # what a HuBERT computes when it listens
UNUSED = re.compile(r"semantic_model\.masked_spec_embed|fc1\..*")  # published, and read by no implementation
UNIT = ("snake1", "conv1", "snake2", "conv2")  # of a residual unit, in its order
RENAMED = (
    (r"^(encoder_semantic\.conv|decoder_semantic\.conv[12])\.", r"\1.conv."),
    (r"^((?:en|de)coder_semantic\.conv_blocks\.\d+\.(?:res_units\.\d+\.conv1|conv))\.", r"\1.conv."),
    (r"^quantizer\.quantizers\.", "quantizer.vq.layers."),
    (r"\.codebook\.", "._codebook."),
    (r"^fc\.", "fc_prior."),
    (r"^fc1\.", "fc_post1."),
    (r"^fc2\.", "fc_post2."),
)


def read_config(config: Mapping[str, Any]) -> HiggsAudioTokenizerConfig:
    """The nine numbers, and "sizes" where it is there, as our config.

    Raises:
        CheckpointError: a semantic teacher or a quantizer that this package cannot build.
    """
    if config["semantic_techer"] not in TEACHERS:
        known = ", ".join(TEACHERS)
        raise CheckpointError(f"config.json has semantic_techer {config['semantic_techer']!r}; known: {known}")
    if not isinstance(config.get("bins", 1024), int):
        raise CheckpointError(
            f"config.json has bins {config['bins']!r}: expected one number, the entries of a codebook"
        )
    ratios = list(config["ratios"])
    fields = {
        "sample_rate": config.get("sample_rate", 24000),
        "num_codebooks": config.get("n_q", 8),
        "codebook_size": config.get("bins", 1024),
        "codebook_dim": config.get("codebook_dim") or 64,
        "acoustic_padding": PADDING,
    }
    sizes = dict(config.get(SIZES) or {})
    body = {"hidden_size": config["D"], "downsampling_ratios": ratios, "upsampling_ratios": ratios}
    body |= sizes.pop("acoustic_model_config", {})
    return HiggsAudioTokenizerConfig(acoustic_model_config=body, **(fields | sizes))


def write_config(config: HiggsAudioTokenizerConfig) -> dict[str, Any]:
    """Our config as the content of `config.json`.

    Raises:
        CheckpointError: a body that this layout does not know, or ratios that differ between encoder and decoder.
    """
    body = config.acoustic
    if config.body != "dac" or body["downsampling_ratios"] != body["upsampling_ratios"]:
        raise CheckpointError(
            f"an audio tokenizer of body {config.body!r} does not fit the layout 'boson', which knows 'dac' with the "
            "same ratios on either side: write it as 'native'"
        )
    nine = {
        "n_filters": N_FILTERS,
        "D": body["hidden_size"],
        "codebook_dim": config.codebook_dim,
        "target_bandwidths": [*bandwidths(config), 2 * bandwidths(config)[-1]],  # as published: the last is not there
        "ratios": list(body["downsampling_ratios"]),
        "sample_rate": config.sample_rate,
        "bins": config.codebook_size,
        "n_q": config.num_codebooks,
        "semantic_techer": TEACHERS[0],
    }
    sizes = _sizes(config, read_config(nine))
    return nine | ({SIZES: sizes} if sizes else {})


def bandwidths(config: HiggsAudioTokenizerConfig) -> list[float]:
    """Kilobits a second of every second number of codebooks up to all of them: 0.5, 1, 1.5, 2."""
    one = (config.codebook_size - 1).bit_length() * -(-config.sample_rate // config.hop_length) / 1000
    rates = [count * one for count in (*range(2, config.num_codebooks, 2), config.num_codebooks)]
    return [int(rate) if rate == int(rate) else rate for rate in rates]


def _sizes(config: HiggsAudioTokenizerConfig, fixed: HiggsAudioTokenizerConfig) -> dict[str, Any]:
    """What `config` has otherwise than `fixed`, which the nine numbers alone say."""
    sizes = {name: getattr(config, name) for name in FIXED if list_of(config, name) != list_of(fixed, name)}
    body = {name: value for name, value in config.acoustic.items() if value != fixed.acoustic[name]}
    hubert = {
        name: getattr(config.semantic, name)
        for name in HUBERT_FIELDS
        if list_of(config.semantic, name) != list_of(fixed.semantic, name)
    }
    parts = {"acoustic_model_config": body, "semantic_model_config": hubert}
    return sizes | {name: part for name, part in parts.items() if part}


def list_of(config: Any, name: str) -> Any:
    """A field, a list where it may also be a tuple: the one comes from a file, the other from a default."""
    value = getattr(config, name)
    return list(value) if isinstance(value, tuple) else value


def names(native: Iterable[str], num_blocks: int) -> dict[str, tuple[str, ...]]:
    """Native name -> its names in model.pth: two, `weight_g` and `weight_v`, for convolutions of the acoustic body."""
    return {name: _names(name, num_blocks) for name in native}


def part_shapes(
    native: Mapping[str, tuple[int, ...]], spelled: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[int, ...]]:
    """Name in model.pth -> shape, of all tensors of a tokenizer: `weight_g` is `[C, 1, 1]`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parts in spelled.items():
        shape = native[name]
        shapes[parts[-1]] = shape
        if len(parts) == 2:
            shapes[parts[0]] = (shape[0], *[1] * (len(shape) - 1))
    return shapes


def _names(native: str, num_blocks: int) -> tuple[str, ...]:
    part, _, rest = native.partition(".")
    if part not in ("acoustic_encoder", "acoustic_decoder"):
        for pattern, replacement in RENAMED:
            native = re.sub(pattern, replacement, native)
        return (native,)
    encoder = part == "acoustic_encoder"
    *path, kind = rest.split(".")
    place = ".".join(map(str, _place(path, encoder, num_blocks)))
    prefix = f"{'encoder.block' if encoder else 'decoder_2.model'}.{place}"
    return (f"{prefix}.weight_g", f"{prefix}.weight_v") if kind == "weight" else (f"{prefix}.{kind}",)


def _place(path: list[str], encoder: bool, num_blocks: int) -> list[Any]:
    """PhaseState of a layer in the original's nested sequences: edges, blocks, and in a block its units."""
    if path[0] != "block":
        return [{"conv1": 0, "snake1": num_blocks + 1, "conv2": num_blocks + 2}[path[0]]]
    block = [int(path[1]) + 1, "block"]
    if len(path) == 3:  # of the block itself: after the units in the encoder, before them in the decoder
        return [*block, {"snake1": 3, "conv1": 4}[path[2]] if encoder else {"snake1": 0, "conv_t1": 1}[path[2]]]
    unit = int(path[2].removeprefix("res_unit")) - 1
    return [*block, unit if encoder else unit + 2, "block", UNIT.index(path[3])]


def fuse(g: Tensor, v: Tensor) -> Tensor:
    """The weight `v * (g / |v|)` of `g [C, 1, 1]` and `v [C, D, T]`, |v| over all dimensions but the first.

    The norm is taken in fp64 and rounded once, so that it is the same on every machine, whatever the order of the
    sum. torch's own kernel sums in fp32 and is up to 4.3e-7 of a weight away (6,144 numbers in a row).
    """
    return v * (g / _norm(v))


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`g, v` that `fuse` makes `weight` of again, bit by bit: v is the weight and g its norm, so g / |v| is 1.

    Rows of zeros have no direction; theirs is the first axis, with g = 0.
    """
    v = weight.float().clone()
    g = _norm(v)
    v.view(len(v), -1)[:, 0].masked_fill_(g.view(-1) == 0, 1.0)
    return g, v


def _norm(v: Tensor) -> Tensor:
    return v.double().flatten(1).norm(dim=1).float().view(-1, *[1] * (v.ndim - 1))


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of `model.pth`; other entries, such as the published file's buffers of bytes, are left out.

    Only tensors, plain containers and `io.BytesIO` are unpickled: a file that asks for anything else is refused
    before anything of it is called.

    Raises:
        CheckpointError: no such file, a damaged one, or one with something else in it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has the original tokenizer's config.json and no {path.name}")
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        more = f"more than tensors ({asked[1]})" if asked else "more than tensors"
        raise CheckpointError(  # without torch's own text, which tells how to run what is in the file
            f"{path} is damaged or holds {more}, and nothing of it was run; fetch it again, or a safetensors form of it"
        ) from None
    except Exception as error:  # a damaged file fails in torch, zipfile or the unpickler, in a dozen ways
        raise CheckpointError(f"{path} does not load: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected a mapping of names to tensors")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
