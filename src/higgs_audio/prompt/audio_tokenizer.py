"""The audio tokenizer of a processor: checks that it fits, encodes recordings, and decodes codes."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.errors import AudioError, CheckpointError, OptionError
from higgs_audio.prompt.config import ProcessorConfig

if TYPE_CHECKING:
    from higgs_audio.codec import HiggsAudioTokenizer


def check_audio_tokenizer(codec: Any, config: ProcessorConfig) -> "HiggsAudioTokenizer":
    """Returns the audio tokenizer if it has the codebooks and sampling rate of the processor.

    Raises:
        OptionError: the object is not an audio tokenizer.
        CheckpointError: it has other codebooks or another rate.
    """
    if not hasattr(getattr(codec, "config", None), "codebook_size"):
        raise OptionError(
            f"the audio tokenizer is a {type(codec).__name__}; give a HiggsAudioTokenizer, or a function that loads one"
        )
    actual = (codec.config.num_codebooks, codec.config.codebook_size)
    expected = (config.audio_num_codebooks, config.audio_codebook_size)
    if actual != expected or codec.config.sample_rate != config.sampling_rate:
        raise CheckpointError(
            f"the audio tokenizer has {actual[0]} codebooks of {actual[1]} at {codec.config.sample_rate} Hz, the "
            f"processor requires {expected[0]} of {expected[1]} at {config.sampling_rate} Hz; use those of one model"
        )
    return codec


def check_waveform(waveform: Any) -> None:
    """Raises AudioError unless the recording is a `Waveform`."""
    if not isinstance(waveform, Waveform):
        raise AudioError(f"the recording is a {type(waveform).__name__}; give a Waveform, from read() or from_array()")


def encode_waveform(codec: "HiggsAudioTokenizer", waveform: Waveform) -> np.ndarray:
    """Encodes a recording at any rate as codes, int64 [K, F]."""
    samples = torch.from_numpy(resample(waveform, codec.config.sample_rate).samples)  # [S]
    codes = codec.encode(samples.to(codec.device)[None, None]).audio_codes  # [1, K, F]
    assert codes is not None
    return np.asarray(codes[0].cpu().numpy(), dtype=np.int64)


def decode_codes(codec: "HiggsAudioTokenizer", codes: Tensor) -> np.ndarray:
    """Decodes codes [K, F] to float32 samples [S]; clips them, because the decoder may slightly exceed [-1, 1]."""
    samples = codec.decode(codes.to(codec.device)[None]).audio_values  # [1, 1, S]
    assert samples is not None
    return np.asarray(samples[0, 0].float().clamp(-1, 1).cpu().numpy())
