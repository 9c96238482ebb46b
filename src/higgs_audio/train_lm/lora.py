"""Selects the trained parameters of a model: all of them, named parts, or LoRA adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from higgs_audio.errors import RecipeError, nearest
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

# The parts that `train` in a recipe may list, as patterns of parameter names.
PARTS = {
    "all": ("*",),
    "audio": (
        "*.audio_mlp.*",
        "*.audio_input_layernorm.*",
        "*.audio_post_attention_layernorm.*",
        "model.embed_audio_tokens.*",
        "audio_lm_head.*",
    ),
    "text": (
        "*.mlp.*",
        "*.input_layernorm.*",
        "*.post_attention_layernorm.*",
        "model.norm.*",
        "model.embed_tokens.*",
        "text_lm_head.*",
    ),
    "attention": ("*.self_attn.*",),
    "heads": ("audio_lm_head.*", "text_lm_head.*"),
    "embeddings": ("model.embed_tokens.*", "model.embed_audio_tokens.*"),
}
# Attention and both feed-forward networks: with adapters of attention alone, the feed-forward networks that model audio
# would not be adapted.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021).

    Args:
        rank: rank of the two factors.
        alpha: the product of the factors is scaled by alpha / rank.
        dropout: dropout probability of the adapters' input.
        also: parts (see PARTS) that are fully trained in addition to the adapters, such as "heads".
    """

    rank: int
    alpha: float = 32.0
    dropout: float = 0.0
    also: tuple[str, ...] = ()


def freeze_except(model: nn.Module, parts: Sequence[str]) -> None:
    """Freezes every parameter that is in none of `parts`, in place.

    Raises:
        RecipeError: an unknown part, or no parameter would be trained.
    """
    chosen = parameters_of(model, parts)
    if not chosen:
        raise RecipeError(
            f"train={list(parts)}: the model has no such parameters, so nothing would be trained; {nearest('', PARTS)}"
        )
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in chosen)


def parameters_of(model: nn.Module, parts: Sequence[str]) -> set[str]:
    """Returns the names of the parameters of `parts`; raises RecipeError for an unknown part."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise RecipeError(f"train: unknown part {unknown[0]!r}; {nearest(unknown[0], PARTS)}")
    patterns = [pattern for part in parts for pattern in PARTS[part]]
    names = (name for name, _ in model.named_parameters())
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def add_lora(model: HiggsAudioForConditionalGeneration, lora: Lora) -> None:
    """Adds adapters to `model`, in place, and freezes all other parameters except the parts in `lora.also`.

    Raises:
        RecipeError: PEFT is not installed, or an unknown part.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError(
            f"lora_rank={lora.rank} needs PEFT, which is not installed: pip install 'higgs-audio[train]'"
        ) from error
    fully_trained = parameters_of(model, lora.also)
    scale: Any = lora.alpha  # PEFT annotates an int but computes with any number
    config = LoraConfig(r=lora.rank, lora_alpha=scale, lora_dropout=lora.dropout, target_modules=list(LORA_TARGETS))
    inject_adapter_in_model(config, model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(".lora_" in name or name in fully_trained)


def merge_adapters(state: Mapping[str, Tensor], lora: Lora | None) -> dict[str, Tensor]:
    """Merges the adapters in a state dict into their weights and returns the state dict of the plain model."""
    if lora is None:
        return dict(state)
    plain = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, down in state.items():
        if name.endswith(".lora_A.default.weight"):
            up = state[name.replace(".lora_A.", ".lora_B.")]
            target = name.replace(".lora_A.default.", ".")
            plain[target] = plain[target] + (lora.alpha / lora.rank) * (up @ down).to(plain[target])
    return plain
