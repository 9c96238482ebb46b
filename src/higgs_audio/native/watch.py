"""Whether modules are still what they were when their weights were packed."""

from collections.abc import Iterable, Sequence
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
        self._modules = [module for root in roots for module in root.modules()]
        self._parts: list[tuple[Any, str, Any]] = [
            (home, name.rpartition(".")[2], root) for home, name, root in zip(homes, names, roots, strict=True)
        ]
        self._weights: list[tuple[Any, str, Tensor, tuple[int, int]]] = []
        for module in self._modules:
            self._parts += [(module._modules, name, child) for name, child in module._modules.items()]
            weights = [(name, weight) for name, weight in module._parameters.items() if weight is not None]
            self._weights += [(module._parameters, name, weight, _state(weight)) for name, weight in weights]

    @property
    def is_current(self) -> bool:
        """Whether nothing has changed."""
        return (
            all(home.get(name) is part for home, name, part in self._parts)
            and all(home.get(name) is weight and _state(weight) == state for home, name, weight, state in self._weights)
            and not are_hooked(self._modules)
        )


def are_hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody is called before or behind any of them."""
    return any(module._forward_pre_hooks or module._forward_hooks for module in modules)


def _state(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
