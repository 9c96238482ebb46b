"""Audio files: read, encode, write."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from higgs_audio.audio.containers import read_container
from higgs_audio.audio.limits import size_error
from higgs_audio.audio.waveform import MAX_RATE, MIN_RATE, Waveform, check_sample_rate, from_array, resample, to_int16
from higgs_audio.errors import AudioError, OptionError, nearest
from higgs_audio.files import write_atomic

__all__ = ["BLOCK_FRAMES", "FORMATS", "encode", "pcm16", "read", "write"]

# Frames per read or write: a header may claim any length, and libvorbis crashes on long writes.
BLOCK_FRAMES = 1 << 16
_UNKNOWN_FORMAT = 1  # libsndfile's code of an error


def read(
    source: str | Path | bytes | BinaryIO,
    sample_rate: int | None = None,
    *,
    max_seconds: float | None = None,
    max_bytes: int | None = None,
) -> Waveform:
    """Reads an audio file and averages its channels to mono; if they cancel each other, reads the first channel.

    libsndfile reads wav, flac, mp3, ogg, opus and others; what it cannot read, PyAV does if it is installed: m4a, mp4,
    webm, wma and the audio of video files.

    Args:
        source: a path, the content of a file, or an open binary file, which is read to its end.
        sample_rate: resample to this rate; None keeps the rate of the file.
        max_seconds: reject longer audio before all of it is decoded; None accepts any duration.
        max_bytes: reject larger files before all of it is read; None accepts any size.

    Raises:
        AudioError: missing, a folder, empty, unreadable, damaged, without samples, not finite, too long or too large.
            The message names the source.
        OptionError: a sample rate outside 1000 to 192000.
    """
    if sample_rate is not None:
        check_sample_rate(sample_rate)
    name, file = _open(source, max_bytes)
    try:
        with soundfile.SoundFile(file) as opened:
            _check_rate(name, opened.samplerate)
            samples, file_rate = _read_mono(opened, name, max_seconds), opened.samplerate
    except AudioError:
        raise
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
        is_unknown = getattr(error, "code", None) == _UNKNOWN_FORMAT
        container = read_container(file, name, max_seconds) if is_unknown else None
        if container is None:
            raise AudioError(
                f"{name} cannot be read as audio: {_reason(error)}. Give a wav, flac, mp3, ogg or opus file; for m4a, "
                "mp4, webm, wma and others: pip install 'higgs-audio[containers]'"
            ) from error
        samples, file_rate = container
        _check_rate(name, file_rate)
    waveform = from_array(samples, file_rate, name=name)
    return waveform if sample_rate is None else resample(waveform, sample_rate)


def _open(source: str | Path | bytes | BinaryIO, max_bytes: int | None) -> tuple[str, str | BinaryIO]:
    """Returns the name for error messages, and a path or file object for soundfile."""
    if isinstance(source, (str, Path)):
        return repr(str(source)), _check_path(source, max_bytes)
    data: object = source
    if not isinstance(source, bytes) and hasattr(source, "read"):
        data = source.read() if max_bytes is None else source.read(max_bytes + 1)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise AudioError(f"the source is a {type(source).__name__}; give a path, bytes or a file opened in binary mode")
    name = repr(str(source.name)) if hasattr(source, "name") else f"a source of {len(data)} bytes"
    if not data:
        raise AudioError(f"{name} is empty; give the bytes of an audio file")
    _check_size(name, len(data), max_bytes)
    return name, io.BytesIO(data)


def _check_size(name: str, num_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and num_bytes > max_bytes:
        raise size_error(name, max_bytes)


def _check_path(source: str | Path, max_bytes: int | None) -> str:
    try:
        path = Path(source).expanduser()
        if not path.exists():
            raise AudioError(f"{str(source)!r} does not exist; give the path of an audio file")
        if not path.is_file():
            raise AudioError(f"{str(source)!r} is not a file; give the path of an audio file")
        num_bytes = path.stat().st_size
    except (OSError, ValueError, RuntimeError) as error:  # no permission; too long or with NUL; no such user for "~"
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{str(source)!r:.200} cannot be opened: {error}; give the path of an audio file") from error
    if num_bytes == 0:
        raise AudioError(f"{str(source)!r} is empty; give a file that contains audio")
    _check_size(repr(str(source)), num_bytes, max_bytes)
    return str(path)


def _read_mono(file: soundfile.SoundFile, name: str, max_seconds: float | None) -> NDArray[np.float32]:
    """Reads an open file block by block and returns its mono samples [S]."""
    mixed: list[NDArray[np.float32]] = []
    first: list[NDArray[np.float32]] = []  # the first channel of several
    num_samples = 0
    while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):  # [S, C]
        mixed.append(block.mean(axis=1))
        if block.shape[1] > 1:
            first.append(block[:, 0].copy())
        num_samples += len(block)
        if max_seconds is not None and num_samples > max_seconds * file.samplerate:
            raise AudioError(f"{name} is longer than {max_seconds:g} seconds; shorten it")
    samples = np.concatenate(mixed) if mixed else np.zeros(0, dtype=np.float32)
    return np.concatenate(first) if first and _is_cancelled(samples, first) else samples


def _is_cancelled(mixed: NDArray[np.float32], channel: list[NDArray[np.float32]]) -> bool:
    """Whether the average of the channels is 40 dB quieter than one of them: they have opposite phases."""
    energy = sum(float(np.square(block, dtype=np.float64).sum()) for block in channel)
    return float(np.square(mixed, dtype=np.float64).sum()) < 1e-4 * energy


def _check_rate(name: str, sample_rate: int) -> None:
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise AudioError(f"{name} has {sample_rate} samples per second; allowed: {MIN_RATE} to {MAX_RATE}")


def _reason(error: Exception) -> str:
    """Returns libsndfile's message without the object address that soundfile prepends."""
    return (getattr(error, "error_string", None) or str(error) or type(error).__name__).strip().rstrip(".")


