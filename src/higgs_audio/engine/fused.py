"""Decoder layers with their projections joined, for the torch path of the engine."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.engine.cache_views import DecodeView
from higgs_audio.model.layers import DualFFNLayer, RMSNorm

PLAIN = (nn.Linear, RMSNorm)  # what has weights


def turning(cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` as x * a + (x, halves exchanged) * b: cosines and sines `[1, T, 1, H]` -> a and b, `[T, 2, 1, H]`."""
    first, second = sin[0].chunk(2, dim=-1)
    return torch.stack([cos[0], torch.cat([-first, second], dim=-1)], dim=1)


class FusedLayer:
    """A layer for rows that are all audio, its matrices joined and few operations: a step of a small model is mostly
    their overhead.

    The layer's own weights become views of the joined ones, so that nothing is held twice.
    """

    def __init__(self, layer: DualFFNLayer) -> None:
        attention, (before, between, feed) = layer.self_attn, layer.of_audio
        self._before, self._between = FusedNorm(before), FusedNorm(between)
        self._qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = joined(feed.gate_proj, feed.up_proj)
        self._views = ((self._qkv, attention.q_proj), (self._gate_up, feed.gate_proj))
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        parts: list[tuple[nn.Module, str]] = [(attention, name) for name in names]
        parts += [(feed, name) for name in ("gate_proj", "up_proj", "down_proj", "act")]
        self._parts = [(owner, name, getattr(owner, name)) for owner, name in parts]
        self._out, self._down, self._act = attention.o_proj, feed.down_proj, feed.act
        self._number, self._width = attention.layer_idx, attention.head_dim
        self.num_values = attention.v_proj.out_features // self._width  # N_kv
        self._num_queries = attention.q_proj.out_features // self._width  # N
        self._grouped = self._num_queries != self.num_values

    @property
    def is_current(self) -> bool:
        """Whether the layer's matrices still are the same, no adapter around them, and views of the joined ones."""
        same = all(getattr(owner, name) is part for owner, name, part in self._parts)
        return same and all(joined[0].data_ptr() == part.weight.data_ptr() for joined, part in self._views)

    def __call__(self, hidden: Tensor, turn: Tensor, mask: Tensor | None, place: DecodeView) -> Tensor:
        """Rows `[R, D]` to rows `[R, D]`; `turn [R, 2, 1, H]` is of `turning`."""
        heads = F.linear(self._before(hidden), *self._qkv).unflatten(-1, (-1, self._width))
        turned, (here, there) = heads[:, : -self.num_values], turn.unbind(1)  # [R, N + N_kv, H]
        turned.copy_(torch.addcmul(turned * here, turned.roll(self._width // 2, -1), there))
        query, pairs = heads.tensor_split((self._num_queries,), dim=1)
        keys, values = place.put(pairs.unflatten(1, (2, -1)), self._number)
        seen = F.scaled_dot_product_attention(query[:, :, None], keys, values, mask, enable_gqa=self._grouped)
        hidden = added(hidden, seen.flatten(1), self._out)
        gate, up = F.linear(self._between(hidden), *self._gate_up).chunk(2, dim=-1)
        return added(hidden, self._act(gate).mul_(up), self._down)


class FusedNorm:
    """`RMSNorm` in few operations: one kernel on a GPU; on a CPU torch has none, and a norm and a hypotenuse do."""

    def __init__(self, norm: RMSNorm) -> None:
        self._norm, (self._size,) = norm, norm.weight.shape
        self._least = torch.tensor((self._size * norm.eps) ** 0.5, device=norm.weight.device)
        self._is_plain = norm.weight.device.type == "cpu" and norm.weight.dtype == torch.float32

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows `[R, D]` to rows `[R, D]`."""
        if not self._is_plain:
            return F.rms_norm(rows, (self._size,), self._norm.weight, self._norm.eps)
        length = torch.hypot(torch.linalg.vector_norm(rows, dim=-1, keepdim=True), self._least)  # sqrt(D) rms
        return rows * (self._norm.weight / length) * self._size**0.5


def added(rows: Tensor, x: Tensor, projection: nn.Linear) -> Tensor:
    """`rows + projection(x)`, in one operation where there is no bias."""
    if projection.bias is None:
        return torch.addmm(rows, x, projection.weight.t())
    return rows + projection(x)


def joined(*projections: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One weight and one bias of projections that read the same rows; theirs become views of them."""
    sizes = [projection.out_features for projection in projections]
    weight = torch.cat([projection.weight.detach() for projection in projections])
    bias = None if projections[0].bias is None else torch.cat([projection.bias.detach() for projection in projections])
    for number, part in enumerate(weight.split(sizes)):
        projections[number].weight.data = part
    for number, part in enumerate(() if bias is None else bias.split(sizes)):
        projections[number].bias.data = part
    return weight, bias


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is made of torch's own matrices, in one place: no adapters, nothing quantised or offloaded."""
    weights, parts = list(layer.parameters()), list(layer.modules())
    return (
        all(type(part) in PLAIN or not list(part.parameters(recurse=False)) for part in parts)
        and all(type(weight) is nn.Parameter for weight in weights)
        and len({(weight.device, weight.dtype) for weight in weights}) == 1
        and not any(part._forward_pre_hooks or part._forward_hooks for part in parts)
    )
