"""Random codes in place of some, so that a model does not only copy the frame before."""

from collections.abc import Sequence

import torch
from torch import Tensor

from higgs_audio.model.model import IGNORED

TOUCHED_ROWS = 0.7  # of a batch, where some codes are replaced


def corrupt(columns: Tensor, labels: Tensor, share: float, keys: Sequence[int], codebook_size: int) -> Tensor:
    """Input columns `[B, F, K]` with a random `share` of the trained cells replaced by random codes.

    Without it the model copies the frame before and never learns to read. Seven rows of ten are touched. What is drawn
    for a cell depends on its row's key and its place alone: it does not matter with which others a row is in a batch.
    """
    rows = scrambled(torch.tensor(keys, device=columns.device))  # [B]
    cells = torch.arange(columns[0].numel(), device=columns.device).view(columns.shape[1:])  # [F, K]
    drawn = scrambled(rows[:, None, None] + cells)
    hit = (uniform(rows) < TOUCHED_ROWS)[:, None, None] & (uniform(drawn) < share)
    trained = (labels != IGNORED) & (columns < codebook_size)
    return torch.where(trained & hit, (drawn >> 32) % codebook_size, columns)


def scrambled(numbers: Tensor) -> Tensor:
    """Each int64 as a random one: splitmix64, which needs no state."""
    x = numbers * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3_FFFF_FFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1F_FFFF_FFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1_FFFF_FFFF)


def uniform(scrambled: Tensor) -> Tensor:
    """Numbers in [0, 1) of the lower 24 bits."""
    return (scrambled & 0xFF_FFFF) / 2**24
