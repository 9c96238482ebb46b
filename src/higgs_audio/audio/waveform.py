"""Sound as a `Waveform`: made from arrays, read from files or bytes, resampled, encoded and written.

Everything inside the package is mono float32 in [-1, 1]; other layouts, types and rates are turned into that here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import ArrayLike, NDArray

from higgs_audio.errors import AudioError, OptionError

MAX_CHANNELS = 32
MIN_RATE, MAX_RATE = 1_000, 192_000  # libvorbis crashes the process above 200 kHz
# A float file may go a little over full scale; sixteen times over, its samples are integers that nobody divided.
MAX_PEAK = 16.0


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono sound. Compared by identity, as its samples are an array.

    Args:
        samples: [S] float32, in [-1, 1]; may be empty, as a chunk of a stream may. `from_array` makes them of anything
            else.
        sample_rate: samples a second.

    Raises:
        AudioError: samples of another shape or type.
        OptionError: a sample rate outside 1000 to 192000.
    """

    samples: NDArray[np.float32]
    sample_rate: int

    def __post_init__(self) -> None:
        given = self.samples
        if not isinstance(given, np.ndarray) or given.ndim != 1 or given.dtype != np.float32:
            raise AudioError(f"samples are {_describe(given)}; give float32 [S], or use from_array()")
        object.__setattr__(self, "sample_rate", check_rate(self.sample_rate))

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / self.sample_rate


# Arrays -> Waveform.


def from_array(samples: ArrayLike, sample_rate: int) -> Waveform:
    """Samples of any usual type and layout -> Waveform; channels are averaged.

    Args:
        samples: [S], [S, C] or [C, S], the shorter side being the channels; floats in [-1, 1], or int16, int32 or
            uint8 over their whole range.
        sample_rate: samples a second.

    Raises:
        AudioError: empty, not finite, of another type or shape, or floats on an integer's scale.
        OptionError: a sample rate outside 1000 to 192000.
    """
    return named_from_array(samples, sample_rate, "the array")


def named_from_array(samples: ArrayLike, sample_rate: int, name: str) -> Waveform:
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors that numpy cannot see
        raise AudioError(f"{name} cannot be read as an array: {error}. Give numbers, [S], [S, C] or [C, S]") from error
    if array.ndim not in (1, 2):
        raise AudioError(f"{name} is {_describe(array)}; give [S], [S, C] or [C, S]")
    if array.size == 0:
        raise AudioError(f"{name} has no samples; give some sound")
    mono = _average_channels(_scale(array, name), name)  # [S]
    if not np.isfinite(mono).all():
        raise AudioError(f"{name} has samples that are NaN or infinite; repair the sound, or set them to 0")
    if (peak := float(np.abs(mono).max())) > MAX_PEAK:
        raise AudioError(f"{name} has samples up to {peak:g}; floats go from -1 to 1: divide them, or give integers")
    return Waveform(np.ascontiguousarray(mono, dtype=np.float32), sample_rate)


def _scale(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Integers over their whole range -> [-1, 1); floats as they are."""
    if np.issubdtype(array.dtype, np.floating):
        return array
    if array.dtype == np.uint8:  # 8-bit WAV counts from 0, silence is 128
        return (array.astype(np.float64) - 128) / 128
    if array.dtype in (np.int16, np.int32):
        return np.asarray(array / -float(np.iinfo(array.dtype).min))
    raise AudioError(f"{name} is {_describe(array)}; allowed: floats, int16, int32, uint8")


def _average_channels(array: NDArray[Any], name: str) -> NDArray[Any]:
    """[S], [S, C] or [C, S] -> [S]."""
    if array.ndim == 1:
        return np.array(array)
    channels = 1 if array.shape[1] <= array.shape[0] else 0  # on a tie the second side, as files have it
    if array.shape[channels] > MAX_CHANNELS:
        raise AudioError(f"{name} has the shape {array.shape}; give [S, C] or [C, S], with C up to {MAX_CHANNELS}")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told apart afterwards
        return np.asarray(array.mean(axis=channels, dtype=np.float64))


def _describe(given: object) -> str:
    if isinstance(given, np.ndarray):
        return f"{given.dtype} {list(given.shape)}"
    return f"a {type(given).__name__}"


def check_rate(sample_rate: int) -> int:
    whole = isinstance(sample_rate, (int, np.integer)) and not isinstance(sample_rate, bool)
    if not whole or not MIN_RATE <= sample_rate <= MAX_RATE:
        raise OptionError(f"sample_rate is {sample_rate!r}; give a whole number from {MIN_RATE} to {MAX_RATE}")
    return int(sample_rate)


def resample(waveform: Waveform, sample_rate: int) -> Waveform:
    """The same sound at another rate, through soxr's "HQ" (what the published recipe encodes references with).

    Raises:
        OptionError: a sample rate outside 1000 to 192000.
    """
    rate = check_rate(sample_rate)
    if rate == waveform.sample_rate or not len(waveform):
        return Waveform(waveform.samples, rate)
    samples = soxr.resample(waveform.samples, waveform.sample_rate, rate, quality="HQ")
    if not len(samples):  # fewer samples than half a new one
        samples = waveform.samples[:1]
    return Waveform(np.ascontiguousarray(samples, dtype=np.float32), rate)
