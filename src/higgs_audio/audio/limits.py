"""Limits on audio input: size, duration, download time."""

import math
from dataclasses import dataclass
from types import NoneType

from higgs_audio.errors import AudioError, check_count, check_value, is_number

__all__ = ["AudioLimits", "size_error"]

_MAX_TIMEOUT_SECONDS = 86_400.0  # socket timeouts are a C integer


@dataclass(frozen=True)
class AudioLimits:
    """Limits on one recording from an untrusted source: a file, a URL, base64, bytes or an array.

    Attributes:
        max_bytes: size of a file, a download or decoded base64; 100 million bytes are ten minutes of 48 kHz stereo.
        max_seconds: duration, counted during decoding: a small file of silence can last for days.
        timeout_seconds: time for a whole download, from name resolution to the last byte; at most a day.
        max_redirects: number of redirects that a download follows.
        allow_private_urls: whether a download may connect to addresses that are not public. None reads the environment
            variable: HIGGS_AUDIO_ALLOW_PRIVATE_URLS=1 allows them.

    Raises:
        OptionError: a value of another type or outside its range.
    """

    max_bytes: int = 100_000_000
    max_seconds: float = 600.0
    timeout_seconds: float = 30.0
    max_redirects: int = 5
    allow_private_urls: bool | None = None

    def __post_init__(self) -> None:
        check_count("max_bytes", self.max_bytes, 1)
        check_count("max_redirects", self.max_redirects, 0)
        for name, most in (("max_seconds", math.inf), ("timeout_seconds", _MAX_TIMEOUT_SECONDS)):
            value, limit = getattr(self, name), "" if math.isinf(most) else f", at most {most:g}"
            check_value(name, value, is_number(value) and 0 < value <= most, f"a number above 0{limit}")
        is_flag = isinstance(self.allow_private_urls, (bool, NoneType))
        check_value("allow_private_urls", self.allow_private_urls, is_flag, "True, False, None")


def size_error(name: object, max_bytes: int) -> AudioError:
    """Returns the error for a source `name` of more than `max_bytes`."""
    return AudioError(f"{name} has more than {max_bytes:,} bytes; shorten it, or store it as flac or opus")
