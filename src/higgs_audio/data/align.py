"""Forced alignment of frames and phones, by Viterbi over the CTC output of the semantic teacher."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import HubertForCTC

from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.codec.model import SEMANTIC_PADDING
from higgs_audio.codec.resample import resample
from higgs_audio.data.phones import phone_ids

SAMPLE_RATE = HiggsAudioTokenizerConfig.sample_rate  # 24 kHz
SEMANTIC_SAMPLE_RATE = HiggsAudioTokenizerConfig.semantic_sample_rate  # 16 kHz
STEPS_PER_FRAME = 2  # 50 teacher steps and 25 frames per second
BLANK = 0  # CTC label


@dataclass(frozen=True)
class Alignment:
    """The phone of each frame.

    Attributes:
        frames: `[F]`, index of the frame's phone in the phone string, at 25 frames per second.
        score: log-probability of the best path, divided by the number of phones. It is low for a clip whose audio does
            not match its text.
    """

    frames: np.ndarray
    score: float


def semantic_input(waveform: Tensor) -> Tensor:
    """Converts 24 kHz `[..., S]` to the teacher's input: 16 kHz, padded on both sides as the audio tokenizer pads."""
    return F.pad(resample(waveform, SAMPLE_RATE, SEMANTIC_SAMPLE_RATE), (SEMANTIC_PADDING, SEMANTIC_PADDING))


@torch.inference_mode()
def align(teacher: HubertForCTC, waveform: Tensor, phones: str, num_frames: int) -> Alignment:
    """Aligns the phones with a 24 kHz waveform `[S]` of `num_frames` frames of 40 ms.

    Raises:
        ValueError: the waveform is too short for the phones.
    """
    logits = teacher(semantic_input(waveform)[None]).logits[0]  # [T, P + 1]
    log_probs = logits.log_softmax(-1).double().numpy()
    path, total = viterbi(log_probs, phone_ids(phones))
    filled = nearest_phone(path)  # [T]
    steps = np.minimum(np.arange(num_frames) * STEPS_PER_FRAME, len(filled) - 1)
    return Alignment(filled[steps].astype(np.uint16), total / max(1, len(phones)))


def viterbi(log_probs: np.ndarray, ids: list[int]) -> tuple[np.ndarray, float]:
    """Finds the best CTC path of `ids` through `log_probs [T, P + 1]`.

    Returns:
        The index into `ids` at each step, -1 for blank, and the log-probability of the path.

    Raises:
        ValueError: `ids` requires more than T steps.
    """
    states = np.full(2 * len(ids) + 1, BLANK)
    states[1::2] = ids
    num_steps, num_states = len(log_probs), len(states)
    may_skip = np.zeros(num_states, dtype=bool)  # whether the blank between two different phones may be skipped
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    emitted = log_probs[:, states]  # [T, 2P + 1]
    score = np.full(num_states, -np.inf)
    score[:2] = emitted[0, :2]
    back = np.zeros((num_steps, num_states), dtype=np.int8)
    for t in range(1, num_steps):
        from_previous = np.concatenate([[-np.inf], score[:-1]])
        from_skip = np.where(may_skip, np.concatenate([[-np.inf, -np.inf], score[:-2]]), -np.inf)
        choices = np.stack([score, from_previous, from_skip])
        back[t] = choices.argmax(0)
        score = choices.max(0) + emitted[t]
    state = num_states - 1 if score[-1] >= score[-2] else num_states - 2
    total = float(score[state])
    if not np.isfinite(total):
        raise ValueError(f"{len(ids)} phones do not fit into {num_steps} frames")
    path = np.full(num_steps, -1)
    for t in range(num_steps - 1, -1, -1):
        path[t] = state // 2 if state % 2 else -1
        state -= int(back[t, state])
    return path, total


def nearest_phone(path: np.ndarray) -> np.ndarray:
    """Replaces the blanks of a path by the phone nearest in time; CTC emits each phone at one or two steps only."""
    emitted = np.flatnonzero(path >= 0)
    boundaries = (emitted[1:] + emitted[:-1] + 1) // 2  # first step that belongs to the later phone
    nearest = np.searchsorted(boundaries, np.arange(len(path)), side="right")
    return path[emitted[nearest]]