@dataclass(frozen=True)
class _Format:
    """libsndfile's names of a format, and the sample rates that its codec supports (empty: any)."""

    container: str
    subtype: str
    rates: tuple[int, ...] = ()


_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_FORMATS = {
    "wav": _Format("WAV", "PCM_16"),
    "flac": _Format("FLAC", "PCM_16"),
    "mp3": _Format("MP3", "MPEG_LAYER_III", _MP3_RATES),
    "ogg": _Format("OGG", "VORBIS"),
    "opus": _Format("OGG", "OPUS", _OPUS_RATES),
}
FORMATS = (*_FORMATS, "pcm")


def pcm16(waveform: Waveform) -> bytes:
    """Encodes as 16-bit little-endian samples without a header; samples above full scale are clipped.

    Raises:
        AudioError: samples that are NaN or infinite.
    """
    return to_int16(waveform).tobytes()


def encode(waveform: Waveform, format: str = "wav") -> bytes:
    """Encodes a waveform as the content of an audio file.

    Args:
        waveform: at least one sample.
        format: wav or flac (16 bits), mp3, ogg (Vorbis), opus (in Ogg), or pcm (see `pcm16`). For mp3 and opus, a
            sample rate that the codec does not support is resampled to the next higher one that it supports.

    Raises:
        OptionError: an unknown format.
        AudioError: no samples, not finite, or a sample rate that the format does not support.
    """
    kind = _check_format(format)
    if not len(waveform):
        raise AudioError(f"the waveform has no samples; there is nothing to encode as {kind}")
    if kind == "pcm":
        return pcm16(waveform)
    chosen, buffer = _FORMATS[kind], io.BytesIO()
    waveform = _resample_to_supported(waveform, chosen.rates)
    samples = to_int16(waveform)  # [S]; lossy codecs get the same 16-bit input
    try:
        with soundfile.SoundFile(
            buffer, "w", waveform.sample_rate, 1, format=chosen.container, subtype=chosen.subtype
        ) as file:
            for start in range(0, len(samples), BLOCK_FRAMES):
                file.write(samples[start : start + BLOCK_FRAMES])
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise AudioError(f"{waveform.sample_rate} Hz cannot be written as {kind}: {_reason(error)}") from error
    return buffer.getvalue()


def write(waveform: Waveform, path: str | Path, format: str | None = None) -> None:
    """Writes an audio file atomically: the complete file appears, or none.

    Args:
        waveform: at least one sample.
        path: in an existing folder; an existing file is replaced.
        format: see `encode`; None takes it from the suffix (.wav, .flac, .mp3, .ogg, .opus, .pcm).

    Raises:
        OptionError: an unknown format or suffix.
        AudioError: the errors of `encode`, or the file cannot be written.
    """
    path = Path(path).expanduser()
    data = encode(waveform, path.suffix.removeprefix(".") if format is None else format)
    try:
        write_atomic(path, data)
    except (OSError, ValueError) as error:  # ValueError: a name that contains NUL
        reason = getattr(error, "strerror", None) or error
        raise AudioError(
            f"{str(path)!r:.200} cannot be written: {reason}; give a file name in an existing folder"
        ) from error


def _check_format(format: str) -> str:
    kind = str(format).lower()
    if kind not in FORMATS:
        raise OptionError(f"the audio format is {format!r}; {nearest(kind, FORMATS)}")
    return kind


def _resample_to_supported(waveform: Waveform, rates: tuple[int, ...]) -> Waveform:
    """Resamples to the next higher of `rates`, or the highest; an empty tuple means that every rate is supported."""
    if not rates or waveform.sample_rate in rates:
        return waveform
    higher = [rate for rate in rates if rate > waveform.sample_rate]
    return resample(waveform, min(higher, default=rates[-1]))
