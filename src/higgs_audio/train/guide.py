"""Two teachers for the text-to-sound alignment, in training only; the exported checkpoint is a plain model.

A small language model learns slowly which phone to speak next: the frame before explains most of a frame. So
(1) one attention head in some layers is told which text position is being spoken, and (2) a linear head on a middle
layer names the phone. Both come from the alignment in `train/align.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.layers import Route, rotate
from higgs_audio.model import IGNORED, HiggsAudioForConditionalGeneration

GUIDED_HEAD = 0


class Guide(nn.Module):
    """Watches a model's forward passes and computes both losses of the last one.

    Args:
        model: the model to watch; hooks are attached to it until `close`.
        layers: numbers of the layers whose head GUIDED_HEAD is told where to look.
        phone_layer: number of the layer whose output names the phone.
        num_phones: size of the phone alphabet, blank included.
    """

    def __init__(
        self, model: HiggsAudioForConditionalGeneration, layers: tuple[int, ...], phone_layer: int, num_phones: int
    ) -> None:
        super().__init__()
        self.phone_head = nn.Linear(model.model.text_config.hidden_size, num_phones)
        self._seen: dict[int, tuple[Any, Tensor, Route, Any]] = {}
        self._rows: Tensor | None = None
        blocks: Any = model.model.layers
        self._hooks = [blocks[i].self_attn.register_forward_pre_hook(self._watch) for i in layers]
        self._hooks.append(blocks[phone_layer].register_forward_hook(self._keep))

    def close(self) -> None:
        """Detaches from the model."""
        for hook in self._hooks:
            hook.remove()

    def attention_loss(self, targets: Tensor, blocks: Tensor | None = None) -> Tensor:
        """Sum, over positions, of the guided heads' mean negative log of the weight that each gives to its target.

        Args:
            targets: `[B, T]`, position to look at, IGNORED where there is none.
            blocks: `[B, T]`, the number of the sequence that a position is in, of a packed row; all one where None.
                Padding is behind and needs no mask.
        """
        length = targets.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=targets.device).tril()[None]
        if blocks is not None:
            visible = visible & (blocks[:, :, None] == blocks[:, None])  # [B, T, T]
        losses = [self._head_loss(*seen, targets, visible) for seen in self._seen.values()]
        self._seen.clear()
        return torch.stack(losses).mean()

    def phone_loss(self, phones: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the phone head's cross-entropy against `phones [B, T]`, and how many it has right."""
        assert self._rows is not None
        wanted = self._way.take(phones)  # [N]
        rows = (wanted != IGNORED).nonzero().squeeze(1)
        logits = self.phone_head(self._rows[rows])
        right = (logits.detach().argmax(-1) == wanted[rows]).sum()
        return F.cross_entropy(logits.float(), wanted[rows], reduction="sum"), right

    def _head_loss(
        self, attention: Any, rows: Tensor, way: Route, rotary: Any, targets: Tensor, visible: Tensor
    ) -> Tensor:
        width, group = attention.head_dim, GUIDED_HEAD // attention.num_key_value_groups
        query = rotate(way.put(one_head(attention.q_proj, GUIDED_HEAD, width, rows))[:, :, None], *rotary)
        key = rotate(way.put(one_head(attention.k_proj, group, width, rows))[:, :, None], *rotary)  # [B, T, 1, H]
        scores = query[:, :, 0] @ key[:, :, 0].transpose(1, 2) * width**-0.5  # [B, T, T]
        log_weights = scores.masked_fill(~visible, -torch.inf).log_softmax(-1)  # [B, T, T]
        chosen = (targets != IGNORED).nonzero(as_tuple=True)
        return F.nll_loss(log_weights[chosen], targets[chosen], reduction="sum")

    def _watch(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training:
            rows, self._way, rotary = inputs[:3]
            self._seen[id(module)] = (module, rows, self._way, rotary)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._rows = output


def one_head(projection: nn.Linear, head: int, width: int, rows: Tensor) -> Tensor:
    """Rows `[N, D]` through one head's share of a projection, `[N, H]`: a quarter of the work of all four heads."""
    span = slice(head * width, (head + 1) * width)
    bias = None if projection.bias is None else projection.bias[span]
    return F.linear(rows, projection.weight[span], bias)
