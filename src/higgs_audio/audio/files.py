"""Sound files and streams: read, encode, write."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from higgs_audio.audio.waveform import MAX_RATE, MIN_RATE, Waveform, check_rate, named_from_array, resample
from higgs_audio.errors import AudioError, OptionError, nearest
from higgs_audio.files import replacing

BLOCK_FRAMES = 1 << 16  # read and written in pieces: a header may promise any length, and Vorbis crashes on long writes


# Files -> Waveform.


def read(
    source: str | Path | bytes | BinaryIO,
    sample_rate: int | None = None,
    *,
    max_seconds: float | None = None,
    max_bytes: int | None = None,
) -> Waveform:
    """A sound file, averaged to mono.

    Args:
        source: a path, the file's bytes, or an open binary file, which is read to its end.
        sample_rate: resample to this rate; the file's own when None.
        max_seconds: refuse anything longer, without reading all of it; any length when None.
        max_bytes: refuse anything larger, without reading all of it; any size when None.

    Raises:
        AudioError: missing, a folder, empty, unreadable, damaged, without samples, not finite, too long or too large.
            The message names the source.
        OptionError: a sample rate outside 1000 to 192000.
    """
    if sample_rate is not None:
        check_rate(sample_rate)
    name, file = _open(source, max_bytes)
    try:
        with soundfile.SoundFile(file) as sound:
            samples, rate = _read_mono(sound, name, max_seconds), sound.samplerate
    except AudioError:
        raise
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
        raise AudioError(
            f"{name} cannot be read as sound: {_reason(error)}. Give a wav, flac, mp3, ogg or opus file"
        ) from error
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name} has {rate} samples a second; allowed: {MIN_RATE} to {MAX_RATE}")
    waveform = named_from_array(samples, rate, name)
    return waveform if sample_rate is None else resample(waveform, sample_rate)


def _open(source: str | Path | bytes | BinaryIO, max_bytes: int | None) -> tuple[str, str | BinaryIO]:
    """(name for messages, what soundfile opens)."""
    if isinstance(source, (str, Path)):
        return repr(str(source)), _check_path(source, max_bytes)
    data: object = source
    if not isinstance(source, bytes) and hasattr(source, "read"):
        data = source.read() if max_bytes is None else source.read(max_bytes + 1)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise AudioError(f"the source is a {type(source).__name__}; give a path, bytes or a file opened in binary mode")
    name = repr(str(source.name)) if hasattr(source, "name") else f"a source of {len(data)} bytes"
    if not data:
        raise AudioError(f"{name} is empty; give a sound file's bytes")
    _check_size(name, len(data), max_bytes)
    return name, io.BytesIO(data)


def _check_size(name: str, num_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and num_bytes > max_bytes:
        raise AudioError(f"{name} has more than {max_bytes:,} bytes; cut it, or store it as flac or opus")


def _check_path(source: str | Path, max_bytes: int | None) -> str:
    path = Path(source).expanduser()
    try:
        if not path.exists():
            raise AudioError(f"there is no file {str(source)!r}; give the path of a sound file")
        if not path.is_file():
            raise AudioError(f"{str(source)!r} is not a file; give the path of a sound file")
        num_bytes = path.stat().st_size
    except (OSError, ValueError) as error:  # not allowed to look, name too long, a NUL in it
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{str(source)!r:.200} cannot be opened: {error}; give the path of a sound file") from error
    if num_bytes == 0:
        raise AudioError(f"{str(source)!r} is empty; give a file with sound in it")
    _check_size(repr(str(source)), num_bytes, max_bytes)
    return str(path)


def _read_mono(sound: soundfile.SoundFile, name: str, max_seconds: float | None) -> NDArray[np.float32]:
    """[S] of an open file, block by block."""
    blocks: list[NDArray[np.float32]] = []
    num_samples = 0
    while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):  # [S, C]
        blocks.append(block.mean(axis=1))
        num_samples += len(block)
        if max_seconds is not None and num_samples > max_seconds * sound.samplerate:
            raise AudioError(f"{name} is longer than {max_seconds:g} seconds; cut it")
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def _reason(error: Exception) -> str:
    """libsndfile's own words, without the address of the object that soundfile puts in front."""
    return (getattr(error, "error_string", None) or str(error) or type(error).__name__).strip().rstrip(".")


# Waveform -> bytes and files.


@dataclass(frozen=True)
class _Format:
    """How libsndfile writes a format, and the sample rates that its codec knows (any when empty)."""

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
    """Raw 16-bit little-endian samples, without a header. What goes over full scale is clipped.

    Raises:
        AudioError: samples that are NaN or infinite.
    """
    return _to_int16(waveform).tobytes()


def _to_int16(waveform: Waveform) -> NDArray[np.int16]:
    """[S]. Scaled by 32768, the inverse of `from_array`, so 16-bit sound comes back bit for bit."""
    samples = waveform.samples
    if not np.isfinite(samples).all():
        raise AudioError("the waveform has samples that are NaN or infinite; it cannot be encoded")
    scaled: NDArray[np.float32] = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767)
    return scaled.astype("<i2")


def encode(waveform: Waveform, format: str = "wav") -> bytes:
    """The waveform as a file's bytes.

    Args:
        waveform: at least one sample.
        format: wav or flac (16 bits), mp3, ogg (Vorbis), opus (in Ogg), or pcm (see `pcm16`). For mp3 and opus a rate
            that the codec does not know becomes the next higher one that it does.

    Raises:
        OptionError: another format.
        AudioError: no samples, not finite, or a rate that the format cannot hold.
    """
    kind = _check_format(format)
    if not len(waveform):
        raise AudioError(f"the waveform has no samples; there is nothing to encode as {kind}")
    if kind == "pcm":
        return pcm16(waveform)
    chosen, buffer = _FORMATS[kind], io.BytesIO()
    waveform = _fit_rate(waveform, chosen.rates)
    samples = _to_int16(waveform)  # [S]; lossy codecs start from the same 16 bits
    try:
        with soundfile.SoundFile(
            buffer, "w", waveform.sample_rate, 1, format=chosen.container, subtype=chosen.subtype
        ) as sound:
            for start in range(0, len(samples), BLOCK_FRAMES):
                sound.write(samples[start : start + BLOCK_FRAMES])
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise AudioError(f"{waveform.sample_rate} Hz cannot be written as {kind}: {_reason(error)}") from error
    return buffer.getvalue()


def write(waveform: Waveform, path: str | Path, format: str | None = None) -> None:
    """Writes a sound file: the whole file appears under its name, or none does.

    Args:
        waveform: at least one sample.
        path: in an existing folder; a file of that name is replaced.
        format: see `encode`; the path's suffix (.wav, .flac, .mp3, .ogg, .opus, .pcm) when None.

    Raises:
        OptionError: another format or suffix.
        AudioError: what `encode` raises, or a file that cannot be written.
    """
    path = Path(path).expanduser()
    data = encode(waveform, path.suffix.removeprefix(".") if format is None else format)
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise AudioError(
            f"{str(path)!r} cannot be written: {error.strerror}; give a file in a folder that exists"
        ) from error


def _check_format(format: str) -> str:
    kind = str(format).lower()
    if kind not in FORMATS:
        raise OptionError(f"the audio format is {format!r}; {nearest(kind, FORMATS)}")
    return kind


def _fit_rate(waveform: Waveform, rates: tuple[int, ...]) -> Waveform:
    if not rates or waveform.sample_rate in rates:
        return waveform
    higher = [rate for rate in rates if rate > waveform.sample_rate]
    return resample(waveform, min(higher, default=rates[-1]))
