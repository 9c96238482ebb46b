"""What several benchmarks share: a clock and summaries of repeated measurements."""

import statistics
import time
from collections.abc import Sequence

import torch


def clock() -> float:
    """Seconds, after all work on the GPU, if one is in use, is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def spread(values: Sequence[float]) -> list[float]:
    """[median, minimum, maximum]."""
    return [statistics.median(values), min(values), max(values)]
