"""Functions that several benchmarks share: a clock, and a summary of repeated measurements."""

import statistics
import time
from collections.abc import Sequence

import torch


def clock() -> float:
    """Returns the time in seconds, after the GPU, if one is in use, has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def median_and_range(values: Sequence[float]) -> list[float]:
    """Returns [median, minimum, maximum]."""
    return [statistics.median(values), min(values), max(values)]
