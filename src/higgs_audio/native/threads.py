"""How many threads may work: a container may be given less time than it sees cores, and threads that wait for others
that do not run are slower than one.
"""

import math
from functools import lru_cache
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def num_threads() -> int:
    """As many as torch has, and no more than this container's time is enough for."""
    cores = cores_allowed()
    return torch.get_num_threads() if cores is None else max(1, min(torch.get_num_threads(), math.ceil(cores)))


@lru_cache(maxsize=1)
def cores_allowed() -> float | None:
    """Whose time this container may use, on Linux; None where nobody says."""
    for quota, period in _quotas():
        if quota > 0 and period > 0:
            return quota / period
    return None


def _quotas() -> list[tuple[int, int]]:
    """Time in so much time, of the second and the first kind of control groups; -1 without a limit."""
    found = []
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = [word for file in files for word in (CGROUP / file).read_text().split()]
            quota, period = (-1 if word == "max" else int(word) for word in words)
        except (OSError, ValueError):
            continue
        found.append((quota, period))
    return found
