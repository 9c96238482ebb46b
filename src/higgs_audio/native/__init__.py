"""What Python and torch are too slow for on a CPU, in C."""

from higgs_audio.native.library import native_library
from higgs_audio.native.matrix import MULTIPLE, Matrix, Packer, are_half
from higgs_audio.native.threads import num_threads
from higgs_audio.native.watch import Watch, are_hooked

__all__ = [
    "MULTIPLE",
    "Matrix",
    "Packer",
    "Watch",
    "are_half",
    "are_hooked",
    "native_library",
    "num_threads",
]
