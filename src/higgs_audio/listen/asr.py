"""Speech recognition: Whisper through faster-whisper, with models from pip packages, a folder or the hub."""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.errors import CheckpointError, MissingExtraError, nearest
from higgs_audio.listen.whisper_packages import FOLDERS

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Transcript:
    """The text that a model recognized.

    `log_probability` is the mean over all tokens and `no_speech_probability` the maximum over Whisper's segments; both
    are None if the model recognized nothing. `model` is the name or folder that was given to `transcribe`.
    """

    text: str
    language: str
    log_probability: float | None
    no_speech_probability: float | None
    model: str


class _Segment(Protocol):
    text: str
    tokens: Sequence[int]
    avg_logprob: float
    no_speech_prob: float


class _Info(Protocol):
    language: str


class _WhisperModel(Protocol):
    """The part of `faster_whisper.WhisperModel` that this module uses."""

    def transcribe(
        self,
        audio: NDArray[np.float32],
        *,
        language: str,
        beam_size: int,
        temperature: float,
        condition_on_previous_text: bool,
        vad_filter: bool,
    ) -> tuple[Iterable[_Segment], _Info]: ...


def transcribe(
    waveforms: Iterable[Waveform],
    model: str | Path = "whisper-base",
    *,
    language: str = "en",
    beam_size: int = 5,
    device: str = "cpu",
    compute_type: str = "int8",
) -> list[Transcript]:
    """Transcribes recordings, in order.

    The result is deterministic, and no recording affects another: temperature 0 without fallback, no voice activity
    detection, no conditioning on earlier text. The beam of 5 is Whisper's published setting; on sentences of a few
    seconds the encoder dominates the time, so a beam of 1 saves little and makes more errors. The number of threads
    follows OMP_NUM_THREADS.

    Args:
        waveforms: recordings of any sample rate.
        model: "whisper-base" or "whisper-tiny.en" (offline, from pip packages), a folder with a CTranslate2 model, a
            hub name such as "Systran/faster-whisper-large-v3", or a model size of faster-whisper, such as "large-v3".
        language: two-letter code of the spoken language.
        beam_size: hypotheses kept during decoding.
        device, compute_type: as in CTranslate2; "cuda" and "float16" on a GPU.

    Raises:
        MissingExtraError: faster-whisper, or the package of the model, is not installed.
        CheckpointError: no such model, or it does not load.

    Source: Radford et al. 2022, "Robust speech recognition via large-scale weak supervision".
    """
    loaded = _load(str(model), device, compute_type)
    return [_transcribe(loaded, waveform, str(model), language, beam_size) for waveform in waveforms]


def _transcribe(model: _WhisperModel, waveform: Waveform, name: str, language: str, beam_size: int) -> Transcript:
    segments, info = model.transcribe(
        np.ascontiguousarray(resample(waveform, SAMPLE_RATE).samples, dtype=np.float32),  # [S]
        language=language,
        beam_size=beam_size,
        temperature=0.0,
        condition_on_previous_text=False,
        vad_filter=False,
    )
    recognized = list(segments)
    num_tokens = sum(len(segment.tokens) for segment in recognized)
    total = sum(segment.avg_logprob * len(segment.tokens) for segment in recognized)
    return Transcript(
        text=" ".join(segment.text.strip() for segment in recognized),
        language=info.language,
        log_probability=total / num_tokens if num_tokens else None,
        no_speech_probability=max((segment.no_speech_prob for segment in recognized), default=None),
        model=name,
    )


@lru_cache(maxsize=2)
def _load(model: str, device: str, compute_type: str) -> _WhisperModel:
    """Loads a model, or returns a cached one; at most two are cached."""
    try:
        faster_whisper = importlib.import_module("faster_whisper")
    except ImportError as error:
        raise MissingExtraError("faster-whisper", "evaluate") from error
    source = _source(model, faster_whisper.available_models())
    try:
        return cast(_WhisperModel, faster_whisper.WhisperModel(source, device=device, compute_type=compute_type))
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"the ASR model {model!r} could not be loaded: {error}. Give a folder with a CTranslate2 model, or a name"
        ) from error


def _source(model: str, known_sizes: Iterable[str]) -> str:
    """Returns what faster-whisper opens: a folder, or a name that it can download."""
    if model in FOLDERS:
        return str(FOLDERS[model]())
    if Path(model).is_dir() or "/" in model or model in known_sizes:
        return model
    choice = nearest(model, [*FOLDERS, *known_sizes])
    raise CheckpointError(f"no ASR model {model!r}; {choice}, a folder or a hub name")
