"""Responses of the language model: checks token ids and delayed columns, and reverts the columns to codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from higgs_audio.audio.files import write
from higgs_audio.audio.waveform import from_array
from higgs_audio.delay import revert_delay
from higgs_audio.errors import AudioError, CodesError, OptionError, PromptError
from higgs_audio.prompt.prompt import read_codes


@dataclass(frozen=True)
class HiggsAudioResponse:
    """The response of the model.

    Attributes:
        audio: float32 [S] in [-1, 1]; None if the response has no complete frame.
        generated_text: the text beside the audio.
        sampling_rate: samples per second.
    """

    audio: np.ndarray | None
    generated_text: str
    sampling_rate: int


def read_ids(token_ids: Any, vocabulary_size: int) -> Tensor:
    """Returns token ids of any shape as int64.

    Raises:
        PromptError: not integers, or outside the vocabulary.
    """
    try:
        ids = torch.as_tensor(token_ids.copy() if isinstance(token_ids, np.ndarray) else token_ids)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PromptError(f"the token ids are {token_ids!r:.60}; give integers [T] or [B, T]") from error
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise PromptError(f"the token ids are {ids.dtype}; give integers [T] or [B, T]")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary_size):
        raise PromptError(
            f"token ids run from {int(ids.min())} to {int(ids.max())}; allowed: 0 to {vocabulary_size - 1}, the "
            "tokenizer's vocabulary. Give ids, not labels, of this tokenizer's model"
        )
    return ids.long()


def read_segments(segments: Any, num_codebooks: int, bos: int) -> list[Tensor]:
    """Returns the codes [K, F] of each generated segment; F may be 0.

    Args:
        segments: a list of delayed columns [K, n], one such matrix, or None for no segment.
        num_codebooks: K.
        bos: id of stream bos, the only id in the first column of a segment.

    Raises:
        CodesError: another type, or another number of codebooks.
    """
    if segments is None:
        return []
    segments = [segments] if isinstance(segments, (Tensor, np.ndarray)) else segments
    if not isinstance(segments, (list, tuple)):
        raise CodesError(f"the segments are a {type(segments).__name__}; give a list of delayed columns [K, n]")
    return [_read_segment(segment, num_codebooks, bos) for segment in segments]


def _read_segment(segment: Any, num_codebooks: int, bos: int) -> Tensor:
    delayed = torch.from_numpy(read_codes(segment, "a segment"))
    if len(delayed) != num_codebooks:
        raise CodesError(f"a segment has {len(delayed)} codebooks; give columns of {num_codebooks}, as the model's")
    if delayed.shape[1] and int(delayed[0, 0]) != bos:
        raise CodesError(f"a segment begins with {int(delayed[0, 0])}; pass all of it, from the column of {bos} on")
    return revert_delay(delayed)


def write_waveforms(audio: Any, saving_path: Any, sampling_rate: int, format: str | None = None) -> None:
    """Writes one waveform, or a list of waveforms to a list of files; see `HiggsAudioProcessor.save_audio`."""
    waveforms: Sequence[Any] = audio if isinstance(audio, (list, tuple)) else [audio]
    paths = saving_path if isinstance(saving_path, (list, tuple)) else [saving_path]
    if not all(isinstance(path, (str, Path)) for path in paths):
        raise OptionError(f"saving_path={saving_path!r:.60}; give a path, or a list with one for each waveform")
    if len(waveforms) != len(paths):
        raise PromptError(f"{len(waveforms)} waveforms and {len(paths)} files; give one path for each waveform")
    if any(waveform is None for waveform in waveforms):
        raise AudioError("there is no audio to save: the response has none; render the prompt with force_audio=True")
    for waveform, path in zip(waveforms, paths, strict=True):
        samples = waveform.detach().float().cpu().numpy() if isinstance(waveform, Tensor) else waveform
        write(from_array(samples, sampling_rate), path, format=format)
