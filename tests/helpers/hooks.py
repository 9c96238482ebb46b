"""Observes or changes calls of the modules of a model with torch's hooks.

The engine calls the embeddings as modules, both in C and in torch: `embed_audio_tokens` once for each decode step and
for each batch of prompts, `embed_tokens` only for each batch of prompts. The streaming decoder calls `fc2` once for
each batch of chunks. C replaces none of these modules, so a hook does not change which implementation runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def before_calls(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Calls a function with the inputs of a module before each call of the module; its exceptions end the call."""

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        function(*inputs)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def after_calls(module: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Calls a function with the output of each call of a module; a return value other than None replaces the output."""
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
    """A context that calls a function before each call of a torch function in this thread.

    Args:
        before: is passed the torch function and its positional arguments; its exceptions end the call.
    """

    def __init__(self, before: Callable[..., None]) -> None:
        super().__init__()
        self.before = before

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.before(function, *args)
        return function(*args, **(kwargs or {}))
