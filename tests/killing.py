"""Runs that die in the middle of a step."""

import itertools

from higgs_audio.training import run


class KilledError(BaseException):
    """Stands for the signal: nothing catches it."""


def kill_at(monkeypatch, module, step):
    """Lets the run of `module` die before the optimizer's step number `step`, counted from 1."""
    name = "apply_step" if hasattr(module, "apply_step") else "apply_gradients"
    calls, original = itertools.count(1), getattr(run, name)

    def apply_or_die(*args):
        if next(calls) == step:
            raise KilledError
        return original(*args)

    monkeypatch.setattr(module, name, apply_or_die)
