"""An utterance between engine and listener: the options of a call to a request, its columns to chunks of sound."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from higgs_audio.audio import Waveform
from higgs_audio.codec import HiggsAudioTokenizer, StreamDecoder
from higgs_audio.delay import FrameAligner
from higgs_audio.engine import Answer, Request
from higgs_audio.guidance import last_text, unread_prompts
from higgs_audio.model import HiggsAudioForConditionalGeneration
from higgs_audio.rules import read_rules, read_seeds

# Frames sounded together: few at first, so that sound comes soon, then more, as a call costs (a `dac` body decodes
# the frames around them again).
FIRST_CHUNK_FRAMES = 4
NEXT_CHUNK_FRAMES = 8
MAX_CHUNK_FRAMES = 64
PATIENT_CHUNK_FRAMES = 256  # longer than most utterances
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


def sound_of(
    answer: Answer, codec: HiggsAudioTokenizer, soon: bool = True, look_ahead: int | None = None
) -> Iterator[Chunk]:
    """Columns -> frames -> chunks, each twice as long as the last. Closing it leaves the answer as it is.

    Where nobody waits for the first (not `soon`) all are of the greatest length, and little is decoded twice.
    `look_ahead` is that of `StreamDecoder`.
    """
    num_codebooks, marker = codec.config.num_codebooks, codec.config.codebook_size
    aligner, decoder = FrameAligner(num_codebooks, marker, marker + 1), StreamDecoder(codec, look_ahead)
    frames: list[list[int]] = []
    first, later = (FIRST_CHUNK_FRAMES, NEXT_CHUNK_FRAMES) if soon else (PATIENT_CHUNK_FRAMES, PATIENT_CHUNK_FRAMES)
    ahead = codec.decoder_context[1] if look_ahead is None else look_ahead
    size, most = ahead + first, max(later, MAX_CHUNK_FRAMES)
    for column in answer:
        frame = aligner.push(column)
        if frame is not None:
            frames.append(frame)
        if len(frames) == size:
            codes = _stack(frames, num_codebooks)
            yield Chunk(_samples(decoder.push(codes.to(codec.device))), codes)
            frames, size, later = [], later, min(2 * later, most)
    codes = _stack(frames, num_codebooks)
    last = _samples(decoder.push(codes.to(codec.device))), _samples(decoder.finish())
    yield Chunk(np.concatenate(last), codes, answer.finish_reason)


def silent_codes(codec: HiggsAudioTokenizer) -> frozenset[int]:
    """The codes of codebook 0 that stand for silence."""
    silence = torch.zeros(1, 1, SILENCE_FRAMES * codec.config.hop_length, device=codec.device)
    codes = codec.encode(silence).audio_codes
    assert codes is not None
    return frozenset(codes[0, 0].tolist())


def _stack(frames: list[list[int]], num_codebooks: int) -> Tensor:
    """Frames, K ids each, to codes [K, F] on the CPU."""
    return torch.tensor(frames, dtype=torch.long).reshape(-1, num_codebooks).T


def _samples(sound: Tensor) -> NDArray[np.float32]:
    """What the audio tokenizer says [S], as a waveform's samples: it may go a little over 1."""
    return sound.float().clamp(-1, 1).cpu().numpy()
