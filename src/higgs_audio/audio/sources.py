"""Audio items of chat messages -> waveforms: paths, URLs (file:, data:, http:, https:), base64, bytes, arrays.

`read_source` is the one door for sound that callers give, so its limits hold for every kind of it.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from higgs_audio import audio as audio_io
from higgs_audio.audio.fetch import fetch
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError, PromptError, nearest

AUDIO_KEYS = ("audio_url", "url", "path", "audio", "raw_audio", "codes")
AUDIO_OPTIONS = ("sampling_rate",)

AudioSource = Mapping[str, Any]  # the keys of an audio item without its type; empty for an audio given elsewhere


LOCATION_KEYS = ("audio_url", "url", "path")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # two letters at least: C: is a drive


def source_key(source: AudioSource) -> str:
    """The one key of `AUDIO_KEYS` that an audio item has.

    Raises:
        PromptError: it has none, or several, or a key that is not known.
    """
    known = ("type", *AUDIO_KEYS, *AUDIO_OPTIONS)
    if unknown := [str(key) for key in source if key not in known]:
        raise PromptError(f"an audio item has the key {unknown[0]!r}; {nearest(unknown[0], known)}")
    given = [key for key in AUDIO_KEYS if key in source]
    if len(given) != 1:
        found = " and ".join(given) or "no audio in it"
        raise PromptError(f"an audio item has {found}; give exactly one of {', '.join(AUDIO_KEYS)}")
    return given[0]


def read_source(source: AudioSource, sample_rate: int, limits: AudioLimits | None = None) -> Waveform:
    """An audio item without codes -> its sound at `sample_rate`.

    Args:
        source: one of `audio_url`, `url`, `path`, `audio` or `raw_audio`; a rate in `sampling_rate` is that of an
            array.
        sample_rate: of the result, and of arrays that come without a rate, in Hz.
        limits: of size, duration and downloads, whatever kind of source it is; the defaults when None.

    Raises:
        PromptError: no source or several. AudioError: the source cannot be read, or is too large or too long.
    """
    limits = limits or AudioLimits()
    key = source_key(source)
    value = source[key]
    if key in LOCATION_KEYS and not isinstance(value, (str, Path)):
        raise AudioError(f"{key} is a {type(value).__name__}; give a path or a URL, or the sound itself as audio")
    found = _from_base64(value, limits) if key == "raw_audio" else _find(value, source, sample_rate, limits)
    if isinstance(found, Waveform):
        if found.seconds > limits.max_seconds:
            raise AudioError(f"the sound lasts {found.seconds:.1f} seconds; give at most {limits.max_seconds:g}")
        return audio_io.resample(found, sample_rate)
    return audio_io.read(found, sample_rate, max_seconds=limits.max_seconds, max_bytes=limits.max_bytes)


def _find(value: Any, options: Mapping[str, Any], sample_rate: int, limits: AudioLimits) -> Any:
    """What an item holds -> a `Waveform`, or what `audio.read` takes."""
    if isinstance(value, Mapping):  # the audio feature of Hugging Face datasets
        return _find(_feature_content(value), {"sampling_rate": sample_rate, **value}, sample_rate, limits)
    if isinstance(value, str):
        return locate(value, limits)
    if isinstance(value, (Waveform, Path, bytes, bytearray, memoryview)) or hasattr(value, "read"):
        return value
    samples = value.detach().cpu() if hasattr(value, "detach") else value
    return audio_io.from_array(samples, options.get("sampling_rate", sample_rate))


def _feature_content(feature: Mapping[str, Any]) -> Any:
    found = [feature[key] for key in ("array", "bytes", "path") if feature.get(key) is not None]
    if not found:
        raise AudioError(f"an audio dict has the keys {', '.join(map(str, feature))}; it needs array, bytes or path")
    return found[0]


def locate(url: str, limits: AudioLimits | None = None) -> Path | bytes:
    """A path or URL -> the file, or its content.

    Raises:
        AudioError: another kind of URL, one that is not well formed, or one that cannot be fetched.
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
            return _from_base64(body, limits)
        _check_length(body, 3 * limits.max_bytes, limits)  # percent-encoded, a byte takes up to three characters
        return unquote_to_bytes(body)
    if "://" in url:
        raise AudioError(f"URLs of the scheme {scheme!r} are not read; give http, https, file or data, or a path")
    return Path(url)


def _from_base64(text: Any, limits: AudioLimits) -> bytes:
    if not isinstance(text, (str, bytes)):
        raise AudioError(f"the audio is a {type(text).__name__}; give a file's bytes as base64, a string")
    _check_length(text, 4 * (limits.max_bytes // 3 + 1), limits)  # four characters hold three bytes
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError(f"the audio {text[:40]!r} is not base64: {error}. Encode a file's bytes anew") from error


def _check_length(text: str | bytes, allowed: int, limits: AudioLimits) -> None:
    """Before anything is decoded."""
    if len(text) > allowed:
        raise AudioError(f"the audio has more than {limits.max_bytes:,} bytes; cut it, or store it as flac or opus")


def as_sources(audio: Any) -> list[AudioSource]:
    """What a caller gives for "audio": nothing, one of them, or a list -> audio items."""
    if audio is None:
        return []
    is_one = not isinstance(audio, (list, tuple)) or (len(audio) > 0 and isinstance(audio[0], Real))  # of samples
    return [item if _is_item(item) else {"audio": item} for item in ([audio] if is_one else audio)]


def _is_item(given: Any) -> bool:
    """A dict like an audio item of a message, and not the audio feature of Hugging Face datasets."""
    return isinstance(given, Mapping) and not {"array", "bytes"} & set(given)
