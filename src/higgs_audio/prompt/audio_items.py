"""Audio items of a conversation: their codes, their log-mel windows for the audio tower, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from higgs_audio import special_tokens
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.audio.sources import AUDIO_KEYS, AudioSource, read_source, source_key
from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError, CodesError, PromptError
from higgs_audio.model.tower import MIN_MEL_FRAMES, num_features
from higgs_audio.prompt.config import ProcessorConfig
from higgs_audio.prompt.encoder import AudioInput
from higgs_audio.prompt.features import mel_windows
from higgs_audio.prompt.prompt import read_codes
from higgs_audio.prompt.template import Piece

MAX_FRAME_DIFFERENCE = 2  # between the numbers of codes and features of a recording, which are both rounded


@dataclass(frozen=True)
class AudioItemOptions:
    """How the audio items of one call are encoded.

    Attributes:
        config: determines whether audio in user and system turns is encoded as codes, as features, or as both.
        encode: encodes a recording as codes, int64 [K, F].
        sampling_rate: rate of arrays without a rate, in Hz.
        limits: limits on size, duration and downloads.
    """

    config: ProcessorConfig
    encode: Callable[[Waveform], np.ndarray]
    sampling_rate: int
    limits: AudioLimits


def encode_audio_items(pieces: Sequence[Piece], options: AudioItemOptions) -> list[list[AudioInput]]:
    """Encodes the audio pieces of a prompt; a recording longer than a window of the audio tower has several inputs.

    Raises:
        PromptError: an item without audio, or audio for which the model has no input.
        AudioError: an unusable recording.
        CodesError: unusable codes.
    """
    sources = [piece.source or {} for piece in pieces]
    if empty := [number for number, source in enumerate(sources) if not source]:
        raise PromptError(
            f"{len(sources) - len(empty)} recordings for {len(sources)} audio items: there is no audio in item "
            f"{empty[0]}; give it one of {', '.join(AUDIO_KEYS)}"
        )
    return [
        [AudioInput(_read_codes(source, options))]
        if _is_codes_only(piece, options.config)
        else _read_windows(source, options)
        for piece, source in zip(pieces, sources, strict=True)
    ]


def check_codes(source: AudioSource, config: ProcessorConfig) -> Tensor:
    """Returns the codes [K, F] of an audio item that has `codes`.

    Raises:
        CodesError: not integers [K, F], or a code outside the codebook.
        PromptError: no frames.
    """
    codes = read_codes(source["codes"], "an audio item")
    if codes.size and (highest := int(codes.max())) >= config.audio_codebook_size:
        raise CodesError(
            f"an audio item has the code {highest}; allowed: 0 to {config.audio_codebook_size - 1}. Give codes without "
            "stream bos and eos, as the audio tokenizer returns them"
        )
    return _check_shape(codes, config)


def _check_shape(codes: np.ndarray, config: ProcessorConfig) -> Tensor:
    num_codebooks = config.audio_num_codebooks
    if len(codes) != num_codebooks:
        raise CodesError(f"an audio item has codes of {len(codes)} codebooks; give integers [{num_codebooks}, F]")
    if codes.shape[1] == 0:
        raise PromptError("an audio item has no frames; give a recording, or omit the item")
    return torch.from_numpy(codes)


def _is_codes_only(piece: Piece, config: ProcessorConfig) -> bool:
    """Whether audio is encoded as codes only: the model's own audio, and all audio for a model without a tower."""
    return piece.content == special_tokens.AUDIO_OUT or not config.encode_whisper_embed


def _read_windows(source: AudioSource, options: AudioItemOptions) -> list[AudioInput]:
    """Returns the windows for the audio tower, with codes if the model reads both."""
    reads_codes = options.config.encode_audio_in_tokens
    recording = {key: value for key, value in source.items() if key != "codes"}
    if not recording and reads_codes:
        return [AudioInput(_read_codes(source, options))]
    if "codes" in source and not reads_codes:
        raise PromptError("this model does not accept codes in user and system turns; give the recording alone")
    waveform = read_source(recording, options.sampling_rate, options.limits)
    windows = _windows(waveform, options.config)
    if not reads_codes:
        return windows
    codes_source = {"codes": source["codes"]} if "codes" in source else {"audio": waveform}
    return _with_codes(windows, _read_codes(codes_source, options))


def _windows(waveform: Waveform, config: ProcessorConfig) -> list[AudioInput]:
    """Returns the windows of a recording; drops a last window that is too short for a feature."""
    windows = mel_windows(waveform, config.num_mel_bins, config.window_seconds)
    inputs = [AudioInput(None, mels, count) for mels, count in windows if count >= MIN_MEL_FRAMES]
    if not inputs:
        raise AudioError(
            f"the audio is shorter than {10 * MIN_MEL_FRAMES} ms, the minimum of the audio tower; give longer audio"
        )
    return inputs


def _with_codes(windows: Sequence[AudioInput], codes: Tensor) -> list[AudioInput]:
    """Splits codes [K, F] among the windows of their recording; the audio tower returns one feature per frame.

    Raises:
        CodesError: codes of another duration than the recording.
    """
    counts = [num_features(window.num_mels) for window in windows]
    if abs(codes.shape[1] - sum(counts)) > MAX_FRAME_DIFFERENCE:
        raise CodesError(
            f"codes of {codes.shape[1]} frames beside a recording of about {sum(counts)}; give the recording's own "
            "codes, or omit them"
        )
    ends = torch.tensor(counts).cumsum(0)[:-1]  # if there are fewer codes, the last windows have none
    parts = codes.tensor_split(ends, dim=1)
    return [replace(window, codes=part if part.shape[1] else None) for window, part in zip(windows, parts, strict=True)]


def _read_codes(source: AudioSource, options: AudioItemOptions) -> Tensor:
    """Returns the codes [K, F] of an audio item, given or encoded, on the CPU."""
    if source_key(source) == "codes":
        return check_codes(source, options.config)
    return _check_shape(options.encode(read_source(source, options.sampling_rate, options.limits)), options.config)
