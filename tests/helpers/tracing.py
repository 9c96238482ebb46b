"""Records the calls between functions of the package while a block runs in this thread."""

import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import higgs_audio


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a function of the package.

    Attributes:
        code: code of the function.
        module: its module below the package, such as "speech.tts".
        caller: module of the nearest function of the package on the call stack; "" if there is none. Frames of other
            packages between the two, such as those of torch, do not count.
        argument: the first argument other than `self` and `cls`; None if there is none.
    """

    code: CodeType
    module: str
    caller: str
    argument: Any

    @property
    def is_generator(self) -> bool:
        """Whether the function is a generator or a generator expression."""
        return bool(self.code.co_flags & inspect.CO_GENERATOR)

    @property
    def name(self) -> str:
        """Module and function."""
        return f"{self.module}.{self.code.co_name}"


class Calls(list[Call]):
    """The calls of a block, in order. A generator function counts once for each time it is resumed."""

    def count_of(self, function: Callable[..., Any]) -> int:
        """Returns the number of calls of a function."""
        return len(self.indices_of(function))

    def indices_of(self, function: Callable[..., Any]) -> list[int]:
        """Returns the positions of the calls of a function."""
        code = inspect.unwrap(function).__code__
        return [index for index, call in enumerate(self) if call.code is code]

    def indices_in(self, *modules: str) -> list[int]:
        """Returns the positions of the calls of functions of these modules."""
        return [index for index, call in enumerate(self) if call.module in modules]


@contextmanager
def record_calls() -> Iterator[Calls]:
    """Yields a list to which all calls of functions of the package in this thread are added.

    Import all modules that the block needs before: code of modules and classes is recorded like functions. The garbage
    collector, which closes abandoned generators during any function, is disabled until the block ends.
    """
    calls = Calls()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (module := _module(frame)):
            caller = frame.f_back
            while caller is not None and not _module(caller):
                caller = caller.f_back
            calls.append(Call(frame.f_code, module, _module(caller) if caller else "", _first_argument(frame)))

    before, is_collecting = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(before)
        if is_collecting:
            gc.enable()


_PACKAGE = str(Path(higgs_audio.__file__).parent)
_MODULES: dict[str, str] = {}  # file -> module, "" for files of other packages


def _module(frame: FrameType) -> str:
    file = frame.f_code.co_filename
    if file not in _MODULES:
        is_inside = file.startswith(_PACKAGE + os.sep)
        _MODULES[file] = file[len(_PACKAGE) + 1 : -len(".py")].replace(os.sep, ".") if is_inside else ""
    return _MODULES[file]


def _first_argument(frame: FrameType) -> Any:
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    first = next((name for name in names if name not in ("self", "cls")), None)
    return None if first is None else frame.f_locals.get(first)
