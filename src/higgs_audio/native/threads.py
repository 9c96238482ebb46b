"""Threads: how many the C code uses, and one for torch beside it.

A container may have less CPU time than visible cores, so its quota limits the number. torch's own threads wait at a
barrier after every operation, beside other processes for long: twenty times as long as the work of one thread takes.
Around C code, torch therefore runs in the calling thread.
"""

import ctypes
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # the control group of this container, on Linux


_outside = threading.local()  # `count`: the number of torch's threads outside of `one_torch_thread`


def num_threads(cgroup: Path = CGROUP) -> int:
    """Returns the number of torch's threads, limited to the CPU quota of a control group, at least 1.

    Within `one_torch_thread`, it is the number outside of it.
    """
    count: int = getattr(_outside, "count", None) or torch.get_num_threads()
    cores = cpu_quota(cgroup)
    return count if cores is None else max(1, min(count, math.ceil(cores)))


@contextmanager
def one_torch_thread(enabled: bool = True) -> Iterator[None]:
    """Lets torch use one thread for the operations of this thread; other threads are not affected.

    `torch.set_num_threads` would also change the number for threads that start later.

    Args:
        enabled: whether to do so.
    """
    setters, count = _thread_setters(), torch.get_num_threads()
    if not enabled or count == 1 or not setters:
        yield
        return
    _outside.count = getattr(_outside, "count", None) or count
    before = [setter(1) for setter, _ in setters]
    try:
        yield
    finally:
        for (setter, returns_previous), previous in zip(setters, before, strict=True):
            setter(previous if returns_previous else count)
        _outside.count = None


@lru_cache(maxsize=1)
def _thread_setters() -> list[tuple[Callable[[int], int], bool]]:
    """Returns functions of OpenMP and, if torch has it, MKL that set the number of threads for the calling thread, and
    whether they return the previous number. Empty if torch has its own thread pool, as on Windows."""
    folder = Path(torch.__file__).parent / "lib"
    file = next(filter(Path.exists, (folder / "libtorch_cpu.so", folder / "libtorch_cpu.dylib")), None)
    library = None if file is None else ctypes.CDLL(str(file))
    names = (("omp_set_num_threads", False), ("MKL_Set_Num_Threads_Local", True))
    if not hasattr(library, names[0][0]):
        return []
    return [(getattr(library, name), returns) for name, returns in names if hasattr(library, name)]


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
