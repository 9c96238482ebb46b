"""Reads the audio items of chat messages: paths, URLs (file:, data:, http:, https:), base64, bytes, arrays.

All audio from callers is read by `read_source`, so its limits apply to every kind of source.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, unquote_to_bytes

from higgs_audio.audio.fetch import fetch
from higgs_audio.audio.files import read
from higgs_audio.audio.limits import AudioLimits, size_error
from higgs_audio.audio.waveform import Waveform, from_array, resample
from higgs_audio.errors import AudioError, PromptError, nearest

__all__ = ["AUDIO_KEYS", "AUDIO_OPTIONS", "AudioSource", "as_sources", "read_source", "source_key"]

# An audio item without its "type": one of AUDIO_KEYS, and AUDIO_OPTIONS. Empty if the audio is passed separately.
AudioSource = Mapping[str, Any]

_LOCATION_KEYS = ("audio_url", "url", "path")
AUDIO_KEYS = (*_LOCATION_KEYS, "audio", "raw_audio", "codes")
AUDIO_OPTIONS = ("sampling_rate",)

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # at least two letters: C: is a drive


def source_key(source: AudioSource) -> str:
    """Returns the key of `AUDIO_KEYS` that an audio item has.

    Raises:
        PromptError: the item has none or several of them, or an unknown key.
    """
    allowed = ("type", *AUDIO_KEYS, *AUDIO_OPTIONS)
    if unknown := [str(key) for key in source if key not in allowed]:
        raise PromptError(f"an audio item has the key {unknown[0]!r}; {nearest(unknown[0], allowed)}")
    keys = [key for key in AUDIO_KEYS if key in source]
    if len(keys) != 1:
        given = " and ".join(keys) or "no audio in it"
        raise PromptError(f"an audio item has {given}; give exactly one of {', '.join(AUDIO_KEYS)}")
    return keys[0]


def read_source(source: AudioSource, sample_rate: int, limits: AudioLimits | None = None) -> Waveform:
    """Reads an audio item without codes, resampled to `sample_rate`.

    Args:
        source: one of `audio_url`, `url`, `path`, `audio` and `raw_audio`; `sampling_rate` is the rate of an array.
        sample_rate: of the result, and of arrays without a rate, in Hz.
        limits: on size, duration and downloads, for every kind of source; None for the defaults.

    Raises:
        PromptError: no source, several sources, or an unknown key.
        AudioError: the source cannot be read, or is too large or too long.
        OptionError: a sample rate outside 1000 to 192000.
    """
    limits = limits or AudioLimits()
    key = source_key(source)
    value = source[key]
    if key in _LOCATION_KEYS and not isinstance(value, (str, Path)):
        raise AudioError(f"{key} is a {type(value).__name__}; give a path or a URL, or pass the recording as audio")
    audio = _decode_base64(value, limits) if key == "raw_audio" else _open(value, source, sample_rate, limits)
    if isinstance(audio, Waveform):
        if audio.seconds > limits.max_seconds:
            raise AudioError(f"the audio lasts {audio.seconds:.1f} seconds; give at most {limits.max_seconds:g}")
        return resample(audio, sample_rate)
    return read(audio, sample_rate, max_seconds=limits.max_seconds, max_bytes=limits.max_bytes)


def _open(
    value: Any, options: Mapping[str, Any], sample_rate: int, limits: AudioLimits
) -> Waveform | Path | bytes | BinaryIO:
    """Converts the value of an audio item to a `Waveform`, or to a source that `read` accepts."""
    if isinstance(value, Mapping):  # the audio feature of a Hugging Face data set
        return _open(_feature_content(value), {"sampling_rate": sample_rate, **value}, sample_rate, limits)
    if isinstance(value, str):
        return _open_url(value, limits)
    if isinstance(value, (Waveform, Path, bytes, bytearray, memoryview)) or hasattr(value, "read"):
        return value
    samples = value.detach().cpu() if hasattr(value, "detach") else value
    return from_array(samples, options.get("sampling_rate", sample_rate))


def _feature_content(feature: Mapping[str, Any]) -> object:
    """Returns the samples, the file content or the path of the audio feature of a Hugging Face data set."""
    values = [feature[key] for key in ("array", "bytes", "path") if feature.get(key) is not None]
    if not values:
        raise AudioError(f"an audio dict has the keys {', '.join(map(str, feature))}; it needs array, bytes or path")
    return values[0]


def _open_url(url: str, limits: AudioLimits | None = None) -> Path | bytes:
    """Returns the path of a local file (a path or a file: URL), or the content of a data:, http: or https: URL.

    Raises:
        AudioError: another scheme, a malformed URL, or a failed download.
    """
    limits = limits or AudioLimits()
    scheme = match[1].lower() if (match := _SCHEME.match(url)) else ""
    if scheme in ("http", "https"):
        return fetch(url, limits)
    if scheme == "file":
        return Path(unquote(re.sub(r"^file:(//(localhost)?)?", "", url, flags=re.IGNORECASE)))
    if scheme == "data":
        head, comma, body = url.partition(",")
        if not comma:
            raise AudioError(f"the data URL {url[:40]!r} has no comma; give data:audio/wav;base64,...")
        if head.lower().endswith(";base64"):
            return _decode_base64(body, limits)
        _check_length(body, 3 * limits.max_bytes, limits)  # percent-encoding takes up to three characters per byte
        return unquote_to_bytes(body)
    if "://" in url:
        raise AudioError(f"the URL scheme {scheme!r} is not supported; give http, https, file or data, or a path")
    return Path(url)


def _decode_base64(text: object, limits: AudioLimits) -> bytes:
    if not isinstance(text, (str, bytes)):
        raise AudioError(f"the audio is a {type(text).__name__}; give the bytes of an audio file as a base64 string")
    _check_length(text, 4 * (limits.max_bytes // 3 + 1), limits)  # four characters encode three bytes
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError(
            f"the audio {text[:40]!r} is not base64: {error}. Encode the bytes of the file again"
        ) from error


def _check_length(text: str | bytes, max_chars: int, limits: AudioLimits) -> None:
    """Checks the size of encoded audio before it is decoded."""
    if len(text) > max_chars:
        raise size_error("the audio", limits.max_bytes)


def as_sources(audio: Any) -> list[AudioSource]:
    """Converts an `audio` argument (None, one audio of any kind, or a list) to audio items."""
    if audio is None:
        return []
    is_samples = isinstance(audio, (list, tuple)) and len(audio) > 0 and isinstance(audio[0], Real)
    audios = audio if isinstance(audio, (list, tuple)) and not is_samples else [audio]
    return [item if _is_item(item) else {"audio": item} for item in audios]


def _is_item(audio: Any) -> bool:
    """Whether this is an audio item of a message; the audio feature of a Hugging Face data set is a dict too."""
    return isinstance(audio, Mapping) and not {"array", "bytes"} & set(audio)
