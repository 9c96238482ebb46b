"""Clips: recordings with their texts, and the deterministic order in which training reads them."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from higgs_audio.audio.files import read
from higgs_audio.errors import RecipeError

INT16 = 32_768


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


class Sounds:
    """The sound of clips at one rate: read from their files when asked for, or all held on one device.

    Held sound is int16, 2.9 MB a minute at 24 kHz: a GPU that takes fifty seconds of it in 40 ms would wait for files.

    Args:
        clips: at least one.
        sample_rate: in Hz.
        held_on: the device to hold all of them on; None reads files.
    """

    def __init__(self, clips: Sequence[Clip], sample_rate: int, held_on: torch.device | None = None) -> None:
        self._clips, self._rate, self._held = clips, sample_rate, None
        if held_on is None:
            return
        with ThreadPoolExecutor() as readers:  # decoders let go of the interpreter
            sounds = list(readers.map(self._short, clips))
        self._lengths = [len(sound) for sound in sounds]
        self._starts = [0, *itertools.accumulate(self._lengths)]
        self._held = torch.cat(sounds).to(held_on)

    def random_crops(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """`count` random stretches of `length` samples from random clips, `[count, length]`; short ones are repeated.

        The generator is a CPU's, and both ways draw the same stretches from it.
        """
        crops = torch.stack([self._crop(length, generator) for _ in range(count)])
        return crops if self._held is None else to_float(crops)

    def _crop(self, length: int, generator: torch.Generator) -> torch.Tensor:
        number = int(torch.randint(len(self._clips), (), generator=generator))
        sound = self._sound(number)
        repeats = -(-length // len(sound))
        start = int(torch.randint(len(sound) * repeats - length + 1, (), generator=generator))
        return (sound if repeats == 1 else sound.repeat(repeats))[start : start + length]

    def _sound(self, number: int) -> torch.Tensor:
        if self._held is None:
            return samples(self._clips[number], self._rate)
        return self._held[self._starts[number] : self._starts[number] + self._lengths[number]]

    def _short(self, clip: Clip) -> torch.Tensor:
        return to_short(samples(clip, self._rate))


def to_short(sound: torch.Tensor) -> torch.Tensor:
    """Sound in [-1, 1] in 16 bits."""
    return (sound * INT16).round().clamp(-INT16, INT16 - 1).to(torch.int16)


def to_float(sound: torch.Tensor) -> torch.Tensor:
    """`to_short` undone."""
    return sound.float() / INT16


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
