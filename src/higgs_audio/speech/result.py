"""The results of speech generation: chunks of audio, and the complete `Speech`."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from higgs_audio.audio.waveform import Waveform

LOW_LATENCY_FRAMES = 3  # look-ahead of inexact samples; docs/measurements.md has the error


@dataclass(frozen=True)
class Speech:
    """The speech of a text.

    Attributes:
        waveform: the audio, 24 kHz.
        codes: [K, F] int64, the codes from which the audio was decoded.
        finish_reason: "stop" if the model ended every utterance itself; otherwise the reason of the first utterance
            that it did not end: "length" at its limit, "silence" or "repetition" if generation was stuck.
        first_audio_seconds: seconds from the call to the first audio; NaN if not measured.
    """

    waveform: Waveform
    codes: NDArray[np.int64]
    finish_reason: str
    first_audio_seconds: float = math.nan

    @property
    def seconds(self) -> float:
        """Duration of the audio in seconds."""
        return self.waveform.seconds


@dataclass(frozen=True)
class Chunk:
    """A chunk of the audio of an utterance.

    Attributes:
        samples: [S], final: later frames do not change them.
        codes: [K, F], the frames that arrived since the previous chunk, on the CPU.
        finish_reason: finish reason of the utterance, in its last chunk; None before.
    """

    samples: NDArray[np.float32]
    codes: Tensor
    finish_reason: str | None = None


class SpeechBuilder:
    """Collects the chunks of a text into a `Speech`; measures time from its creation on."""

    def __init__(self, sample_rate: int) -> None:
        self._rate, self._start = sample_rate, time.perf_counter()
        self._first_audio_seconds = math.nan
        self._chunks: list[Chunk] = []
        self._num_samples = 0

    @property
    def seconds(self) -> float:
        """Seconds of audio so far."""
        return self._num_samples / self._rate

    def add(self, chunk: Chunk) -> None:
        """Adds the next chunk."""
        self._chunks.append(chunk)
        self._num_samples += len(chunk.samples)
        if math.isnan(self._first_audio_seconds) and len(chunk.samples):
            self._first_audio_seconds = time.perf_counter() - self._start

    def speech(self) -> Speech:
        """Returns the speech of all chunks."""
        waveform = Waveform(np.concatenate([chunk.samples for chunk in self._chunks]), self._rate)
        codes = torch.cat([chunk.codes for chunk in self._chunks], dim=1).numpy()  # [K, F]
        unusual = (chunk.finish_reason for chunk in self._chunks if chunk.finish_reason not in (None, "stop"))
        return Speech(waveform, codes, next(unusual, None) or "stop", self._first_audio_seconds)
