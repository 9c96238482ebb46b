"""Audio of containers that libsndfile does not read, such as m4a, mp4, webm and wma, through PyAV (FFmpeg)."""

import importlib.util
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from higgs_audio.errors import AudioError

# FFmpeg also takes subtitles, pictures and raw bytes for media; these are containers of sound by FFmpeg's names.
_CONTAINERS = frozenset(
    (
        *(
            "aac",
            "ac3",
            "aiff",
            "amr",
            "ape",
            "asf",
            "au",
            "avi",
            "caf",
            "dsf",
            "eac3",
            "flac",
            "flv",
            "m4a",
            "matroska",
        ),
        *("mov", "mp3", "mp4", "mpeg", "mpegts", "ogg", "tta", "w64", "wav", "webm", "wv"),
    )
)

__all__ = ["read_container"]


def read_container(
    file: str | BinaryIO, name: str, max_seconds: float | None
) -> tuple[NDArray[np.float32], int] | None:
    """Returns the mono samples [S] and the sample rate of the first audio stream; None if PyAV is not installed.

    Args:
        file: a path, or an open binary file, which is read from its start.
        name: the source, for messages.
        max_seconds: reject longer audio before all of it is decoded; None accepts any duration.

    Raises:
        AudioError: not a media file, without audio, damaged, or too long.
    """
    if importlib.util.find_spec("av") is None:
        return None
    import av

    if not isinstance(file, str):
        file.seek(0)
    try:
        with av.open(file, metadata_errors="ignore") as container:
            if not _CONTAINERS & set(container.format.name.split(",")):
                raise AudioError(f"{name} is no audio but {container.format.long_name}; give a wav, mp3 or m4a file")
            if not container.streams.audio:
                raise AudioError(f"{name} has no audio; give a file that contains audio")
            return _decode(container, name, max_seconds)
    except AudioError:
        raise
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        raise AudioError(f"{name} cannot be read as audio: {error}; give a wav, flac, mp3, ogg or m4a file") from error


def _decode(container: Any, name: str, max_seconds: float | None) -> tuple[NDArray[np.float32], int]:
    """Decodes the first audio stream of an open container."""
    from av.audio.resampler import AudioResampler

    stream = container.streams.audio[0]
    rate = int(stream.rate or 0)
    resampler = AudioResampler(format="flt", layout="mono", rate=rate)
    blocks: list[NDArray[np.float32]] = []
    num_samples = 0
    for frame in container.decode(stream):
        for mono in resampler.resample(frame):
            blocks.append(mono.to_ndarray()[0])
            num_samples += blocks[-1].size
        if max_seconds is not None and num_samples > max_seconds * rate:
            raise AudioError(f"{name} is longer than {max_seconds:g} seconds; shorten it")
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32), rate
