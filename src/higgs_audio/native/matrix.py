"""Matrices as C reads them (`matrix.h`): packed, a second time; in bfloat16 where that holds their numbers exactly, as
those of a checkpoint saved in it: half of the bytes, the same numbers.
"""

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

MULTIPLE = 16  # of which widths must be: the longest vector of vectors.h


class Matrix(ctypes.Structure):
    """One matrix, `matrix` in C."""

    _fields_ = [("panels", ctypes.c_void_p), ("out", ctypes.c_int64), ("in", ctypes.c_int64)]


class Packer:
    """Packs the matrices of one model and keeps what C points to.

    Args:
        library: of `native_library`.
        is_half: whether in bfloat16, for `are_half` matrices.
    """

    def __init__(self, library: ctypes.CDLL, is_half: bool) -> None:
        self._library, self._is_half = library, is_half
        self._panels: dict[int, Tensor] = {}  # by the weight that is in them: some models have one twice

    def __call__(self, weight: Tensor) -> Matrix:
        """A weight `[out, in]`, float32, contiguous, on the CPU."""
        key, panel = weight.data_ptr(), self._library.panel()
        if key not in self._panels:
            shape = -(-len(weight) // panel) * panel, weight.shape[1]
            panels = torch.empty(shape, dtype=torch.bfloat16 if self._is_half else torch.float32, device="cpu")
            self._library.pack(key, *weight.shape, self._is_half, panels.data_ptr())
            self._panels[key] = panels
        return Matrix(self._panels[key].data_ptr(), *weight.shape)


def are_half(matrices: Iterable[Tensor]) -> bool:
    """Whether bfloat16 holds all numbers; float32's lower 16 bits are then 0."""
    return all(not bool((matrix.detach().view(torch.int32) & 0xFFFF).any()) for matrix in matrices)
