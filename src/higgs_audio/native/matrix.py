"""Packs weights for the C code (`matrix.h`): a second copy, in bfloat16 if that is exact, as for weights saved in it.
The copy then has the same values in half the bytes.
"""

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from higgs_audio.native.structs import MatrixStruct

WIDTH_MULTIPLE = 16  # widths must be multiples of the longest vector in vectors.h


class MatrixPacker:
    """Packs the matrices of one model and keeps the packed memory alive.

    Args:
        library: from `native_library`.
        is_bfloat16: whether to pack in bfloat16; requires `are_exact_in_bfloat16`.
    """

    def __init__(self, library: ctypes.CDLL, is_bfloat16: bool) -> None:
        self._library, self._is_bfloat16 = library, is_bfloat16
        self._panels: dict[int, Tensor] = {}  # by the address of the weight, which some models use twice

    def __call__(self, weight: Tensor) -> MatrixStruct:
        """Packs a weight `[out, in]`, float32, contiguous, on the CPU."""
        key, panel = weight.data_ptr(), self._library.higgs_panel_size()
        if key not in self._panels:
            shape = -(-len(weight) // panel) * panel, weight.shape[1]
            panels = torch.empty(shape, dtype=torch.bfloat16 if self._is_bfloat16 else torch.float32, device="cpu")
            self._library.higgs_pack_matrix(key, *weight.shape, self._is_bfloat16, panels.data_ptr())
            self._panels[key] = panels
        return MatrixStruct(self._panels[key].data_ptr(), *weight.shape)


def are_exact_in_bfloat16(matrices: Iterable[Tensor]) -> bool:
    """Whether bfloat16 represents all numbers exactly: the lower 16 bits of each float32 are then 0."""
    return all(not bool((matrix.detach().view(torch.int32) & 0xFFFF).any()) for matrix in matrices)
