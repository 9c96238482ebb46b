"""Audio items of chat messages -> waveforms: paths, file: and data: URLs, base64, bytes, arrays."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from higgs_audio import audio as audio_io
from higgs_audio.audio import Waveform
from higgs_audio.errors import AudioError, PromptError
from higgs_audio.template import AUDIO_KEYS, AudioSource

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # two letters at least: C: is a drive


def source_key(source: AudioSource) -> str:
    """The one key of `AUDIO_KEYS` that an audio item has.

    Raises:
        PromptError: it has none, or several.
    """
    given = [key for key in AUDIO_KEYS if key in source]
    if len(given) != 1:
        found = " and ".join(given) or "no audio in it"
        raise PromptError(f"an audio item has {found}; give exactly one of {', '.join(AUDIO_KEYS)}")
    return given[0]


def read_source(source: AudioSource, sample_rate: int) -> Waveform:
    """An audio item without codes -> its sound at `sample_rate`.

    Args:
        source: one of `audio_url`, `url`, `path`, `audio` or `raw_audio`; a rate in `sampling_rate` is that of an
            array.
        sample_rate: of the result, and of arrays that come without a rate, in Hz.

    Raises:
        PromptError: no source or several. AudioError: the source cannot be read.
    """
    key = source_key(source)
    value = source[key]
    if key == "raw_audio":
        return audio_io.read(_from_base64(value), sample_rate)
    if isinstance(value, Mapping):  # the audio feature of Hugging Face datasets
        return _read_feature(value, sample_rate)
    if isinstance(value, Waveform):
        return audio_io.resample(value, sample_rate)
    if isinstance(value, str):
        return audio_io.read(locate(value), sample_rate)
    if isinstance(value, (Path, bytes)) or hasattr(value, "read"):
        return audio_io.read(value, sample_rate)
    samples = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    return audio_io.resample(audio_io.from_array(samples, source.get("sampling_rate", sample_rate)), sample_rate)


def _read_feature(feature: Mapping[str, Any], sample_rate: int) -> Waveform:
    if feature.get("array") is not None:
        rate = feature.get("sampling_rate", sample_rate)
        return audio_io.resample(audio_io.from_array(np.asarray(feature["array"]), rate), sample_rate)
    value = feature.get("bytes") or feature.get("path")
    if value is None:
        raise AudioError(f"an audio dict has the keys {', '.join(map(str, feature))}; it needs array, bytes or path")
    return audio_io.read(locate(value) if isinstance(value, str) else value, sample_rate)


def locate(url: str) -> Path | bytes:
    """A path, a file: URL or a data: URL -> the file, or its content.

    Raises:
        AudioError: another kind of URL, or a data: URL that is not well formed.
    """
    scheme = match[1].lower() if (match := _SCHEME.match(url)) else ""
    if scheme == "file":
        return Path(unquote(re.sub(r"^file:(//(localhost)?)?", "", url, flags=re.IGNORECASE)))
    if scheme == "data":
        head, comma, body = url.partition(",")
        if not comma:
            raise AudioError(f"the data URL {url[:40]!r} has no comma; give data:audio/wav;base64,...")
        return _from_base64(body) if head.lower().endswith(";base64") else unquote_to_bytes(body)
    if "://" in url:
        raise AudioError(f"{url!r:.200} is not fetched: {scheme} is not supported. Download it and give its path")
    return Path(url)


def _from_base64(text: str | bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise AudioError(f"the audio is not base64 ({error}): {text!r:.40}") from error


def as_sources(audio: Any) -> list[AudioSource]:
    """What a caller gives for "audio": nothing, one of them, or a list -> audio items."""
    if audio is None:
        return []
    is_list = isinstance(audio, Sequence) and not isinstance(audio, (str, bytes))
    many = audio if is_list and not (len(audio) and isinstance(audio[0], (int, float))) else [audio]
    return [item if isinstance(item, Mapping) and "array" not in item else {"audio": item} for item in many]
