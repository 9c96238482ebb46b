"""Clips: recordings with their texts, and the deterministic order in which training reads them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from higgs_audio.audio import read
from higgs_audio.errors import RecipeError


@dataclass(frozen=True)
class Clip:
    """One recording with its text.

    `audio` is a path; `seconds` its length; `split` "train" or "heldout"; `phones` are `(phone, start, end)` in
    seconds where a synthesizer told them; `scene` says in words where it was recorded; `reference` is the id of the
    clip that is to be heard before it.
    """

    id: str
    audio: Path
    text: str
    speaker: str
    seconds: float
    split: str = "train"
    phones: tuple[tuple[str, float, float], ...] = ()
    scene: str = ""
    reference: str = ""


def samples(clip: Clip, sample_rate: int) -> torch.Tensor:
    """The clip's sound, float32 `[S]`."""
    return torch.from_numpy(read(clip.audio, sample_rate).samples)


def random_crops(
    clips: Sequence[Clip], count: int, length: int, sample_rate: int, generator: torch.Generator
) -> torch.Tensor:
    """`count` random stretches of `length` samples from random clips, `[count, length]`; short ones are repeated."""
    crops = torch.empty(count, length)
    for row in range(count):
        clip = clips[int(torch.randint(len(clips), (), generator=generator))]
        sound = samples(clip, sample_rate)
        sound = sound.repeat(-(-length // len(sound)))  # [>= length]
        start = int(torch.randint(len(sound) - length + 1, (), generator=generator))
        crops[row] = sound[start : start + length]
    return crops


def length_batches(lengths: Sequence[int], budget: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices in batches of similar length, `longest * size <= budget` each; the order follows from (seed, epoch)."""
    rng = np.random.default_rng((seed, epoch))
    noisy = np.asarray(lengths) * rng.uniform(0.9, 1.1, len(lengths))
    batches: list[list[int]] = [[]]
    longest = 0
    for index in np.argsort(noisy, kind="stable"):
        longest = max(longest, lengths[index])
        if batches[-1] and longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(int(index))
    order = rng.permutation(len(batches))
    return [batches[i] for i in order]


def batch_order(lengths: Sequence[int], budget: int, seed: int, start: int) -> Iterator[list[int]]:
    """The endless series of batches over all epochs, from batch number `start` on.

    Raises RecipeError where one clip is longer than a batch may be.
    """
    if max(lengths) > budget:
        raise RecipeError(f"a batch holds {budget}, but the longest item alone is {max(lengths)}: raise the batch size")
    done = 0
    for epoch in itertools.count():
        for batch in length_batches(lengths, budget, seed, epoch):
            if done >= start:
                yield batch
            done += 1
