"""Losses of semantic features, relative to the variance of the target: predicting its mean gives a loss of 1."""

import torch
from torch import Tensor
from torch.nn import functional as F

from higgs_audio.codec import HiggsAudioTokenizer


def relative_error(values: Tensor, target: Tensor) -> Tensor:
    """Returns the mean squared error of `[B, F, D]` divided by the target's variance around its mean over the batch."""
    return F.mse_loss(values, target) / target.var(dim=(0, 1)).mean().clamp(min=1e-6)


def consistency_loss(tokenizer: HiggsAudioTokenizer, decoded: Tensor, target: Tensor, share: float) -> Tensor:
    """Returns the error of the teacher's features of decoded waveforms `[B, S]`, relative to those of the recordings.

    Args:
        tokenizer: contains the teacher.
        decoded: `[B, S]`.
        target: the teacher's features of the recordings, `[B, F, D]`.
        share: share of the batch that is used, from the first waveform on; at least one waveform.
    """
    return relative_error(tokenizer.semantic_features(first_share(decoded, share)[:, None]), first_share(target, share))


@torch.no_grad()
def consistency_target(tokenizer: HiggsAudioTokenizer, recorded: Tensor, share: float) -> Tensor:
    """Returns the teacher's features `[b, F, D]` of the first `share` of the recordings `[B, S]`."""
    return tokenizer.semantic_features(first_share(recorded, share)[:, None])


def first_share(batch: Tensor, share: float) -> Tensor:
    """Returns the first `share` of a batch, at least one row."""
    return batch[: max(1, round(share * len(batch)))]
