"""Whether modules are still what they were when their weights were packed."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn


class Watch:
    """Sees whether a part was replaced, wrapped or hooked, and whether a weight was moved, converted or written to.

    What is written through `weight.data` leaves no trace, and is not seen.

    Args:
        owner: of the modules.
        names: theirs.
    """

    def __init__(self, owner: nn.Module, names: Sequence[str]) -> None:
        roots = [owner.get_submodule(name) for name in names]
        homes = [owner.get_submodule(name.rpartition(".")[0])._modules for name in names]
        leaves = [name.rpartition(".")[2] for name in names]
        self._parts: list[tuple[Any, str, Any]] = list(zip(homes, leaves, roots, strict=True))
        for module in modules_of(roots):
            self._parts += [(module._modules, name, child) for name, child in module._modules.items()]
        weights = [
            (module._parameters, name, weight)
            for module in modules_of(roots)
            for name, weight in module._parameters.items()
            if weight is not None
        ]
        self._weights = [(home, name, weight, _state(weight)) for home, name, weight in weights]
        self._modules = list(modules_of(roots))

    @property
    def is_current(self) -> bool:
        """Whether nothing has changed."""
        return (
            all(home.get(name) is part for home, name, part in self._parts)
            and all(home.get(name) is weight and _state(weight) == state for home, name, weight, state in self._weights)
            and not any(map(is_hooked, self._modules))
        )


def modules_of(roots: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """They and all that are in them."""
    for root in roots:
        yield from root.modules()


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody is called before or behind it."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def _state(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
