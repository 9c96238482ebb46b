"""Losses of semantic features, relative to the variance of the target: predicting its mean scores 1."""

import torch
from torch import Tensor
from torch.nn import functional as F

from higgs_audio.codec import HiggsAudioTokenizer


def relative_error(values: Tensor, target: Tensor) -> Tensor:
    """Returns the mean squared error of `[B, F, D]` over the variance of the target around its mean over the batch."""
    return F.mse_loss(values, target) / target.var(dim=(0, 1)).mean().clamp(min=1e-6)


def consistency_loss(tokenizer: HiggsAudioTokenizer, decoded: Tensor, target: Tensor, share: float) -> Tensor:
    """Compares the teacher's features of decoded waveforms `[B, S]` with those of the recordings, `target [B, F, D]`.

    Uses the first `share` of the batch, at least one waveform.
    """
    return relative_error(tokenizer.semantic_features(first_share(decoded, share)[:, None]), first_share(target, share))


@torch.no_grad()
def consistency_target(tokenizer: HiggsAudioTokenizer, recorded: Tensor, share: float) -> Tensor:
    """Returns the teacher's features `[b, F, D]` of the first `share` of the recordings `[B, S]`."""
    return tokenizer.semantic_features(first_share(recorded, share)[:, None])


def first_share(batch: Tensor, share: float) -> Tensor:
    """Returns the first `share` of a batch, at least one row."""
    return batch[: max(1, round(share * len(batch)))]
