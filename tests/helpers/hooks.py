"""What a module of a model does, seen or changed from outside with torch's hooks.

The engine calls the embeddings as modules, in C and in torch alike: `embed_audio_tokens` once for each decode step and
for each batch of prompts, `embed_tokens` for each batch of prompts alone. The streaming decoder calls `fc2` once for
each batch of chunks. None of them is part of what C replaces, so a hook changes no path.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def before_calls(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Calls a function with the inputs of a module before each call of the module; what it raises ends the call."""

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        function(*inputs)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def after_calls(module: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Calls a function with the output of each call of a module; what it returns, if anything, replaces the output."""
    handle = module.register_forward_hook(lambda _, inputs, output: function(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def counted_calls(module: nn.Module) -> Iterator[list[Any]]:
    """Yields a list that gets the first input of each call of a module."""
    calls: list[Any] = []
    with before_calls(module, lambda *inputs: calls.append(inputs[0])):
        yield calls


class TorchCalls(TorchFunctionMode):
    """A context that calls a function before each call of a function of torch in this thread.

    Args:
        before: gets the function of torch and its positional arguments; what it raises ends the call.
    """

    def __init__(self, before: Callable[..., None]) -> None:
        super().__init__()
        self.before = before

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.before(function, *args)
        return function(*args, **(kwargs or {}))
