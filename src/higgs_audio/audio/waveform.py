"""`Waveform`, and its conversions: from arrays, to another sample rate, to 16-bit integers.

All audio inside the package is mono float32 in [-1, 1]. This module converts other layouts, types and rates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import ArrayLike, NDArray

from higgs_audio.errors import AudioError, check_value

__all__ = [
    "MAX_RATE",
    "MIN_RATE",
    "PCM16_SCALE",
    "Waveform",
    "check_sample_rate",
    "from_array",
    "resample",
    "to_int16",
]

_MAX_CHANNELS = 32
MIN_RATE, MAX_RATE = 1_000, 192_000  # libvorbis crashes the process above 200 kHz
# Float samples may exceed full scale slightly; a larger peak means integers that were not divided by their range.
_MAX_PEAK = 16.0
PCM16_SCALE = 32_768  # 16-bit integers per unit of float amplitude, in both directions


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono audio. Equality is identity, because the samples are an array.

    Args:
        samples: [S] float32 in [-1, 1]; may be empty, as a chunk of a stream may be. `from_array` converts other types.
        sample_rate: samples per second.

    Raises:
        AudioError: samples of another shape or type.
        OptionError: a sample rate outside 1000 to 192000.
    """

    samples: NDArray[np.float32]
    sample_rate: int

    def __post_init__(self) -> None:
        samples = self.samples
        if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype != np.float32:
            raise AudioError(f"samples are {_describe(samples)}; give float32 [S], or use from_array()")
        object.__setattr__(self, "sample_rate", check_sample_rate(self.sample_rate))

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / self.sample_rate


def from_array(samples: ArrayLike, sample_rate: int, *, name: str = "the array") -> Waveform:
    """Converts samples of any common type and layout, and averages channels.

    Args:
        samples: [S], [S, C] or [C, S], where the shorter side is the channels; floats in [-1, 1], or int16, int32 or
            uint8 over their full range.
        sample_rate: samples per second.
        name: name of the samples in error messages.

    Raises:
        AudioError: empty, not finite, another type or shape, or floats on an integer scale.
        OptionError: a sample rate outside 1000 to 192000.
    """
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors that numpy cannot convert
        raise AudioError(f"{name} cannot be read as an array: {error}. Give numbers, [S], [S, C] or [C, S]") from error
    if array.ndim not in (1, 2):
        raise AudioError(f"{name} is {_describe(array)}; give [S], [S, C] or [C, S]")
    if array.size == 0:
        raise AudioError(f"{name} has no samples; give at least one")
    mono = _average_channels(_scale(array, name), name)  # [S]
    if not np.isfinite(mono).all():
        raise AudioError(f"{name} has samples that are NaN or infinite; replace them, by 0 for example")
    if (peak := float(np.abs(mono).max())) > _MAX_PEAK:
        raise AudioError(f"{name} has samples up to {peak:g}; floats range from -1 to 1: divide them, or give integers")
    return Waveform(np.ascontiguousarray(mono, dtype=np.float32), sample_rate)


def _scale(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Scales integers from their full range to [-1, 1); returns floats unchanged."""
    if np.issubdtype(array.dtype, np.floating):
        return array
    if array.dtype == np.uint8:  # 8-bit WAV is unsigned: silence is 128
        return (array.astype(np.float64) - 128) / 128
    if array.dtype in (np.int16, np.int32):
        return np.asarray(array / -float(np.iinfo(array.dtype).min))
    raise AudioError(f"{name} is {_describe(array)}; allowed: floats, int16, int32, uint8")


def _average_channels(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Converts [S], [S, C] or [C, S] to [S]."""
    if array.ndim == 1:
        return np.array(array)
    channel_axis = 1 if array.shape[1] <= array.shape[0] else 0  # on a tie the second axis, as in files
    if array.shape[channel_axis] > _MAX_CHANNELS:
        raise AudioError(f"{name} has the shape {array.shape}; give [S, C] or [C, S], with C up to {_MAX_CHANNELS}")
    with np.errstate(over="ignore", invalid="ignore"):  # the caller rejects values that are not finite
        return np.asarray(array.mean(axis=channel_axis, dtype=np.float64))


def _describe(samples: object) -> str:
    if isinstance(samples, np.ndarray):
        return f"{samples.dtype} {list(samples.shape)}"
    return f"a {type(samples).__name__}"


def check_sample_rate(sample_rate: int) -> int:
    """Returns the rate as an int.

    Raises:
        OptionError: not a whole number, or outside 1000 to 192000.
    """
    is_whole = isinstance(sample_rate, (int, np.integer)) and not isinstance(sample_rate, bool)
    is_valid = is_whole and MIN_RATE <= sample_rate <= MAX_RATE
    check_value("sample_rate", sample_rate, is_valid, f"a whole number from {MIN_RATE} to {MAX_RATE}")
    return int(sample_rate)


def resample(waveform: Waveform, sample_rate: int) -> Waveform:
    """Resamples with soxr's "HQ" quality, which the published recipe uses for references.

    Raises:
        OptionError: a sample rate outside 1000 to 192000.
    """
    rate = check_sample_rate(sample_rate)
    if rate == waveform.sample_rate or not len(waveform):
        return Waveform(waveform.samples, rate)
    samples = soxr.resample(waveform.samples, waveform.sample_rate, rate, quality="HQ")
    if not len(samples):  # the input is shorter than half an output sample
        samples = waveform.samples[:1]
    return Waveform(np.ascontiguousarray(samples, dtype=np.float32), rate)


def to_int16(waveform: Waveform) -> NDArray[np.int16]:
    """Converts to little-endian 16-bit integers [S]; samples above full scale are clipped.

    The scale is the inverse of `from_array`, so that 16-bit audio is preserved bit for bit.

    Raises:
        AudioError: samples that are NaN or infinite.
    """
    samples = waveform.samples
    if not np.isfinite(samples).all():
        raise AudioError("the waveform has samples that are NaN or infinite; replace them, by 0 for example")
    scaled: NDArray[np.float32] = np.rint(samples * np.float32(PCM16_SCALE))
    return np.clip(scaled, -PCM16_SCALE, PCM16_SCALE - 1).astype("<i2")
