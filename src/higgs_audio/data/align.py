"""Which phone sounds in which frame: Viterbi alignment of a known phone string with the teacher's CTC output."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import HubertForCTC

from higgs_audio.codec.resample import resample
from higgs_audio.data.phones import phone_ids

SAMPLE_RATE = 24_000  # of the tokenizer
SEMANTIC_RATE = 16_000  # of HuBERT
SEMANTIC_PAD = 160  # samples on each side, as the tokenizer pads (half of HuBERT's first frame)


def semantic_input(waveform: Tensor) -> Tensor:
    """24 kHz `[..., S]` to what the teacher hears: 16 kHz, padded by SEMANTIC_PAD on both sides."""
    return torch.nn.functional.pad(resample(waveform, SAMPLE_RATE, SEMANTIC_RATE), (SEMANTIC_PAD, SEMANTIC_PAD))


BLANK = 0


@dataclass(frozen=True)
class Alignment:
    """`frames [F]`: index into the phone string of the phone heard in each frame, at `frame_rate` 25.

    `score` is the mean log-probability of the best path per phone; a clip that does not say its text scores low.
    """

    frames: np.ndarray
    score: float


@torch.inference_mode()
def align(teacher: HubertForCTC, waveform: Tensor, phones: str, num_frames: int) -> Alignment:
    """Aligns the phones with a 24 kHz waveform `[S]` of `num_frames` frames of 40 ms.

    Raises ValueError where there are more phones than the teacher has frames to put them.
    """
    logits = teacher(semantic_input(waveform)[None]).logits[0]  # [T, P + 1], 50 a second
    log_probs = logits.log_softmax(-1).double().numpy()
    path, total = viterbi(log_probs, phone_ids(phones))
    spread = nearest_phone(path)  # [T]
    at = np.minimum(np.arange(num_frames) * 2, len(spread) - 1)
    return Alignment(spread[at].astype(np.uint16), total / max(1, len(phones)))


def viterbi(log_probs: np.ndarray, ids: list[int]) -> tuple[np.ndarray, float]:
    """The best CTC path of `ids` through `log_probs [T, P + 1]`: the phone index of each step, -1 for blank."""
    states = np.full(2 * len(ids) + 1, BLANK)
    states[1::2] = ids
    steps, width = len(log_probs), len(states)
    may_skip = np.zeros(width, dtype=bool)  # from two states back: between two different phones
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    emitted = log_probs[:, states]  # [T, 2P + 1]
    score = np.full(width, -np.inf)
    score[:2] = emitted[0, :2]
    back = np.zeros((steps, width), dtype=np.int8)
    for t in range(1, steps):
        one = np.concatenate([[-np.inf], score[:-1]])
        two = np.where(may_skip, np.concatenate([[-np.inf, -np.inf], score[:-2]]), -np.inf)
        choices = np.stack([score, one, two])
        back[t] = choices.argmax(0)
        score = choices.max(0) + emitted[t]
    state = width - 1 if score[-1] >= score[-2] else width - 2
    total = float(score[state])
    if not np.isfinite(total):
        raise ValueError(f"{len(ids)} phones do not fit into {steps} frames")
    path = np.full(steps, -1)
    for t in range(steps - 1, -1, -1):
        path[t] = state // 2 if state % 2 else -1
        state -= int(back[t, state])
    return path, total


def nearest_phone(path: np.ndarray) -> np.ndarray:
    """Fills the blanks of a path with the phone nearer in time; a CTC network names a phone at one or two steps."""
    named = np.flatnonzero(path >= 0)
    middle = (named[1:] + named[:-1] + 1) // 2  # first step that belongs to the later phone
    owner = np.searchsorted(middle, np.arange(len(path)), side="right")
    return path[named[owner]]
