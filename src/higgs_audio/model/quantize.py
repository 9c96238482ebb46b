"""Quantization of the language model: the modules that are quantized, and the packages that do it.

The seven matrices of each decoder layer are quantized; they hold 4.93 of the published model's 5.77 billion parameters.
`NOT_QUANTIZED` matches every other module. Embeddings and heads decide between ids whose logits are close, and norms
have a few thousand parameters; the error would cost more than the memory saved.
"""

import copy
import importlib.util
from pathlib import Path
from typing import cast

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin

from higgs_audio.checkpoint import Checkpoint, as_checkpoint
from higgs_audio.errors import CheckpointError, MissingExtraError, OptionError, first_line

WEIGHTS = ("int8", "nf4")
EXTRA = "quantize"
NOT_QUANTIZED = r"(?!(?:model\.)?layers\.).*"  # pattern for transformers: every module outside the decoder layers
# `quant_method` in the config.json of a checkpoint with quantized weights -> the package that reads it.
PACKAGES = {"torchao": "torchao", "bitsandbytes": "bitsandbytes"}
_EXCLUSIONS = ("modules_to_not_convert", "llm_int8_skip_modules")  # names of the attribute in transformers' configs


def quantization_config(weights: str, dtype: torch.dtype) -> QuantizationConfigMixin:
    """Returns transformers' configuration for one of `WEIGHTS`.

    Args:
        weights: "int8": symmetric, one scale for each row of a matrix (torchao). "nf4": 4 bits, with sixteen levels at
            the quantiles of a normal distribution, one scale for each 64 numbers (bitsandbytes).
        dtype: dtype of all other weights, and of the products.

    Raises:
        OptionError: no such weights.
        MissingExtraError: the package for these weights is not installed.

    >>> quantization_config("int4", torch.bfloat16)
    Traceback (most recent call last):
    higgs_audio.errors.OptionError: weights='int4'; allowed: 'int8', 'nf4' (4 bits), or None for the stored weights
    """
    if weights not in WEIGHTS:
        raise OptionError(f"weights={weights!r}; allowed: 'int8', 'nf4' (4 bits), or None for the stored weights")
    return _int8() if weights == "int8" else _nf4(dtype)


def _int8() -> QuantizationConfigMixin:
    require("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    # Its inductor settings would also lower the precision of every other float32 product in the process.
    return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False), modules_to_not_convert=[NOT_QUANTIZED])


def _nf4(dtype: torch.dtype) -> QuantizationConfigMixin:
    require("bitsandbytes")
    require("accelerate")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[NOT_QUANTIZED],
    )


def with_exclusions(config: object) -> QuantizationConfigMixin:
    """Returns a copy of a quantization config that also excludes `NOT_QUANTIZED`.

    Args:
        config: transformers' `TorchAoConfig`, `BitsAndBytesConfig` or another that can exclude modules; or its dict.

    Raises:
        OptionError: another type, a config that cannot exclude modules, or a config that quantizes embeddings.
    """
    copied = _read_config(config)
    attribute = next((name for name in _EXCLUSIONS if hasattr(copied, name)), None)
    if attribute is None:
        raise OptionError(
            f"quantization_config of type {type(copied).__name__} cannot exclude embeddings and heads; "
            "use transformers' TorchAoConfig or BitsAndBytesConfig"
        )
    if getattr(copied, "include_input_output_embeddings", False):
        raise OptionError("include_input_output_embeddings=True: embeddings and heads are never quantized; omit it")
    names = getattr(copied, attribute) or ()
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise OptionError(f"{attribute}={names!r:.100} in quantization_config; pass a list of names of modules")
    setattr(copied, attribute, list(dict.fromkeys([*names, NOT_QUANTIZED])))
    return cast(QuantizationConfigMixin, copied)


def _read_config(config: object) -> object:
    """Returns a copy of a quantization config, or the config that a dict describes."""
    from transformers.quantizers import AutoQuantizationConfig

    try:
        return AutoQuantizationConfig.from_dict(config) if isinstance(config, dict) else copy.copy(config)
    except Exception as error:  # a dict without a required key or method, or with a value of another type
        raise OptionError(
            f"quantization_config={config!r:.100} cannot be read ({type(error).__name__}: {first_line(error)}); use "
            "transformers' TorchAoConfig or BitsAndBytesConfig"
        ) from error


def saved_method(folder: str | Path | Checkpoint) -> str | None:
    """Returns the `quant_method` in the config.json of a checkpoint; None if its weights are not quantized.

    A file that cannot be read counts as not quantized: loading it reports the error.

    Raises:
        MissingExtraError: the package that reads these weights is not installed.
    """
    try:
        method = as_checkpoint(folder).config["quantization_config"]["quant_method"]
    except (CheckpointError, KeyError, TypeError):
        return None
    if method in PACKAGES:
        require(PACKAGES[method])
    return method


def require(package: str) -> None:
    """Raises MissingExtraError unless a package of the extra is installed."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, EXTRA)
