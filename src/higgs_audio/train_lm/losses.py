"""What a step of language-model training computes: sums of losses, and how many labels each is of.

Losses are sums, not means: a step's labels may lie in several processes and micro-batches, and each loss is divided by
the number of its labels in all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.model.model import IGNORED, HiggsAudioForConditionalGeneration
from higgs_audio.train_lm.collate import Batch
from higgs_audio.train_lm.guide import Guide, heard_before
from higgs_audio.train_lm.packing import blocks


@dataclass(frozen=True)
class LossWeights:
    """Of the terms of the loss: text, each codebook (their mean is the audio loss), z-loss, and the guide's four."""

    text: float
    codebooks: tuple[float, ...]
    z: float = 0.0
    look: float = 0.0
    phone: float = 0.0
    voice: float = 0.0
    name: float = 0.0

    def of(self, name: str) -> float:
        """The weight of a term of `LanguageModelLoss.forward`; 0 of those that are only logged."""
        kind, _, number = name.partition("_")
        if kind == "codebook":
            return self.codebooks[int(number)] / sum(self.codebooks)
        return getattr(self, name) if name in ("text", "z", "look", "phone", "voice", "name") else 0.0


class LanguageModelLoss(nn.Module):
    """The model and, where clips are aligned, its guide; one forward pass of it is one micro-batch."""

    def __init__(
        self, model: HiggsAudioForConditionalGeneration, guide: Guide | None = None, with_z: bool = False
    ) -> None:
        super().__init__()
        self.model, self.guide, self.with_z = model, guide, with_z

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of the losses of `batch` by name, scalars; those of `counts`."""
        inputs = dict(batch.inputs)
        labels, audio_labels = inputs.pop("labels"), inputs.pop("audio_labels")
        hidden = self.model.model(**inputs).last_hidden_state  # [B, T, D]
        audio = self.model.model.audio_mask(inputs["input_ids"])  # [B, T]
        placed = audio_labels.new_full((*audio.shape, audio_labels.shape[-1]), IGNORED)
        placed[audio] = audio_labels[inputs["audio_input_ids_mask"].bool()]  # [B, T, K]
        sums = self._audio_sums(hidden, placed)
        if self.model.text_lm_head is not None:
            sums["text"] = self._text_sum(hidden, labels)
        if self.guide is not None and self.training:
            sums |= self._guide_sums(batch, self.guide)
        return sums

    def _guide_sums(self, batch: Batch, guide: Guide) -> dict[str, Tensor]:
        """Where the guided heads look, which phone they name, whom they listen to, and whom they name."""
        positions = batch.inputs.get("position_ids")
        borders = None if positions is None else blocks(positions)
        sums = {"look": guide.attention_loss(batch.look, borders)}
        sums["phone"], sums["phone_right"] = guide.phone_loss(batch.phones)
        if guide.hears_voices:
            sums["voice"] = guide.voice_loss(batch.said, borders)
        if guide.name_head is not None:
            sums["name"], sums["name_right"] = guide.name_loss(batch.who)
        return sums

    def _audio_sums(self, hidden: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of each codebook, of ends of stream alone, and the squared log of the normalizers."""
        wanted = labels[:, 1:]
        rows = (wanted != IGNORED).any(-1).flatten().nonzero().squeeze(1)  # [M]
        read, targets = hidden[:, :-1].flatten(0, 1).index_select(0, rows), wanted.flatten(0, 1)[rows]  # [M, D], [M, K]
        logits = self.model.audio_logits(read).float()  # [M, K, V + 2]
        flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        losses = flat.view(targets.shape)  # [M, K], 0 where unlabelled
        sums = {f"codebook_{k}": value for k, value in enumerate(losses.sum(0))}
        sums["end"] = losses.detach()[targets == self.model.config.audio_stream_eos_id].sum()
        if self.with_z:
            sums["z"] = logits[targets != IGNORED].logsumexp(-1).pow(2).sum()
        return sums

    def _text_sum(self, hidden: Tensor, labels: Tensor) -> Tensor:
        wanted = labels[:, 1:]
        rows = (wanted != IGNORED).flatten().nonzero().squeeze(1)  # [M]
        head: Any = self.model.text_lm_head
        logits = head(hidden[:, :-1].flatten(0, 1).index_select(0, rows)).float()
        return F.cross_entropy(logits, wanted.flatten()[rows], reduction="sum")


def counts(batch: Batch, end: int) -> dict[str, int]:
    """How many labels each sum of `LanguageModelLoss.forward` is of; `end` is the id of the stream's end."""
    labels = batch.inputs["audio_labels"]
    books = (labels != IGNORED).flatten(0, 1).sum(0).tolist()
    numbers = {f"codebook_{k}": count for k, count in enumerate(books)}
    numbers |= {"end": int((labels == end).sum()), "z": sum(books)}
    numbers["text"] = int((batch.inputs["labels"][:, 1:] != IGNORED).sum())
    numbers |= dict.fromkeys(("name", "name_right"), int((batch.who != IGNORED).sum()))
    numbers |= {"look": int((batch.look != IGNORED).sum()), "voice": int(heard_before(batch.said).sum())}
    return numbers | dict.fromkeys(("phone", "phone_right"), int((batch.phones != IGNORED).sum()))


def weighted(sums: Mapping[str, Tensor], numbers: Mapping[str, float], weights: LossWeights) -> Tensor:
    """The loss: each term's mean over its `numbers` of labels, weighted."""
    terms = [weights.of(name) * value / max(1, numbers[name]) for name, value in sums.items() if weights.of(name)]
    return torch.stack(terms).sum()
