"""Offloads weights that only text uses to host memory, while audio is generated on the device.

A step in which every row is audio uses attention, `audio_mlp` and `audio_lm_head`: `Route.apply` then calls no text
feed-forward network, and `generate` requests no text logits. The text weights, 4.2 + 1.6 of the published model's
11.5 GB, stay in host memory at no cost. A step with text rows (mostly the prompt) uses them in one of two ways:

    text feed-forward   weights are copied to the device, one layer at a time, and dropped after use
    embed_tokens,       inputs are copied to host memory and outputs back: one embedding for each token, one hidden
    text_lm_head        state for each row of logits
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from higgs_audio.device import resolve_device
from higgs_audio.errors import OptionError

HOST = torch.device("cpu")


@dataclass
class TextOffload:
    """Counts the weights that have been copied to the device.

    Attributes:
        device: device of all weights that are not offloaded.
        num_layers: layers whose text feed-forward network is offloaded.
        layers_copied: feed-forward networks copied to the device so far.
        bytes_copied: bytes of their weights.
    """

    device: torch.device
    num_layers: int
    layers_copied: int = 0
    bytes_copied: int = 0


def offload_text(model: Any, device: torch.device | str) -> TextOffload:
    """Moves a language model to a device, except its text weights.

    Works with plain and quantized weights. The model can be run and saved as before. It is for inference only, and for
    one thread at a time: the hooks of two threads would replace each other's weights.

    Args:
        model: `HiggsAudioForConditionalGeneration`, in host memory.
        device: device of all other weights.

    Returns:
        Counts of the copied weights, updated by each forward pass.

    Raises:
        OptionError: a model without DualFFN, whose audio rows use the text feed-forward networks too; or no such
            device.
    """
    backbone = model.model
    text_mlps = [layer.mlp for layer in backbone.layers if layer.audio_mlp is not None]
    if not text_mlps:
        raise OptionError(
            "offload_text=True, but no layer of this model has a separate feed-forward network for audio; omit it"
        )
    offload = TextOffload(resolve_device(device), len(text_mlps))
    embedding_and_head = [module for module in (backbone.embed_tokens, model.text_lm_head) if module is not None]
    on_host = {part for module in (*text_mlps, *embedding_and_head) for part in module.modules()}
    for module in model.modules():
        if module not in on_host:
            _move(module, offload.device)
    for mlp in text_mlps:
        _copy_weights_on_call(mlp, offload)
    for module in embedding_and_head:
        _run_on_host(module, offload.device)
    return offload


def _move(module: nn.Module, device: torch.device) -> None:
    """Moves a module's own parameters and buffers; `Module.to` would move its children too."""
    for name, weight in module._parameters.items():
        module._parameters[name] = None if weight is None else _copy_to(weight, device)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else buffer.to(device)


def _copy_weights_on_call(mlp: nn.Module, offload: TextOffload) -> None:
    """Adds hooks that replace the weights of a feed-forward network by copies on the device during each call."""
    originals = [
        (part, name, weight)
        for part in mlp.modules()
        for name, weight in part._parameters.items()
        if weight is not None
    ]

    def copy_weights(module: nn.Module, args: Any) -> None:
        for part, name, weight in originals:
            part._parameters[name] = copied = _copy_to(weight, offload.device)
            offload.bytes_copied += num_bytes(copied)
        offload.layers_copied += 1

    def restore(module: nn.Module, args: Any, output: Any) -> None:
        for part, name, weight in originals:
            part._parameters[name] = weight

    mlp.register_forward_pre_hook(copy_weights)
    mlp.register_forward_hook(restore, always_call=True)


@torch.inference_mode(False)  # bitsandbytes can use a tensor that was created in inference mode only once
@torch.no_grad()
def _copy_to(weight: nn.Parameter, device: torch.device) -> nn.Parameter:
    """Returns a copy on the device. bitsandbytes moves scales in place, so the original's are copied first."""
    if (state := getattr(weight, "quant_state", None)) is not None:
        weight = copy.copy(weight)
        weight.quant_state = copy.deepcopy(state)  # type: ignore[attr-defined]
    copied = weight.to(device)
    return copied if isinstance(copied, nn.Parameter) else nn.Parameter(copied, requires_grad=False)


def _run_on_host(module: nn.Module, device: torch.device) -> None:
    """Adds hooks that copy a module's input to host memory and its output to the device."""
    module.register_forward_pre_hook(lambda module, args: tuple(tensor.to(HOST) for tensor in args))
    module.register_forward_hook(lambda module, args, output: output.to(device))


def num_bytes(tensor: Tensor) -> int:
    """Returns the number of bytes of a weight, including the scales of a quantized one."""
    if (state := getattr(tensor, "quant_state", None)) is not None:  # bitsandbytes
        return tensor.nbytes + sum(part.nbytes for part in state.as_dict().values() if isinstance(part, Tensor))
    names = [*getattr(tensor, "tensor_data_names", ()), *getattr(tensor, "optional_tensor_data_names", ())]  # torchao
    parts = [part for name in names if (part := getattr(tensor, name, None)) is not None]
    return sum(part.nbytes for part in parts) if parts else tensor.nbytes
