"""What a forward pass of the language model returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers import Cache
from transformers.utils import ModelOutput


class _WithCache(ModelOutput):
    """The cache's older name, which transformers gave up in 5.24 and its users' programs have not."""

    cache: Cache | None

    @property
    def past_key_values(self) -> Cache | None:
        """`cache`."""
        return self.cache


@dataclass
class HiggsAudioModelOutput(_WithCache):
    """Of `HiggsAudioModel`: `last_hidden_state [B, T, D]` after the final norm, the cache, and every layer's input."""

    last_hidden_state: Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class HiggsAudioOutput(_WithCache):
    """Of `HiggsAudioForConditionalGeneration`; fields that were not asked for are None.

    loss: scalar, `text_loss + audio_loss`.
    text_loss: mean cross-entropy of the labelled text positions.
    audio_loss: mean over codebooks of `codebook_losses`, or the mean by the weights given.
    codebook_losses: `[K]`, mean cross-entropy of each codebook's labelled cells.
    logits: audio logits `[B, T, K, V + 2]`, of the column that follows each position.
    text_logits: `[B, T, vocabulary]`, of the token that follows each position.
    """

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    audio_loss: Tensor | None = None
    codebook_losses: Tensor | None = None
    logits: Tensor | None = None
    text_logits: Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
