"""Silence between utterances: how much they leave themselves, and the frames that are inserted for a longer pause."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from higgs_audio.codec import HiggsAudioTokenizer

WINDOW_SECONDS = 0.01  # in which loudness is measured
SILENT_LEVEL = 0.03  # RMS relative to the loudest window, -30 dB: the level at which a listener hears a pause begin
LEAD_FRAMES = 4  # frames of an utterance in which its leading silence is measured: those of its first chunk


def trailing_silence(samples: NDArray[np.float32], sample_rate: int) -> float:
    """Returns the seconds of silence at the end of an utterance `[S]`; 0 if all of it is silent."""
    is_loud = _loudness(samples, sample_rate) >= silent_level(samples, sample_rate)
    return float(is_loud[::-1].argmax()) * WINDOW_SECONDS if len(is_loud) else 0.0


def leading_silence(samples: NDArray[np.float32], level: float, sample_rate: int) -> float:
    """Returns the seconds before the first window of `[S]` whose RMS reaches `level`."""
    windows = _loudness(samples, sample_rate)
    return float(np.append(windows >= level, True).argmax()) * WINDOW_SECONDS


def silent_level(samples: NDArray[np.float32], sample_rate: int) -> float:
    """Returns the RMS below which a window of `[S]` counts as silent."""
    return SILENT_LEVEL * float(_loudness(samples, sample_rate).max(initial=0.0))


def silent_frame(codec: HiggsAudioTokenizer) -> Tensor:
    """Returns the codes `[K, 1]` of a frame in the middle of silence."""
    frames = 25
    codes = codec.encode(torch.zeros(1, 1, frames * codec.config.hop_length, device=codec.device)).audio_codes
    assert codes is not None
    return codes[0, :, frames // 2 : frames // 2 + 1].cpu()


def num_silent_frames(seconds: float, frame_rate: float) -> int:
    """Returns the number of frames nearest to a duration; 0 for none."""
    return max(0, math.floor(seconds * frame_rate + 0.5))


def _loudness(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Returns the RMS of the whole windows of `[S]`, counted from its start."""
    width = round(WINDOW_SECONDS * sample_rate)
    windows = samples[: len(samples) // width * width].reshape(-1, width).astype(np.float64)
    return np.sqrt(np.square(windows).mean(axis=1))
