"""Decoder layers with joined projections, for decode steps in torch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.engine.cache_views import DecodeView
from higgs_audio.model.layers import DualFFNLayer, RMSNorm

PLAIN = (nn.Linear, RMSNorm)  # modules that may have weights in a plain layer


def rotation_factors(cos: Tensor, sin: Tensor) -> Tensor:
    """Converts cosines and sines `[1, T, 1, H]` to factors a and b, `[T, 2, 1, H]`.

    The rotary embedding of x is then x * a + (x with its halves swapped) * b.
    """
    first, second = sin[0].chunk(2, dim=-1)
    return torch.stack([cos[0], torch.cat([-first, second], dim=-1)], dim=1)


class FusedLayer:
    """A decoder layer for batches of audio positions, in few operations: overhead dominates a step of a small model.

    The weights of the layer become views of the joined weights, so that no weight is in memory twice.

    Args:
        layer: a layer for which `is_plain` returns True; modified in place.
    """

    def __init__(self, layer: DualFFNLayer) -> None:
        attention, (input_norm, post_attention_norm, feed_forward) = layer.self_attn, layer.audio_modules
        self._input_norm, self._post_attention_norm = FusedNorm(input_norm), FusedNorm(post_attention_norm)
        self._qkv = join_projections(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = join_projections(feed_forward.gate_proj, feed_forward.up_proj)
        self._views = ((self._qkv, attention.q_proj), (self._gate_up, feed_forward.gate_proj))
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        children: list[tuple[nn.Module, str]] = [(attention, name) for name in names]
        children += [(feed_forward, name) for name in ("gate_proj", "up_proj", "down_proj", "act")]
        self._children = [(parent, name, getattr(parent, name)) for parent, name in children]
        self._out, self._down, self._act = attention.o_proj, feed_forward.down_proj, feed_forward.act
        self._index, self._head_dim = attention.layer_idx, attention.head_dim
        self._num_kv_heads = attention.v_proj.out_features // self._head_dim
        self._num_heads = attention.q_proj.out_features // self._head_dim
        self._is_grouped = self._num_heads != self._num_kv_heads

    @property
    def is_current(self) -> bool:
        """Whether the layer still has the same matrices, without adapters, as views of the joined matrices."""
        same = all(getattr(parent, name) is child for parent, name, child in self._children)
        return same and all(joined[0].data_ptr() == view.weight.data_ptr() for joined, view in self._views)

    def __call__(self, hidden: Tensor, rotation: Tensor, mask: Tensor | None, view: DecodeView) -> Tensor:
        """Maps hidden states `[R, D]` to `[R, D]`; `rotation [R, 2, 1, H]` is from `rotation_factors`."""
        heads = F.linear(self._input_norm(hidden), *self._qkv).unflatten(-1, (-1, self._head_dim))
        rotated, (a, b) = heads[:, : -self._num_kv_heads], rotation.unbind(1)  # [R, N + N_kv, H]
        rotated.copy_(torch.addcmul(rotated * a, rotated.roll(self._head_dim // 2, -1), b))
        query, keys_values = heads.tensor_split((self._num_heads,), dim=1)
        keys, values = view.write(keys_values.unflatten(1, (2, -1)), self._index)
        attended = F.scaled_dot_product_attention(query[:, :, None], keys, values, mask, enable_gqa=self._is_grouped)
        hidden = add_projection(hidden, attended.flatten(1), self._out)
        gate, up = F.linear(self._post_attention_norm(hidden), *self._gate_up).chunk(2, dim=-1)
        return add_projection(hidden, self._act(gate).mul_(up), self._down)


class FusedNorm:
    """`RMSNorm` in few operations: `F.rms_norm` is one kernel on a GPU but many on a CPU, where a vector norm and a
    hypotenuse replace it.

    Args:
        norm: the norm with the weight.
    """

    def __init__(self, norm: RMSNorm) -> None:
        self._norm, (self._size,) = norm, norm.weight.shape
        self._minimum = torch.tensor((self._size * norm.eps) ** 0.5, device=norm.weight.device)
        self._use_hypot = norm.weight.device.type == "cpu" and norm.weight.dtype == torch.float32

    def __call__(self, hidden: Tensor) -> Tensor:
        """Normalizes hidden states `[R, D]`."""
        if not self._use_hypot:
            return F.rms_norm(hidden, (self._size,), self._norm.weight, self._norm.eps)
        length = torch.hypot(torch.linalg.vector_norm(hidden, dim=-1, keepdim=True), self._minimum)  # sqrt(D) rms
        return hidden * (self._norm.weight / length) * self._size**0.5


def add_projection(hidden: Tensor, x: Tensor, projection: nn.Linear) -> Tensor:
    """Returns `hidden + projection(x)`, in one operation if there is no bias."""
    if projection.bias is None:
        return torch.addmm(hidden, x, projection.weight.t())
    return hidden + projection(x)


def join_projections(*projections: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Concatenates the weights and biases of projections of one input, and replaces them by views of the result."""
    sizes = [projection.out_features for projection in projections]
    weight = torch.cat([projection.weight.detach() for projection in projections])
    bias = None if projections[0].bias is None else torch.cat([projection.bias.detach() for projection in projections])
    for index, part in enumerate(weight.split(sizes)):
        projections[index].weight.data = part
    for index, part in enumerate(() if bias is None else bias.split(sizes)):
        projections[index].bias.data = part
    return weight, bias


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer consists of `PLAIN` modules: no adapters, no hooks, nothing quantized or offloaded."""
    weights, modules = list(layer.parameters()), list(layer.modules())
    return (
        all(type(module) in PLAIN or not list(module.parameters(recurse=False)) for module in modules)
        and all(type(weight) is nn.Parameter for weight in weights)
        and len({(weight.device, weight.dtype) for weight in weights}) == 1
        and not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    )
