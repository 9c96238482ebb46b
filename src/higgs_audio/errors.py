"""Every error this package raises on purpose.

    HiggsAudioError
    ├── InputError (ValueError)      something the caller gave
    │   ├── TextError                empty, nothing speakable, a special token typed inside it
    │   ├── AudioError               missing, unreadable, empty, too short, too long, not finite
    │   ├── CodesError               wrong shape, type or range
    │   ├── VoiceError               no such voice, or a reference without its transcript
    │   ├── PromptError              a conversation that cannot be rendered
    │   └── OptionError              an unknown keyword, or a value outside its range
    ├── CheckpointError (ValueError) no such model, or files that do not fit the architecture
    ├── RecipeError (ValueError)     a training recipe with unknown keys or impossible values
    ├── QueueFullError               an engine that takes no more requests now
    ├── EngineError                  something below this package failed while a request ran, such as memory
    ├── NumericsError (ArithmeticError)  a NaN or an infinity where a number was needed
    └── MissingExtraError (ImportError)  an optional dependency that is not installed

A message says what was given, what is allowed and what to do.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class HiggsAudioError(Exception):
    """Base of all errors of this package."""


class InputError(HiggsAudioError, ValueError):
    """Something the caller gave cannot be used."""


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
    """So many requests wait already that no more are taken; ask again later."""


class EngineError(HiggsAudioError):
    """Something below this package failed while a request ran, such as an allocation; its cause is the error."""


class NumericsError(HiggsAudioError, ArithmeticError):
    """A NaN or an infinity where a number was needed: in logits, in a loss or in its gradient."""


class MissingExtraError(HiggsAudioError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is needed for this and is not installed: pip install 'higgs-audio[{extra}]'")


def typed(error: BaseException) -> HiggsAudioError:
    """The error, where it is of this package; otherwise a new `EngineError` that it is the cause of."""
    if isinstance(error, HiggsAudioError):
        return error
    own = EngineError(f"the engine failed with {type(error).__name__}: {error}; try again, with less at once")
    own.__cause__ = error
    return own


def nearest(given: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the closest allowed name, then all of them.

    >>> nearest("avaa", ["ava", "joe"])
    "did you mean 'ava'? allowed: ava, joe"
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names) or 'none'}"


def first_line(error: BaseException) -> str:
    """What an exception says, without the advice and traces that follow its first line; its name where it is mute.

    >>> first_line(KeyError()), first_line(ValueError("no.\nTry this."))
    ('KeyError', 'no.')
    """
    return str(error).strip().split("\n")[0] or type(error).__name__


@contextmanager
def checkpoint_errors(complaint: str) -> Iterator[None]:
    """Whatever goes wrong inside is about a file: a field of another type or size fails in a dozen ways.

    Raises:
        CheckpointError: begins with the complaint. Errors of this package pass as they are.
    """
    try:
        yield
    except HiggsAudioError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{complaint}: {reason:.300}") from error


def check_count(name: str, value: object, least: int, most: int | None = None, otherwise: str = "") -> None:
    """Raises OptionError unless `value` is a whole number from `least` to `most`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    valid = whole and least <= value and (most is None or value <= most)  # type: ignore[operator]
    span = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    check_value(name, value, valid, f"{span}, or {otherwise}" if otherwise else span)


def check_value(name: str, value: object, valid: bool, allowed: str) -> None:
    if not valid:
        raise OptionError(f"{name}={value!r}; allowed: {allowed}")


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
