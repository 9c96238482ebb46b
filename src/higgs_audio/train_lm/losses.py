"""The losses of a language-model training step, and the number of labels of each.

Losses are sums, not means: the labels of a step may be in several processes and micro-batches, and each loss is divided
by the number of its labels in all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.model.losses import codebook_losses, place_audio_labels, select_labelled, text_loss_sum
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.train_lm.collate import Batch
from higgs_audio.train_lm.guide import Guide, has_earlier_turn
from higgs_audio.train_lm.packing import sequence_ids


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms, named as in `LanguageModelLoss.forward`.

    Args:
        text: text cross-entropy.
        codebooks: cross-entropy of each codebook; the weights are normalized to a sum of 1.
        z: squared log of the audio head's normalizers.
        look: supervised attention to the text position.
        phone: phone classification.
        voice: supervised attention to the speaker's earlier turns.
        name: speaker classification.
    """

    text: float
    codebooks: tuple[float, ...]
    z: float = 0.0
    look: float = 0.0
    phone: float = 0.0
    voice: float = 0.0
    name: float = 0.0

    def of(self, name: str) -> float:
        """Returns the weight of a term of `LanguageModelLoss.forward`; 0 for terms that are only logged."""
        kind, _, number = name.partition("_")
        if kind == "codebook":
            return self.codebooks[int(number)] / sum(self.codebooks)
        return getattr(self, name) if name in ("text", "z", "look", "phone", "voice", "name") else 0.0


class LanguageModelLoss(nn.Module):
    """The model and, if the run has one, its guide in one module; `forward` computes the losses of a micro-batch."""

    def __init__(
        self, model: HiggsAudioForConditionalGeneration, guide: Guide | None = None, with_z: bool = False
    ) -> None:
        super().__init__()
        self.model, self.guide, self.with_z = model, guide, with_z

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the summed losses of `batch` by name, scalars; `counts` returns the number of labels of each."""
        inputs = dict(batch.inputs)
        labels, audio_labels = inputs.pop("labels"), inputs.pop("audio_labels")
        hidden = self.model.model(**inputs).last_hidden_state  # [B, T, D]
        audio = self.model.model.audio_mask(inputs["input_ids"])  # [B, T]
        placed = place_audio_labels(audio, audio_labels, inputs["audio_input_ids_mask"])  # [B, T, K]
        sums = self._audio_sums(hidden, placed)
        if self.model.text_lm_head is not None:
            sums["text"] = self._text_sum(hidden, labels)
        if self.guide is not None and self.training:
            sums |= self._guide_sums(batch, self.guide)
        return sums

    def _guide_sums(self, batch: Batch, guide: Guide) -> dict[str, Tensor]:
        """Returns the losses of supervised attention and of the phone and speaker classifiers."""
        positions = batch.inputs.get("position_ids")
        blocks = None if positions is None else sequence_ids(positions)
        sums = {"look": guide.attention_loss(batch.attention_targets, blocks)}
        sums["phone"], sums["phone_right"] = guide.phone_loss(batch.phone_labels)
        if guide.has_voice_heads:
            sums["voice"] = guide.voice_loss(batch.turn_speakers, blocks)
        if guide.name_head is not None:
            sums["name"], sums["name_right"] = guide.name_loss(batch.speaker_labels)
        return sums

    def _audio_sums(self, hidden: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the cross-entropy of each codebook, the cross-entropy of stream eos alone, and the z-loss."""
        selected, targets = select_labelled(hidden, labels)  # [M, D], [M, K]
        logits = self.model.audio_logits(selected).float()  # [M, K, V + 2]
        losses = codebook_losses(logits, targets)  # [M, K], 0 where unlabelled
        sums = {f"codebook_{k}": value for k, value in enumerate(losses.sum(0))}
        sums["end"] = losses.detach()[targets == self.model.config.audio_stream_eos_id].sum()
        if self.with_z:
            sums["z"] = logits[targets != IGNORE_INDEX].logsumexp(-1).pow(2).sum()
        return sums

    def _text_sum(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy of the text tokens."""
        head: Any = self.model.text_lm_head
        selected, targets = select_labelled(hidden, labels)  # [M, D], [M]
        return text_loss_sum(head(selected).float(), targets)


def counts(batch: Batch, eos: int) -> dict[str, int]:
    """Returns the number of labels of each sum of `LanguageModelLoss.forward`; `eos` is the id of stream eos."""
    labels = batch.inputs["audio_labels"]
    codebooks = (labels != IGNORE_INDEX).flatten(0, 1).sum(0).tolist()
    numbers = {f"codebook_{k}": count for k, count in enumerate(codebooks)}
    numbers |= {"end": int((labels == eos).sum()), "z": sum(codebooks)}
    numbers["text"] = int((batch.inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
    numbers |= dict.fromkeys(("name", "name_right"), int((batch.speaker_labels != IGNORE_INDEX).sum()))
    numbers["look"] = int((batch.attention_targets != IGNORE_INDEX).sum())
    numbers["voice"] = int(has_earlier_turn(batch.turn_speakers).sum())
    return numbers | dict.fromkeys(("phone", "phone_right"), int((batch.phone_labels != IGNORE_INDEX).sum()))


def weighted_loss(sums: Mapping[str, Tensor], numbers: Mapping[str, float], weights: LossWeights) -> Tensor:
    """Returns the loss: the weighted sum of each term's mean over its `numbers` of labels."""
    terms = [weights.of(name) * value / max(1, numbers[name]) for name, value in sums.items() if weights.of(name)]
    return torch.stack(terms).sum()
