"""Detects whether modules have changed since their weights were packed."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn


class ModuleSnapshot:
    """Records modules and weights, and detects whether modules were replaced, wrapped or hooked, or weights were moved,
    converted or modified.

    Writes through `weight.data` are not detected.

    Args:
        owner: the module that contains them.
        names: dotted names of the submodules to record.
    """

    def __init__(self, owner: nn.Module, names: Sequence[str]) -> None:
        roots = [owner.get_submodule(name) for name in names]
        parents = [owner.get_submodule(name.rpartition(".")[0])._modules for name in names]
        self._modules = [module for root in roots for module in root.modules()]
        self._children: list[tuple[dict[str, nn.Module | None], str, nn.Module | None]] = [
            (parent, name.rpartition(".")[2], root) for parent, name, root in zip(parents, names, roots, strict=True)
        ]
        self._weights: list[tuple[dict[str, nn.Parameter | None], str, Tensor, tuple[int, int]]] = []
        for module in self._modules:
            self._children += [(module._modules, name, child) for name, child in module._modules.items()]
            weights = [(name, weight) for name, weight in module._parameters.items() if weight is not None]
            self._weights += [(module._parameters, name, weight, _version(weight)) for name, weight in weights]

    @property
    def is_current(self) -> bool:
        """Whether nothing has changed."""
        return (
            all(children.get(name) is child for children, name, child in self._children)
            and all(
                weights.get(name) is weight and _version(weight) == version
                for weights, name, weight, version in self._weights
            )
            and not have_hooks(self._modules)
        )


def have_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether any of the modules has a forward hook or a forward pre-hook."""
    return any(module._forward_pre_hooks or module._forward_hooks for module in modules)


def _version(weight: Tensor) -> tuple[int, int]:
    """Returns a value that changes when the weight is moved or modified."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
