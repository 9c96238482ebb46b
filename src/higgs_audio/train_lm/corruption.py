"""Corruption of input codes: some are replaced by random codes, so that a model does not only copy the last frame."""

from collections.abc import Sequence

import torch
from torch import Tensor

from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.generation.sampling import splitmix64

CORRUPTED_ROWS = 0.7  # share of the rows of a batch in which codes are replaced


def corrupt(columns: Tensor, labels: Tensor, share: float, keys: Sequence[int], codebook_size: int) -> Tensor:
    """Returns input columns `[B, F, K]` with a random `share` of the trained cells replaced by random codes.

    Without corruption the model copies the previous frame and never learns to use the text. Seven of ten rows are
    corrupted. The draw for a cell depends only on its row's key and its position in the row, not on the other rows of
    the batch.

    Args:
        columns: `[B, F, K]`.
        labels: `[B, F, K]`; cells with IGNORE_INDEX are not corrupted.
        share: share of the trained cells that are replaced in a corrupted row.
        keys: B integers that seed the draws of each row.
        codebook_size: V.
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
