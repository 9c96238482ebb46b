"""The exceptions of this package, and checks of argument values.

    HiggsAudioError
    ├── InputError (ValueError)      an argument cannot be used
    │   ├── TextError                empty, nothing speakable, or a special token in the text
    │   ├── AudioError               missing, unreadable, empty, too short, too long, or not finite
    │   ├── CodesError               wrong shape, type or range
    │   ├── VoiceError               unknown voice, or a reference without its transcript
    │   ├── PromptError              a conversation that cannot be rendered
    │   └── OptionError              an unknown keyword, or a value outside its range
    ├── CheckpointError (ValueError) unknown model, or files that do not fit the architecture
    ├── RecipeError (ValueError)     a training recipe with unknown keys or impossible values
    ├── QueueFullError               the engine accepts no more requests now
    ├── EngineError                  a failure in torch or the system, such as out of memory
    ├── NumericsError (ArithmeticError)  a NaN or an infinity in logits, losses or gradients
    └── MissingExtraError (ImportError)  an optional dependency that is not installed

A message states the given value, the allowed values and the remedy.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_MAX_LISTED = 20  # names in a message; files of the wrong layout would list 397 weights

__all__ = [
    "AudioError",
    "CheckpointError",
    "CodesError",
    "EngineError",
    "HiggsAudioError",
    "InputError",
    "MissingExtraError",
    "NumericsError",
    "OptionError",
    "PromptError",
    "QueueFullError",
    "RecipeError",
    "TextError",
    "VoiceError",
    "check_count",
    "check_value",
    "checkpoint_errors",
    "first_line",
    "is_number",
    "join_names",
    "nearest",
    "wrap_error",
]


class HiggsAudioError(Exception):
    """Base class of all errors of this package."""


class InputError(HiggsAudioError, ValueError):
    """An argument cannot be used."""


class TextError(InputError):
    """The text is empty, holds nothing speakable, or contains a special token."""


class AudioError(InputError):
    """The audio is missing, unreadable, empty, too short, too long or not finite."""


class CodesError(InputError):
    """The codes have the wrong shape, type or range."""


class VoiceError(InputError):
    """The voice does not exist, or its reference is incomplete."""


class PromptError(InputError):
    """The conversation cannot be rendered."""


class OptionError(InputError):
    """An option does not exist, or its value is outside its range."""


class CheckpointError(HiggsAudioError, ValueError):
    """The checkpoint does not exist, or does not fit the architecture."""


class RecipeError(HiggsAudioError, ValueError):
    """The recipe has unknown keys or impossible values."""


class QueueFullError(HiggsAudioError):
    """The queue is full: the engine accepts no more requests now. Try again later."""


class EngineError(HiggsAudioError):
    """torch or the system failed while a request ran, out of memory for example; `__cause__` is the original error."""


class NumericsError(HiggsAudioError, ArithmeticError):
    """Logits, a loss or its gradient contain a NaN or an infinity."""


class MissingExtraError(HiggsAudioError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is needed for this and is not installed: pip install 'higgs-audio[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the message, for other processes; unpickling skips `__init__`, whose arguments subclasses change."""
        return MissingExtraError.__new__, (type(self), *self.args), {"msg": self.msg}


def wrap_error(error: BaseException) -> HiggsAudioError:
    """Returns an error of this package unchanged; wraps any other in an `EngineError`, as its `__cause__`."""
    if isinstance(error, HiggsAudioError):
        return error
    wrapped = EngineError(f"the engine failed with {type(error).__name__}: {error}; try again with fewer requests")
    wrapped.__cause__ = error
    return wrapped


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Returns the end of an error message: the closest allowed name, then all allowed names.

    >>> nearest("avaa", ["ava", "joe"])
    "did you mean 'ava'? allowed: ava, joe"
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names) or 'none'}"


def join_names(names: Iterable[str]) -> str:
    """Returns the names for a message, in order: the first 20, and how many more there are.

    >>> join_names(["norm", "bias"])
    'bias, norm'
    """
    ordered = sorted(names)
    more = f" and {len(ordered) - _MAX_LISTED} more" if len(ordered) > _MAX_LISTED else ""
    return ", ".join(ordered[:_MAX_LISTED]) + more


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, without advice and traces after it; its type if it is empty.

    >>> first_line(KeyError()), first_line(ValueError("no.\\nTry this."))
    ('KeyError', 'no.')
    """
    return str(error).strip().split("\n")[0] or type(error).__name__


@contextmanager
def checkpoint_errors(prefix: str) -> Iterator[None]:
    """Converts exceptions of the block to `CheckpointError`: a config field of a wrong type fails in many ways.

    Raises:
        CheckpointError: any exception but an error of this package, which is raised unchanged; the message begins
            with `prefix`.
    """
    try:
        yield
    except HiggsAudioError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{prefix}: {reason:.300}") from error


def check_count(name: str, value: object, least: int, most: int | None = None, otherwise: str = "") -> None:
    """Raises OptionError unless `value` is a whole number from `least` to `most`; the message adds `otherwise`."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    valid = is_whole and least <= value and (most is None or value <= most)  # type: ignore[operator]
    span = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    check_value(name, value, valid, f"{span}, or {otherwise}" if otherwise else span)


def check_value(name: str, value: object, valid: bool, allowed: str) -> None:
    """Raises OptionError unless `valid`; the message names the value and what is `allowed`."""
    if not valid:
        raise OptionError(f"{name}={value!r}; allowed: {allowed}")


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float; a bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)
