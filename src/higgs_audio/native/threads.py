"""The number of threads of the C code. A container may have less CPU time than visible cores, and threads that wait at
a barrier for unscheduled threads are slower than a single thread.
"""

import math
from functools import lru_cache
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # the control group of this container, on Linux


def num_threads(cgroup: Path = CGROUP) -> int:
    """Returns the number of torch's threads, limited to the CPU quota of a control group, at least 1."""
    cores = cpu_quota(cgroup)
    return torch.get_num_threads() if cores is None else max(1, min(torch.get_num_threads(), math.ceil(cores)))


@lru_cache(maxsize=1)
def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """Returns the CPU quota of a control group in cores, read once; None without a limit."""
    for quota, period in _quotas(cgroup):
        if quota > 0 and period > 0:
            return quota / period
    return None


def _quotas(cgroup: Path) -> list[tuple[int, int]]:
    """Returns (quota, period) of control groups v2 and v1, in microseconds; a quota of -1 means no limit."""
    found = []
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = [word for file in files for word in (cgroup / file).read_text().split()]
            quota, period = (-1 if word == "max" else int(word) for word in words)
        except (OSError, ValueError):
            continue
        found.append((quota, period))
    return found
