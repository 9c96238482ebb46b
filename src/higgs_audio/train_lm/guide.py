"""Auxiliary losses that guide attention; they exist only in training, and the exported checkpoint is a plain model.

A small language model learns slowly which phone comes next, because the previous frame explains most of a frame.
Therefore (1) one attention head in some layers is supervised to attend to the text position of the frame's phone, and
(2) a linear head on a middle layer classifies the phone. Both use the alignment of `data/align.py`. The model learns
just as slowly which of several references has the voice of a turn. Therefore (3) another attention head is supervised
to attend to the speaker's earlier turns, and (4) a linear head on a middle layer classifies the speaker at the start of
a turn, before its own codes reveal the voice.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.model.layers import Route, rotate
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

GUIDED_HEAD, VOICE_HEAD = 0, 1


class Guide(nn.Module):
    """Records a model's forward pass through hooks and computes the auxiliary losses of the last pass.

    Args:
        model: the model; hooks stay attached to it until `close`.
        layers: layers whose head GUIDED_HEAD is supervised to attend to the text position of a frame.
        phone_layer: layer whose output is the input of the phone classifier.
        num_phones: size of the phone alphabet, with the blank.
        voice_layers: layers whose head VOICE_HEAD is supervised to attend to the speaker's earlier turns.
        name_layer: layer whose output is the input of the speaker classifier.
        num_speakers: number of speaker classes; 0 for no speaker classifier.
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
        self._attention_inputs: dict[int, tuple[Any, Tensor, Route, Any]] = {}  # by layer
        self._hidden: dict[str, Tensor] = {}  # [N, D] by classifier
        blocks: Any = model.model.layers
        attended = sorted({*layers, *voice_layers})
        self._hooks = [blocks[i].self_attn.register_forward_pre_hook(partial(self._save_inputs, i)) for i in attended]
        self._hooks.append(blocks[phone_layer].register_forward_hook(partial(self._save_hidden, "phone")))
        if num_speakers:
            self._hooks.append(blocks[name_layer].register_forward_hook(partial(self._save_hidden, "name")))

    @property
    def has_voice_heads(self) -> bool:
        """Whether any attention head is supervised to attend to the speaker's earlier turns."""
        return bool(self._voice_layers)

    def close(self) -> None:
        """Removes the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def attention_loss(self, targets: Tensor, blocks: Tensor | None = None) -> Tensor:
        """Returns the negative log of the attention weight of a guided head on its target.

        The result is the sum over positions of the mean over layers.

        Args:
            targets: `[B, T]`, position to attend to, or IGNORE_INDEX.
            blocks: `[B, T]`, the index of each position's sequence in a packed row; None if rows are not packed.
                Padding is on the right and needs no mask.
        """
        visible, flat_targets = attention_mask(targets, blocks), targets.flatten()
        losses = [
            F.cross_entropy(self._scores(layer, GUIDED_HEAD, visible).flatten(0, 1), flat_targets, reduction="sum")
            for layer in self._layers
        ]
        return torch.stack(losses).mean()

    def voice_loss(self, turn_speakers: Tensor, blocks: Tensor | None = None) -> Tensor:
        """Returns the negative log of the attention weight of a voice head on the speaker's earlier turns.

        The result is the sum, over positions whose speaker has an earlier turn, of the mean over layers.

        Args:
            turn_speakers: `[B, T, 2]`, see `Batch`.
            blocks: as in `attention_loss`.
        """
        visible = attention_mask(turn_speakers[..., 0], blocks)
        chosen = has_earlier_turn(turn_speakers).flatten().nonzero().squeeze(1)  # [M]
        turn, speaker = turn_speakers.unbind(-1)
        same = (speaker[:, :, None] == speaker[:, None]) & (turn[:, None] < turn[:, :, None]) & (turn[:, None] > 0)
        different = ~same.flatten(0, 1)[chosen]  # [M, T]
        losses = []
        for layer in self._voice_layers:
            scores = self._scores(layer, VOICE_HEAD, visible).flatten(0, 1).index_select(0, chosen)  # [M, T]
            losses.append((scores.logsumexp(-1) - scores.masked_fill(different, -torch.inf).logsumexp(-1)).sum())
        return torch.stack(losses).mean()

    def phone_loss(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the phone classifier's summed cross-entropy for `labels [B, T]`, and its number of correct labels."""
        return self._classifier_loss(self.phone_head, "phone", labels)

    def name_loss(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the same for the speaker classifier."""
        assert self.name_head is not None
        return self._classifier_loss(self.name_head, "name", labels)

    def _classifier_loss(self, head: nn.Linear, kind: str, labels: Tensor) -> tuple[Tensor, Tensor]:
        routed = self._route.gather(labels)  # [N]
        rows = (routed != IGNORE_INDEX).nonzero().squeeze(1)
        logits = head(self._hidden[kind][rows])
        num_correct = (logits.detach().argmax(-1) == routed[rows]).sum()
        return F.cross_entropy(logits.float(), routed[rows], reduction="sum"), num_correct

    def _scores(self, layer: int, head: int, visible: Tensor) -> Tensor:
        """Returns one head's attention logits `[B, T, T]` in float32; -inf where not `visible [B, T, T]`."""
        attention, rows, route, rotary = self._attention_inputs[layer]
        width, group = attention.head_dim, head // attention.num_key_value_groups
        query = rotate(route.scatter(project_head(attention.q_proj, head, width, rows))[:, :, None], *rotary)
        key = rotate(
            route.scatter(project_head(attention.k_proj, group, width, rows))[:, :, None], *rotary
        )  # [B, T, 1, H]
        scores = query[:, :, 0] @ key[:, :, 0].transpose(1, 2) * width**-0.5  # [B, T, T]
        return scores.float().masked_fill(~visible, -torch.inf)

    def _save_inputs(self, layer: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training:
            rows, self._route, rotary = inputs[:3]
            self._attention_inputs[layer] = (module, rows, self._route, rotary)

    def _save_hidden(self, kind: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._hidden[kind] = output


def attention_mask(positions: Tensor, blocks: Tensor | None) -> Tensor:
    """Returns the causal attention mask `[1 or B, T, T]`, restricted to the position's own block in packed rows."""
    length = positions.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()[None]
    return causal if blocks is None else causal & (blocks[:, :, None] == blocks[:, None])


def has_earlier_turn(turn_speakers: Tensor) -> Tensor:
    """Returns, for `turn_speakers [B, T, 2]`, which positions are audio of a speaker with an earlier turn, `[B, T]`."""
    turn, speaker = turn_speakers.unbind(-1)
    late = torch.where(turn > 0, turn, torch.iinfo(turn.dtype).max)
    first = late.new_full((len(turn), int(speaker.max()) + 1), torch.iinfo(turn.dtype).max)  # [B, speakers]
    return turn > first.scatter_reduce(1, speaker, late, "amin").gather(1, speaker)


def project_head(projection: nn.Linear, head: int, width: int, rows: Tensor) -> Tensor:
    """Applies the part of a projection that belongs to one head: maps rows `[N, D]` to `[N, H]`.

    With four heads, that is a quarter of the work.
    """
    span = slice(head * width, (head + 1) * width)
    bias = None if projection.bias is None else projection.bias[span]
    return F.linear(rows, projection.weight[span], bias)
