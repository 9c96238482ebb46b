"""The work of a harmonic head in C (`native/harmonic.c`), in float32 on a CPU."""

import ctypes

import torch
from torch import Tensor

from higgs_audio.codec.harmonic import LOG_CEILING, MIN_SINE, NOISE_PERIOD, HarmonicHead, Pitch, noise_spectra
from higgs_audio.native import NativeLinear, num_threads


class NativeHead:
    """`HeadKernels` in C, for one stream `[1, T, ...]`. What C cannot read, such as values under autocast, torch maps.

    Args:
        head: the head; its `n_fft` is a multiple of 16.
        library: from `native_library`.
    """

    def __init__(self, head: HarmonicHead, library: ctypes.CDLL) -> None:
        self._head, self._library = head, library
        self._filters = NativeLinear(library, head.filters.weight, head.filters.bias)

    def filters(self, hidden: Tensor, /) -> Tensor:
        if not is_plain(hidden):
            result: Tensor = self._head.filters(hidden)
            return result
        return self._filters(hidden[0])[None]

    def windowed_pulses(self, cycles: Tensor, pitch: Pitch, window: Tensor) -> Tensor:
        if not is_plain(cycles, pitch.hz, pitch.voiced, window):
            return self._head.windowed_pulses(cycles, pitch, window)
        inputs = [tensor.contiguous() for tensor in (cycles, pitch.hz, pitch.voiced, window)]
        frames = cycles.new_empty(*cycles.shape, len(window))  # [1, T, n_fft]
        self._library.higgs_pulses(
            *(tensor.data_ptr() for tensor in inputs),
            *(cycles.shape[1], len(window), self._head.sample_rate, MIN_SINE),
            *(frames.data_ptr(), num_threads()),
        )
        return frames

    def mix(self, filters: Tensor, pulses: Tensor, numbers: Tensor) -> Tensor:
        if not is_plain(filters) or pulses.dtype != torch.complex64:
            return self._head.mix(filters, pulses, numbers)
        noise = noise_spectra(self._head.n_fft, self._head.hop)
        inputs = [tensor.contiguous() for tensor in (filters, pulses, noise, numbers % NOISE_PERIOD)]
        spectra = torch.empty_like(inputs[1])  # [1, T, bins]
        self._library.higgs_mix(
            *(tensor.data_ptr() for tensor in inputs),
            *(pulses.shape[1], pulses.shape[2], LOG_CEILING, spectra.data_ptr(), num_threads()),
        )
        return spectra


def is_plain(*tensors: Tensor) -> bool:
    """Whether C can read the tensors: float32 and not under autocast."""
    return all(tensor.dtype == torch.float32 for tensor in tensors) and not torch.is_autocast_enabled("cpu")
