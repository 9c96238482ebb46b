"""C code for CPUs, for operations on tensors so small that per-operation overhead dominates in torch."""

from higgs_audio.native.library import native_library
from higgs_audio.native.linear import NativeLinear
from higgs_audio.native.matrix import WIDTH_MULTIPLE, MatrixPacker, are_exact_in_bfloat16
from higgs_audio.native.snapshot import ModuleSnapshot, have_hooks
from higgs_audio.native.status import native_status
from higgs_audio.native.threads import num_threads, one_torch_thread

__all__ = [
    "WIDTH_MULTIPLE",
    "MatrixPacker",
    "ModuleSnapshot",
    "NativeLinear",
    "are_exact_in_bfloat16",
    "have_hooks",
    "native_library",
    "native_status",
    "num_threads",
    "one_torch_thread",
]
