"""Weights in fewer bits: which matrices of the language model may be quantised, and what stays as it is.

The policy is one line, `KEPT`. A decoder layer holds 4.93 of the published model's 5.77 billion numbers in seven kinds
of matrices, and those are quantised. Embeddings and heads choose between ids whose logits lie close together, norms
are a few thousand numbers, and neither is worth its error.
"""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from higgs_audio.errors import MissingExtraError, OptionError, first_line

WEIGHTS = ("int8", "nf4")
EXTRA = "quantize"
# What transformers must leave alone, as the regular expression it asks for: every module outside the decoder layers.
KEPT = r"(?!(?:model\.)?layers\.).*"
# Packages that read checkpoints saved with quantised weights, by the `quant_method` in their config.json.
READERS = {"torchao": "torchao", "bitsandbytes": "bitsandbytes"}
_SKIPPED = ("modules_to_not_convert", "llm_int8_skip_modules")


def quantization_config(weights: str, dtype: torch.dtype) -> Any:
    """transformers' configuration for one of `WEIGHTS`.

    Args:
        weights: "int8": symmetric, one scale for each row of a matrix (torchao). "nf4": 4 bits, sixteen levels placed
            as a normal distribution places its values, one scale for each 64 numbers (bitsandbytes).
        dtype: of everything else, and of the products.

    Raises:
        OptionError: no such weights.
        MissingExtraError: the package that does it is not installed.

    >>> quantization_config("int4", torch.bfloat16)
    Traceback (most recent call last):
    higgs_audio.errors.OptionError: weights='int4'; allowed: 'int8', 'nf4' (4 bits), or None for those of the checkpoint
    """
    if weights not in WEIGHTS:
        raise OptionError(f"weights={weights!r}; allowed: 'int8', 'nf4' (4 bits), or None for those of the checkpoint")
    return _int8() if weights == "int8" else _nf4(dtype)


def _int8() -> Any:
    require("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    # Its inductor settings would also lower the precision of every other float32 product in the process.
    return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False), modules_to_not_convert=[KEPT])


def _nf4(dtype: torch.dtype) -> Any:
    require("bitsandbytes")
    require("accelerate")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=[KEPT]
    )


def keep_policy(config: Any) -> Any:
    """A copy of somebody's own quantisation config that leaves alone what `KEPT` names, beside what they named.

    Args:
        config: transformers' `TorchAoConfig`, `BitsAndBytesConfig` or another that can leave modules out; or its dict.

    Raises:
        OptionError: something else, a config that cannot, or that asks for quantised embeddings.
    """
    from transformers.quantizers import AutoQuantizationConfig

    try:
        config = AutoQuantizationConfig.from_dict(config) if isinstance(config, dict) else copy.copy(config)
    except Exception as error:  # a dict that lacks a key, names no method, or whose values are of another type
        raise OptionError(
            f"quantization_config={config!r:.100} cannot be read ({type(error).__name__}: {first_line(error)}); use "
            "transformers' TorchAoConfig or BitsAndBytesConfig"
        ) from error
    skipped = next((name for name in _SKIPPED if hasattr(config, name)), None)
    if skipped is None:
        raise OptionError(
            f"quantization_config of type {type(config).__name__} cannot leave embeddings and heads as they are; "
            "use transformers' TorchAoConfig or BitsAndBytesConfig"
        )
    if getattr(config, "include_input_output_embeddings", False):
        raise OptionError("include_input_output_embeddings=True: embeddings and heads stay as they are; leave it out")
    named = getattr(config, skipped) or ()
    if isinstance(named, str) or not all(isinstance(name, str) for name in named):
        raise OptionError(f"{skipped}={named!r:.100} of the quantization_config; give a list of names of modules")
    setattr(config, skipped, list(dict.fromkeys([*named, KEPT])))
    return config


def saved_method(folder: str | Path) -> str | None:
    """How the weights of a checkpoint are quantised, as its config.json says; None where they are not.

    A file that cannot be read says nothing here: loading it tells what is wrong.

    Raises:
        MissingExtraError: in a way whose package is not installed.
    """
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        method = config["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if method in READERS:
        require(READERS[method])
    return method


def require(package: str) -> None:
    """Raises MissingExtraError where a package of the extra is not installed."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, EXTRA)
