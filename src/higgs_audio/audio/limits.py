"""Limits on the sound that is read: its size, its duration, the time of a download."""

import math
from dataclasses import dataclass
from types import NoneType

from higgs_audio.errors import OptionError

MAX_TIMEOUT_SECONDS = 86_400.0  # sockets count in a C integer


@dataclass(frozen=True)
class AudioLimits:
    """What a recording that comes from outside may cost, however it is given.

    Attributes:
        max_bytes: of a file, a download, or base64 once decoded; 100 million are ten minutes of 48 kHz stereo.
        max_seconds: of the sound, counted while it is decoded: a small file of silence may last for days.
        timeout_seconds: of a download as a whole, from the look-up of the name to the last byte.
        max_redirects: of a download.
        allow_private_urls: whether a download may go to addresses that are not public. None asks the environment:
            HIGGS_AUDIO_ALLOW_PRIVATE_URLS=1 allows it.
    """

    max_bytes: int = 100_000_000
    max_seconds: float = 600.0
    timeout_seconds: float = 30.0
    max_redirects: int = 5
    allow_private_urls: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_bytes", 1), ("max_redirects", 0)):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise OptionError(f"{name} is {value!r}; give a whole number of at least {least}")
        for name, most in (("max_seconds", math.inf), ("timeout_seconds", MAX_TIMEOUT_SECONDS)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= most:
                raise OptionError(f"{name} is {value!r}; give a number above 0, at most {most:g}")
        if not isinstance(self.allow_private_urls, (bool, NoneType)):
            raise OptionError(f"allow_private_urls is {self.allow_private_urls!r}; give True, False or None")
