"""Helpers that kill processes and training runs at a certain point."""

import itertools
import signal
import subprocess
import sys

from higgs_audio.training import run

KILL_AT_RENAME = "import os, signal, sys\nos.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"


class KilledError(BaseException):
    """Simulates a signal: no handler catches it."""


def kill_at(monkeypatch, module, step):
    """Interrupts the training run of `module` before optimizer step `step`, counted from 1."""
    name = "apply_step" if hasattr(module, "apply_step") else "apply_gradients"
    calls, original = itertools.count(1), getattr(run, name)

    def apply_or_kill(*args):
        if next(calls) == step:
            raise KilledError
        return original(*args)

    monkeypatch.setattr(module, name, apply_or_kill)


def run_until_rename(code, *arguments):
    """Runs Python code in a new process and kills it when it renames the first file: all files are written, none is
    moved. `sys.argv[1:]` are the arguments."""
    command = [sys.executable, "-W", "ignore", "-c", KILL_AT_RENAME + code, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def hidden_names(folder):
    """Returns the names of the temporary files and folders in `folder`."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
