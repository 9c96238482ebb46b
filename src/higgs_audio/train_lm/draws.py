"""Random choices for composing a conversation, all drawn from one torch generator."""

from collections.abc import Sequence

import torch


class Draws:
    """Random choices; the generator and the order of the calls determine every result."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self) -> float:
        """Returns a number in [0, 1)."""
        return float(torch.rand((), generator=self._generator))

    def chance(self, probability: float) -> bool:
        """Returns True with this probability; draws nothing if it is 0."""
        return probability > 0 and self.uniform() < probability

    def weighted_index(self, weights: Sequence[float]) -> int:
        """Returns an index, drawn in proportion to `weights`."""
        return int(torch.multinomial(torch.tensor(weights), 1, generator=self._generator))

    def integers(self, high: int, count: int) -> list[int]:
        """Returns `count` integers below `high`, repetitions included."""
        return torch.randint(high, (count,), generator=self._generator).tolist()

    def permutation(self, count: int) -> list[int]:
        """Returns the integers below `count` in random order."""
        return torch.randperm(count, generator=self._generator).tolist()

    def switched(self, index: int, previous: int | None, count: int, probability: float) -> int:
        """Returns `index`; if it equals `previous`, replaces it with this probability by another index below `count`.

        All other indices are equally likely.
        """
        if index != previous or count < 2 or not self.chance(probability):
            return index
        return (index + 1 + self.permutation(count - 1)[0]) % count
