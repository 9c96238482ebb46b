"""Training runs that are interrupted in the middle of a step, and the files that killed processes leave."""

import itertools
import subprocess
import sys

from higgs_audio.files import temporary_path
from higgs_audio.training import run


class KilledError(BaseException):
    """Simulates a signal: no handler catches it."""


def kill_at(monkeypatch, module, step):
    """Interrupts the training run of `module` before optimizer step `step`, counted from 1."""
    name = "apply_step" if hasattr(module, "apply_step") else "apply_gradients"
    calls, original = itertools.count(1), getattr(run, name)

    def apply_or_die(*args):
        if next(calls) == step:
            raise KilledError
        return original(*args)

    monkeypatch.setattr(module, name, apply_or_die)


def killed_writer(folder, name):
    """Path of the temporary file that a process left in `folder` which was killed while it wrote the file `name`."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    *start, _, token, end = temporary_path(folder, name).name.split(".")
    return folder / ".".join([*start, str(ended.pid), token, end])
