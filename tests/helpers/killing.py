"""Helpers that kill processes and training runs at a certain point."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim.optimizer import register_optimizer_step_pre_hook

KILL_AT_RENAME = "import os, signal, sys\nos.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"


class KilledError(BaseException):
    """Simulates a signal: no handler catches it."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Interrupts a training run before the update number `step` of an optimizer, counted from 1."""
    counts = Counter()

    def kill(optimizer, *_):
        counts[optimizer] += 1
        if counts[optimizer] == step:
            raise KilledError

    handle = register_optimizer_step_pre_hook(kill)
    try:
        yield
    finally:
        handle.remove()


def run_until_rename(code, *arguments):
    """Runs Python code in a new process and kills it when it renames the first file: all files are written, none is
    moved. `sys.argv[1:]` are the arguments."""
    command = [sys.executable, "-W", "ignore", "-c", KILL_AT_RENAME + code, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def hidden_names(folder):
    """Returns the names of the temporary files and folders in `folder`."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
