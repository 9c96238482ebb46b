"""Training runs that are interrupted in the middle of a step."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim.optimizer import register_optimizer_step_pre_hook


class KilledError(BaseException):
    """Simulates a signal: no handler catches it."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Interrupts a training run before the update number `step` of an optimizer, counted from 1."""
    counts = Counter()

    def die(optimizer, *_):
        counts[optimizer] += 1
        if counts[optimizer] == step:
            raise KilledError

    handle = register_optimizer_step_pre_hook(die)
    try:
        yield
    finally:
        handle.remove()
