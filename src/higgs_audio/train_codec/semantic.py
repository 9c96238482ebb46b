"""What the teacher hears: errors of its features, relative to how much they vary, so that their mean scores 1."""

import torch
from torch import Tensor
from torch.nn import functional as F

from higgs_audio.codec import HiggsAudioTokenizer


def relative_error(values: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of `[B, F, D]` over the variance of the target around its mean over the batch."""
    return F.mse_loss(values, target) / target.var(dim=(0, 1)).mean().clamp(min=1e-6)


def heard_error(tokenizer: HiggsAudioTokenizer, made: Tensor, target: Tensor, share: float) -> Tensor:
    """How differently the teacher hears decoded sound `[B, S]` from the features `[B, F, D]` of the recorded one.

    `share` of the batch is heard, at least one.
    """
    count = max(1, round(share * len(made)))
    return relative_error(tokenizer.semantic_features(made[:count, None]), target[:count])


@torch.no_grad()
def heard(tokenizer: HiggsAudioTokenizer, sound: Tensor, share: float) -> Tensor:
    """The teacher's features `[b, F, D]` of the share of sounds `[B, S]` that `heard_error` compares."""
    return tokenizer.semantic_features(sound[: max(1, round(share * len(sound))), None])
