"""An utterance between engine and listener: the options of a call to a request, chunks of sound to a speech."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from higgs_audio.audio import Waveform
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.engine import Request
from higgs_audio.guidance import last_text, unread_prompts
from higgs_audio.model import HiggsAudioForConditionalGeneration
from higgs_audio.rules import read_rules, read_seeds

LOW_LATENCY_FRAMES = 3  # that a sample waits for where it need not be exact; docs/measurements.md has the error
SILENCE_FRAMES = 50  # of zeros, encoded to learn which codes stand for silence


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


class Said:
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


def request_of(model: HiggsAudioForConditionalGeneration, options: Mapping[str, Any]) -> Request:
    """The engine's request for what `generate.stream` would be asked with these options, for one prompt.

    What precedes the text is likely to be asked for again: a system message, a scene, the reference of a voice.
    """
    ids = options["input_ids"]  # [1, T]
    names = ("input_ids", "attention_mask", "audio_input_ids", "audio_input_ids_mask")
    rules = read_rules(
        model.config,
        getattr(model, "generation_config", None),
        {name: value for name, value in options.items() if name not in names},
    )
    unread = unread_prompts(ids, rules.sampling.text_guidance_scale, options)
    sampling = rules.sampling if unread is not None else replace(rules.sampling, text_guidance_scale=1.0)
    columns = options.get("audio_input_ids")  # [1, F, K]
    assert rules.max_frames is not None
    return Request(
        input_ids=ids[0].cpu(),
        columns=torch.zeros(0, model.config.audio_num_codebooks).long() if columns is None else columns[0].cpu(),
        sampling=sampling,
        seed=read_seeds(options.get("seed"), 1)[0],
        min_frames=rules.min_frames,
        max_frames=rules.max_frames,
        unread_ids=None if unread is None else unread[0].cpu(),
        prefix=last_text(ids[0], rules.tokenizer)[0],
        guarded=True,
    )


def silent_codes(codec: HiggsAudioTokenizer) -> frozenset[int]:
    """The codes of codebook 0 that stand for silence."""
    silence = torch.zeros(1, 1, SILENCE_FRAMES * codec.config.hop_length, device=codec.device)
    codes = codec.encode(silence).audio_codes
    assert codes is not None
    return frozenset(codes[0, 0].tolist())
