"""The outputs of a forward pass of the language model."""

from dataclasses import dataclass

from torch import Tensor
from transformers import Cache
from transformers.utils import ModelOutput


class _CachedOutput(ModelOutput):
    """Adds `past_key_values`, which transformers 5.24 renamed to `cache` and programs still use."""

    cache: Cache | None

    @property
    def past_key_values(self) -> Cache | None:
        """The same as `cache`."""
        return self.cache


@dataclass
class HiggsAudioModelOutput(_CachedOutput):
    """The output of `HiggsAudioModel`.

    last_hidden_state: `[B, T, D]`, after the final norm.
    cache: keys and values of all positions so far.
    hidden_states: the input of each layer and the last hidden state, each `[B, T, D]`.
    """

    last_hidden_state: Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class HiggsAudioOutput(_CachedOutput):
    """The output of `HiggsAudioForConditionalGeneration`; fields that were not requested are None.

    loss: scalar, `text_loss + audio_loss`.
    text_loss: mean cross-entropy of the labeled text positions.
    audio_loss: mean of `codebook_losses`, weighted by `codebook_weights` if given.
    codebook_losses: `[K]`, mean cross-entropy of each codebook's labeled cells.
    logits: audio logits `[B, T, K, V + 2]`, for the column that follows each position.
    text_logits: `[B, T, V_text]`, for the token that follows each position.
    cache, hidden_states: as in `HiggsAudioModelOutput`.
    """

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    audio_loss: Tensor | None = None
    codebook_losses: Tensor | None = None
    logits: Tensor | None = None
    text_logits: Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
