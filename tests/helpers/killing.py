"""Training runs that are interrupted in the middle of a step."""

import itertools

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
