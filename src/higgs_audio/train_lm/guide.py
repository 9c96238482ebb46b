"""Teachers of where to look, in training only; the exported checkpoint is a plain model.

A small language model learns slowly which phone to speak next: the frame before explains most of a frame. So
(1) one attention head in some layers is told which text position is being spoken, and (2) a linear head on a middle
layer names the phone. Both come from the alignment in `train/align.py`. It learns as slowly whose reference among
several is the voice of a turn, so (3) another head is told to look at what the same speaker said before, and (4) a
linear head on a middle layer names the speaker where a turn begins, before its own past can tell.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.model.layers import Route, rotate
from higgs_audio.model.model import IGNORED, HiggsAudioForConditionalGeneration

GUIDED_HEAD, VOICE_HEAD = 0, 1


class Guide(nn.Module):
    """Watches a model's forward passes and computes the losses of the last one.

    Args:
        model: the model to watch; hooks are attached to it until `close`.
        layers: numbers of the layers whose head GUIDED_HEAD is told where to look.
        phone_layer: number of the layer whose output names the phone.
        num_phones: size of the phone alphabet, blank included.
        voice_layers: numbers of the layers whose head VOICE_HEAD is told whom to listen to.
        name_layer: number of the layer whose output names the speaker.
        num_speakers: how many there are to be named; 0: nobody is.
    """

    def __init__(
        self,
        model: HiggsAudioForConditionalGeneration,
        layers: tuple[int, ...],
        phone_layer: int,
        num_phones: int,
        voice_layers: tuple[int, ...] = (),
        name_layer: int = 0,
        num_speakers: int = 0,
    ) -> None:
        super().__init__()
        width = model.model.text_config.hidden_size
        self.phone_head = nn.Linear(width, num_phones)
        self.name_head = nn.Linear(width, num_speakers) if num_speakers else None
        self._layers, self._voice_layers = layers, voice_layers
        self._seen: dict[int, tuple[Any, Tensor, Route, Any]] = {}  # by number of layer
        self._rows: dict[str, Tensor] = {}  # [N, D] by what is read from them
        blocks: Any = model.model.layers
        watched = sorted({*layers, *voice_layers})
        self._hooks = [blocks[i].self_attn.register_forward_pre_hook(partial(self._watch, i)) for i in watched]
        self._hooks.append(blocks[phone_layer].register_forward_hook(partial(self._keep, "phone")))
        if num_speakers:
            self._hooks.append(blocks[name_layer].register_forward_hook(partial(self._keep, "name")))

    @property
    def hears_voices(self) -> bool:
        """Whether any head is told whom to listen to."""
        return bool(self._voice_layers)

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
        visible, wanted = seen_from(targets, blocks), targets.flatten()
        losses = [
            F.cross_entropy(self._scores(layer, GUIDED_HEAD, visible).flatten(0, 1), wanted, reduction="sum")
            for layer in self._layers
        ]
        return torch.stack(losses).mean()

    def voice_loss(self, said: Tensor, blocks: Tensor | None = None) -> Tensor:
        """Sum, over positions, of the voice heads' mean negative log of the weight given to the same speaker's past.

        Args:
            said: `[B, T, 2]`, see `Batch`; what counts are positions whose speaker was heard in an earlier turn.
            blocks: as in `attention_loss`.
        """
        visible, chosen = seen_from(said[..., 0], blocks), heard_before(said).flatten().nonzero().squeeze(1)  # [M]
        turn, speaker = said.unbind(-1)
        same = (speaker[:, :, None] == speaker[:, None]) & (turn[:, None] < turn[:, :, None]) & (turn[:, None] > 0)
        others = ~same.flatten(0, 1)[chosen]  # [M, T]
        losses = []
        for layer in self._voice_layers:
            scores = self._scores(layer, VOICE_HEAD, visible).flatten(0, 1).index_select(0, chosen)  # [M, T]
            losses.append((scores.logsumexp(-1) - scores.masked_fill(others, -torch.inf).logsumexp(-1)).sum())
        return torch.stack(losses).mean()

    def phone_loss(self, phones: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the phone head's cross-entropy against `phones [B, T]`, and how many it has right."""
        return self._naming_loss(self.phone_head, "phone", phones)

    def name_loss(self, who: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the speakers `who [B, T]`."""
        assert self.name_head is not None
        return self._naming_loss(self.name_head, "name", who)

    def _naming_loss(self, head: nn.Linear, kind: str, targets: Tensor) -> tuple[Tensor, Tensor]:
        wanted = self._way.take(targets)  # [N]
        rows = (wanted != IGNORED).nonzero().squeeze(1)
        logits = head(self._rows[kind][rows])
        right = (logits.detach().argmax(-1) == wanted[rows]).sum()
        return F.cross_entropy(logits.float(), wanted[rows], reduction="sum"), right

    def _scores(self, layer: int, head: int, visible: Tensor) -> Tensor:
        """What one head's weights are the softmax of, `[B, T, T]` fp32; -inf where not `visible [B, T, T]`."""
        attention, rows, way, rotary = self._seen[layer]
        width, group = attention.head_dim, head // attention.num_key_value_groups
        query = rotate(way.put(one_head(attention.q_proj, head, width, rows))[:, :, None], *rotary)
        key = rotate(way.put(one_head(attention.k_proj, group, width, rows))[:, :, None], *rotary)  # [B, T, 1, H]
        scores = query[:, :, 0] @ key[:, :, 0].transpose(1, 2) * width**-0.5  # [B, T, T]
        return scores.float().masked_fill(~visible, -torch.inf)

    def _watch(self, layer: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training:
            rows, self._way, rotary = inputs[:3]
            self._seen[layer] = (module, rows, self._way, rotary)

    def _keep(self, kind: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._rows[kind] = output


def seen_from(positions: Tensor, blocks: Tensor | None) -> Tensor:
    """Which positions are seen from which, `[1 or B, T, T]`: those before, in the same block."""
    length = positions.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()[None]
    return causal if blocks is None else causal & (blocks[:, :, None] == blocks[:, None])


def heard_before(said: Tensor) -> Tensor:
    """Of `said [B, T, 2]`, positions of sound whose speaker has an earlier turn, `[B, T]` bool."""
    turn, speaker = said.unbind(-1)
    late = torch.where(turn > 0, turn, torch.iinfo(turn.dtype).max)
    first = late.new_full((len(turn), int(speaker.max()) + 1), torch.iinfo(turn.dtype).max)  # [B, speakers]
    return turn > first.scatter_reduce(1, speaker, late, "amin").gather(1, speaker)


def one_head(projection: nn.Linear, head: int, width: int, rows: Tensor) -> Tensor:
    """Rows `[N, D]` through one head's share of a projection, `[N, H]`: a quarter of the work of all four heads."""
    span = slice(head * width, (head + 1) * width)
    bias = None if projection.bias is None else projection.bias[span]
    return F.linear(rows, projection.weight[span], bias)
