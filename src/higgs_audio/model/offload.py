"""Text weights at home: they stay in host memory while audio, which never needs them, is written on the device.

A step in which every row is audio passes attention, `audio_mlp` and `audio_lm_head`. `Route.apply` then calls no text
feed-forward and `generate` asks for no text logits, so these weights wait in host memory, 4.2 + 1.6 of the published
model's 11.5 GB, and cost nothing. A step with text rows (the prompt, mostly) needs them in one of two ways:

    text feed-forward   the weights travel to the rows: one layer at a time, thrown away after its use
    embed_tokens and    the rows travel to the weights: one row of the table for each token, one hidden state for
    text_lm_head        each row of logits
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from higgs_audio.device import read_device
from higgs_audio.errors import OptionError

HOME = torch.device("cpu")


@dataclass
class TextOffload:
    """What has travelled: layers whose text feed-forward was sent to the device, and their bytes."""

    device: torch.device
    num_layers: int
    layers_sent: int = 0
    bytes_sent: int = 0


def offload_text(model: Any, device: torch.device | str) -> TextOffload:
    """Moves a language model to a device, all but its text weights.

    Works with plain and quantised weights. The model can be run, saved and read as before; it is for inference, and by
    one thread at a time: two would take each other's weights away.

    Args:
        model: `HiggsAudioForConditionalGeneration`, in host memory.
        device: where everything else goes.

    Returns:
        The count of what is sent, kept up to date.

    Raises:
        OptionError: a model without DualFFN, whose audio needs the text feed-forward too; or no such device.
    """
    trunk = model.model
    feeds = [layer.mlp for layer in trunk.layers if layer.audio_mlp is not None]
    if not feeds:
        raise OptionError("offload_text=True: no layer of this model has a feed-forward for audio alone; leave it out")
    offload = TextOffload(read_device(device), len(feeds))
    tables = [module for module in (trunk.embed_tokens, model.text_lm_head) if module is not None]
    at_home = {part for module in (*feeds, *tables) for part in module.modules()}
    for module in model.modules():
        if module not in at_home:
            _move(module, offload.device)
    for feed in feeds:
        _send_weights(feed, offload)
    for module in tables:
        _send_rows(module, offload.device)
    return offload


def _move(module: nn.Module, device: torch.device) -> None:
    """Moves what the module itself holds; `Module.to` would take its children along."""
    for name, weight in module._parameters.items():
        module._parameters[name] = None if weight is None else _sent(weight, device)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else buffer.to(device)


def _send_weights(feed: nn.Module, offload: TextOffload) -> None:
    """Around each call of a feed-forward its weights are copies on the device."""
    kept = [
        (part, name, weight)
        for part in feed.modules()
        for name, weight in part._parameters.items()
        if weight is not None
    ]

    def send(module: nn.Module, args: Any) -> None:
        for part, name, weight in kept:
            part._parameters[name] = sent = _sent(weight, offload.device)
            offload.bytes_sent += num_bytes(sent)
        offload.layers_sent += 1

    def forget(module: nn.Module, args: Any, output: Any) -> None:
        for part, name, weight in kept:
            part._parameters[name] = weight

    feed.register_forward_pre_hook(send)
    feed.register_forward_hook(forget, always_call=True)


@torch.inference_mode(False)  # whoever asks: bitsandbytes cannot use a tensor made in that mode a second time
@torch.no_grad()
def _sent(weight: nn.Parameter, device: torch.device) -> nn.Parameter:
    """A copy on the device. bitsandbytes' scales are moved in place, so they are copied first."""
    if (state := getattr(weight, "quant_state", None)) is not None:
        weight = copy.copy(weight)
        weight.quant_state = copy.deepcopy(state)  # type: ignore[attr-defined]
    sent = weight.to(device)
    return sent if isinstance(sent, nn.Parameter) else nn.Parameter(sent, requires_grad=False)


def _send_rows(module: nn.Module, device: torch.device) -> None:
    """Around each call of a module its input comes home, and its output goes to the device."""
    module.register_forward_pre_hook(lambda module, args: tuple(tensor.to(HOME) for tensor in args))
    module.register_forward_hook(lambda module, args, output: output.to(device))


def num_bytes(tensor: Tensor) -> int:
    """Bytes that a weight takes, with its scales where it is quantised."""
    if (state := getattr(tensor, "quant_state", None)) is not None:  # bitsandbytes
        return tensor.nbytes + sum(part.nbytes for part in state.as_dict().values() if isinstance(part, Tensor))
    names = [*getattr(tensor, "tensor_data_names", ()), *getattr(tensor, "optional_tensor_data_names", ())]  # torchao
    parts = [part for name in names if (part := getattr(tensor, name, None)) is not None]
    return sum(part.nbytes for part in parts) if parts else tensor.nbytes
