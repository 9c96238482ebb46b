"""Corruption of input codes: random codes replace some, so that a model does not only copy the previous frame."""

from collections.abc import Sequence

import torch
from torch import Tensor

from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.generation.sampling import splitmix64

CORRUPTED_ROWS = 0.7  # share of the rows of a batch in which codes are replaced


def corrupt(columns: Tensor, labels: Tensor, share: float, keys: Sequence[int], codebook_size: int) -> Tensor:
    """Returns input columns `[B, F, K]` with a random `share` of the trained cells replaced by random codes.

    Without corruption the model copies the previous frame and never learns to read the text. Seven rows of ten are
    corrupted. The draw for a cell depends only on its row's key and its position in the row, so the other rows of the
    batch do not change it.
    """
    rows = splitmix64(0, torch.tensor(keys, device=columns.device))  # [B]
    cells = torch.arange(columns[0].numel(), device=columns.device).view(columns.shape[1:])  # [F, K]
    drawn = splitmix64(0, rows[:, None, None] + cells)
    replaced = (to_uniform(rows) < CORRUPTED_ROWS)[:, None, None] & (to_uniform(drawn) < share)
    trained = (labels != IGNORE_INDEX) & (columns < codebook_size)
    return torch.where(trained & replaced, (drawn >> 32) % codebook_size, columns)


def to_uniform(bits: Tensor) -> Tensor:
    """Maps the lower 24 bits of random int64 to numbers in [0, 1)."""
    return (bits & 0xFF_FFFF) / 2**24
