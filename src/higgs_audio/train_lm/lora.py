"""What of a model is trained: all of it, named parts, or LoRA adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from higgs_audio.errors import RecipeError, nearest
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

# What a recipe's `train` may name, as patterns of parameter names.
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
# Attention and both feed-forwards: what is heard is in the audio ones, which adapters of attention alone never reach.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters.

    Args:
        rank: of the two factors; 0 for none.
        alpha: their product is scaled by alpha / rank.
        dropout: of what enters them.
        also: parts (see PARTS) that are trained whole beside them, such as "heads".
    """

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    also: tuple[str, ...] = ()


def choose_trained(model: nn.Module, parts: Sequence[str]) -> None:
    """Freezes every parameter that none of `parts` names.

    Raises RecipeError for a part that does not exist, or where nothing would be trained.
    """
    chosen = named_by(model, parts)
    if not chosen:
        raise RecipeError(f"train={list(parts)}: the model has no such part, so nothing would be trained")
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in chosen)


def named_by(model: nn.Module, parts: Sequence[str]) -> set[str]:
    """Names of the parameters of `parts`. Raises RecipeError for a part that does not exist."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise RecipeError(f"train: unknown part {unknown[0]!r}; {nearest(unknown[0], PARTS)}")
    patterns = [pattern for part in parts for pattern in PARTS[part]]
    names = (name for name, _ in model.named_parameters())
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def add_lora(model: HiggsAudioForConditionalGeneration, lora: Lora) -> None:
    """Puts adapters into `model`, in place, and freezes the rest but what `lora.also` names.

    Raises RecipeError where PEFT is not installed or a part does not exist.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError("lora_rank needs PEFT: pip install 'higgs-audio[train]'") from error
    whole = named_by(model, lora.also)
    scale: Any = lora.alpha  # PEFT's annotation says int, its arithmetic does not
    config = LoraConfig(r=lora.rank, lora_alpha=scale, lora_dropout=lora.dropout, target_modules=list(LORA_TARGETS))
    inject_adapter_in_model(config, model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(".lora_" in name or name in whole)


def merged(state: Mapping[str, Tensor], lora: Lora | None) -> dict[str, Tensor]:
    """The plain model's tensors, named as it names them, from those of a model with adapters."""
    if lora is None:
        return dict(state)
    plain = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, down in state.items():
        if name.endswith(".lora_A.default.weight"):
            up = state[name.replace(".lora_A.", ".lora_B.")]
            target = name.replace(".lora_A.default.", ".")
            plain[target] = plain[target] + (lora.alpha / lora.rank) * (up @ down).to(plain[target])
    return plain
