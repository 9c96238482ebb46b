"""An utterance between engine and listener: the options of a call to a request, chunks of sound to a speech."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from higgs_audio.audio.waveform import Waveform

LOW_LATENCY_FRAMES = 3  # that a sample waits for where it need not be exact; docs/measurements.md has the error


@dataclass(frozen=True)
class Speech:
    """A text, spoken.

    Attributes:
        waveform: its sound, 24 kHz.
        codes: [K, F] int64, the codes the sound was decoded from.
        finish_reason: "stop" where every utterance ended by itself; otherwise why the first that did not ended:
            "length" at its limit, "silence" or "repetition" where the model was stuck.
        first_sound_seconds: from the call to the first sound; NaN where nobody took the time.
    """

    waveform: Waveform
    codes: NDArray[np.int64]
    finish_reason: str
    first_sound_seconds: float = math.nan

    @property
    def seconds(self) -> float:
        """Seconds of sound."""
        return self.waveform.seconds


@dataclass(frozen=True)
class Chunk:
    """Samples [S] that have become certain, the codes [K, F] that came in with them, and why the utterance ended."""

    samples: NDArray[np.float32]
    codes: Tensor
    finish_reason: str | None = None


class SpeechBuilder:
    """Chunks of a text on their way to a `Speech`."""

    def __init__(self, sample_rate: int) -> None:
        self._rate, self._began = sample_rate, time.perf_counter()
        self._first = math.nan
        self._chunks: list[Chunk] = []
        self._num_samples = 0

    @property
    def seconds(self) -> float:
        """Of sound so far."""
        return self._num_samples / self._rate

    def add(self, chunk: Chunk) -> None:
        """The next chunk."""
        self._chunks.append(chunk)
        self._num_samples += len(chunk.samples)
        if math.isnan(self._first) and len(chunk.samples):
            self._first = time.perf_counter() - self._began

    def speech(self) -> Speech:
        """All of it."""
        waveform = Waveform(np.concatenate([chunk.samples for chunk in self._chunks]), self._rate)
        codes = torch.cat([chunk.codes for chunk in self._chunks], dim=1).numpy()  # [K, F]
        unusual = (chunk.finish_reason for chunk in self._chunks if chunk.finish_reason not in (None, "stop"))
        return Speech(waveform, codes, next(unusual, None) or "stop", self._first)
