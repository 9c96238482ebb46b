"""Clips: recordings with their texts, and the deterministic order in which training reads them."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from higgs_audio.audio.files import read
from higgs_audio.audio.waveform import PCM16_SCALE
from higgs_audio.errors import RecipeError


@dataclass(frozen=True)
class Clip:
    """One recording with its text.

    Attributes:
        id: unique name.
        audio: path of the audio file.
        text: the spoken text.
        speaker: name of the speaker.
        seconds: duration.
        split: "train" or "heldout".
        phones: `(phone, start, end)` in seconds, if a synthesizer provided them.
        scene: description of the place of the recording.
        reference: id of the clip that precedes this one as its voice reference.
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


def read_samples(clip: Clip, sample_rate: int) -> torch.Tensor:
    """Reads the waveform of a clip, float32 `[S]`.

    Raises:
        AudioError: the file cannot be read.
    """
    return torch.from_numpy(read(clip.audio, sample_rate).samples)


class ClipAudio:
    """Waveforms of clips at one sample rate, read from files on demand or kept in memory on one device.

    In memory they are int16, 2.9 MB per minute at 24 kHz. A GPU that processes fifty seconds of audio in 40 ms would
    otherwise wait for files.

    Args:
        clips: at least one.
        sample_rate: in Hz.
        device: device that keeps all waveforms; None to read files on demand.
    """

    def __init__(self, clips: Sequence[Clip], sample_rate: int, device: torch.device | None = None) -> None:
        self._clips, self._sample_rate, self._in_memory = clips, sample_rate, None
        if device is None:
            return
        with ThreadPoolExecutor() as readers:  # decoding releases the GIL
            waveforms = list(readers.map(self._read_int16, clips))
        self._lengths = [len(waveform) for waveform in waveforms]
        self._starts = [0, *itertools.accumulate(self._lengths)]
        self._in_memory = torch.cat(waveforms).to(device)

    def random_crops(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Draws `count` crops of `length` samples from random clips, `[count, length]`; short clips are repeated.

        The generator is on the CPU. Crops from files and from memory are the same.
        """
        crops = torch.stack([self._random_crop(length, generator) for _ in range(count)])
        return crops if self._in_memory is None else to_float(crops)

    def _random_crop(self, length: int, generator: torch.Generator) -> torch.Tensor:
        waveform = self._waveform(int(torch.randint(len(self._clips), (), generator=generator)))
        repeats = -(-length // len(waveform))
        start = int(torch.randint(len(waveform) * repeats - length + 1, (), generator=generator))
        return (waveform if repeats == 1 else waveform.repeat(repeats))[start : start + length]

    def _waveform(self, index: int) -> torch.Tensor:
        if self._in_memory is None:
            return read_samples(self._clips[index], self._sample_rate)
        return self._in_memory[self._starts[index] : self._starts[index] + self._lengths[index]]

    def _read_int16(self, clip: Clip) -> torch.Tensor:
        return to_int16(read_samples(clip, self._sample_rate))


def to_int16(waveform: torch.Tensor) -> torch.Tensor:
    """Converts a waveform in [-1, 1] to 16-bit integers; 16-bit files survive the round trip bit for bit."""
    return (waveform * PCM16_SCALE).round().clamp(-PCM16_SCALE, PCM16_SCALE - 1).to(torch.int16)


def to_float(waveform: torch.Tensor) -> torch.Tensor:
    """Converts 16-bit integers to a waveform in [-1, 1); the inverse of `to_int16`."""
    return waveform.float() / PCM16_SCALE


def length_batches(lengths: Sequence[int], budget: int, seed: int, epoch: int) -> list[list[int]]:
    """Groups indices into batches of similar length, `longest * size <= budget`; the order depends on (seed, epoch)."""
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
    """Yields the batches of all epochs, endlessly, from batch number `start` on.

    Raises:
        RecipeError: one clip is longer than the budget.
    """
    if max(lengths) > budget:
        raise RecipeError(f"the batch size is {budget}, but the longest clip has {max(lengths)}: increase the former")
    number = 0
    for epoch in itertools.count():
        for batch in length_batches(lengths, budget, seed, epoch):
            if number >= start:
                yield batch
            number += 1
