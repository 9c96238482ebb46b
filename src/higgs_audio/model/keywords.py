"""Further keyword arguments of `forward`: of the attention function, and neutral values of other models' options."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs

from higgs_audio.errors import OptionError, nearest

ATTENTION = tuple(FlashAttentionKwargs.__annotations__)
# Options of other models, which trainers and adapters pass with these values; they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "return_dict": (None, True),
    "output_attentions": (None, False),
    "inputs_embeds": (None,),
    "cache_position": (None,),
}
REASONS = {
    "return_dict": "outputs are always a dict-like object",
    "output_attentions": "attention weights are not returned",
    "inputs_embeds": "positions of audio and text have different embeddings; give input_ids",
    "cache_position": "positions follow from the attention mask and the cache",
}


def attention_options(model: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the attention function.

    Args:
        model: the model whose `forward` was called.
        options: the keyword arguments that are no parameters of its `forward`.

    Raises:
        OptionError: an option that does not exist, or that this model does not have.
    """
    for name, value in options.items():
        if name in NEUTRAL:
            if not any(value is neutral for neutral in NEUTRAL[name]):
                raise OptionError(f"{name}={value!r:.40}: {REASONS[name]}; omit it")
        elif name not in ATTENTION:
            known = [*inspect.signature(model.forward).parameters, *ATTENTION]
            raise OptionError(f"forward has no argument {name!r}; {nearest(name, known)}")
    return {name: value for name, value in options.items() if name in ATTENTION}
