"""AudioItemOptions: how an audio item of a conversation becomes codes, log-mel windows for the audio tower, or both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from higgs_audio import special_tokens
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.audio.sources import AUDIO_KEYS, read_source, source_key
from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError, CodesError, PromptError
from higgs_audio.model.tower import MIN_MELS, num_features
from higgs_audio.prompt.config import ProcessorConfig
from higgs_audio.prompt.encoder import AudioInput
from higgs_audio.prompt.features import mel_windows
from higgs_audio.prompt.prompt import read_codes
from higgs_audio.prompt.template import Piece

ROUNDING = 2  # frames by which the codes of a recording may be more or fewer than its features


@dataclass(frozen=True)
class AudioItemOptions:
    """How the audio items of one call are heard.

    Attributes:
        config: what audio in user and system turns becomes.
        encode: a recording -> its codes, int64 [K, F].
        sampling_rate: of arrays that come without one, in Hz.
        limits: of size, duration and downloads.
    """

    config: ProcessorConfig
    encode: Callable[[Waveform], np.ndarray]
    sampling_rate: int
    limits: AudioLimits


def encode_audio_items(pieces: Sequence[Piece], hearing: AudioItemOptions) -> list[list[AudioInput]]:
    """The audio pieces of a prompt -> what stands for each of them.

    Raises:
        PromptError: an item without a recording, or one that the model cannot read. AudioError, CodesError: a recording
            or codes that cannot be used.
    """
    sources = [piece.source or {} for piece in pieces]
    if lacking := [number for number, source in enumerate(sources) if not source]:
        raise PromptError(
            f"{len(sources) - len(lacking)} recordings for {len(sources)} audio items: item {lacking[0]} has none, so "
            f"no audio in it; give it one of {', '.join(AUDIO_KEYS)}"
        )
    return [
        [AudioInput(_codes(source, hearing))] if _is_spoken(piece, hearing) else _listen(source, hearing)
        for piece, source in zip(pieces, sources, strict=True)
    ]


def _is_spoken(piece: Piece, hearing: AudioItemOptions) -> bool:
    """Whether codes alone stand for an audio: what the model says, and everything where it has no audio tower."""
    return piece.content == special_tokens.AUDIO_OUT or not hearing.config.encode_whisper_embed


def _listen(source: Mapping[str, Any], hearing: AudioItemOptions) -> list[AudioInput]:
    """The windows that the audio tower hears, with codes where the model reads both."""
    reads_codes = hearing.config.encode_audio_in_tokens
    sound = {key: value for key, value in source.items() if key != "codes"}
    if not sound and reads_codes:
        return [AudioInput(_codes(source, hearing))]
    if "codes" in source and not reads_codes:
        raise PromptError("this model reads no codes in user and system turns; give the recording alone")
    waveform = read_source(sound, hearing.sampling_rate, hearing.limits)
    windows = _windows(waveform, hearing.config)
    if not reads_codes:
        return windows
    given = {"codes": source["codes"]} if "codes" in source else {"audio": waveform}
    return _with_codes(windows, _codes(given, hearing))


def _windows(waveform: Waveform, config: ProcessorConfig) -> list[AudioInput]:
    """The windows of a recording, but for a rest too short to be heard."""
    windows = mel_windows(waveform, config.num_mel_bins, config.window_seconds)
    heard = [AudioInput(None, mels, count) for mels, count in windows if count >= MIN_MELS]
    if not heard:
        raise AudioError(f"the audio has less than {10 * MIN_MELS} ms, too little to be heard; give a longer one")
    return heard


def _with_codes(windows: Sequence[AudioInput], codes: Tensor) -> list[AudioInput]:
    """Windows with each its part of the recording's codes [K, F]; the audio tower gives a feature for each frame.

    Raises:
        CodesError: the codes are not of this recording: a second of them is another than a second of it.
    """
    counts = [num_features(window.num_mels) for window in windows]
    if abs(codes.shape[1] - sum(counts)) > ROUNDING:
        raise CodesError(
            f"codes of {codes.shape[1]} frames beside a recording of about {sum(counts)}; give the recording's own, or "
            "leave them out"
        )
    ends = torch.tensor(counts).cumsum(0)[:-1]  # codes may be fewer: the last windows then have none
    parts = codes.tensor_split(ends, dim=1)
    return [replace(heard, codes=part if part.shape[1] else None) for heard, part in zip(windows, parts, strict=True)]


def _codes(source: Mapping[str, Any], hearing: AudioItemOptions) -> Tensor:
    """An audio item -> its codes [K, F], on the CPU."""
    if source_key(source) == "codes":
        codes = read_codes(source["codes"], "an audio item")
    else:
        codes = hearing.encode(read_source(source, hearing.sampling_rate, hearing.limits))
    num_codebooks = hearing.config.audio_num_codebooks
    if len(codes) != num_codebooks:
        raise CodesError(f"an audio item has codes of {len(codes)} codebooks; give integers [{num_codebooks}, F]")
    if codes.shape[1] == 0:
        raise PromptError("an audio item holds no frames; give a recording, or leave the item out")
    return torch.from_numpy(codes)
