"""A linear map in C (`linear.c`). The result of a row does not depend on the other rows."""

import ctypes

from torch import Tensor

from higgs_audio.native.matrix import MatrixPacker, are_exact_in_bfloat16
from higgs_audio.native.threads import num_threads


class NativeLinear:
    """Maps rows `[N, in]` to `[N, out]`, in float32 on the CPU.

    Args:
        library: from `native_library`.
        weight: `[out, in]`, contiguous.
        bias: `[out]`, contiguous; None for none. It is not copied.
    """

    def __init__(self, library: ctypes.CDLL, weight: Tensor, bias: Tensor | None) -> None:
        self._library, self._bias, self._is_bfloat16 = library, bias, are_exact_in_bfloat16([weight])
        self._pack = MatrixPacker(library, self._is_bfloat16)  # keeps the packed weights alive
        self._matrix, self._num_outputs = self._pack(weight), len(weight)

    def __call__(self, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        result = rows.new_empty(len(rows), self._num_outputs)
        work = rows.new_empty(self._library.higgs_linear_workspace(len(rows)))
        bias = None if self._bias is None else self._bias.data_ptr()
        self._library.higgs_linear(
            *(ctypes.byref(self._matrix), self._is_bfloat16, bias, rows.data_ptr(), len(rows)),
            *(result.data_ptr(), work.data_ptr(), num_threads()),
        )
        return result
