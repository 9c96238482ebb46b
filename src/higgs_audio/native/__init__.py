"""What Python and torch are too slow for on a CPU, in C."""

from higgs_audio.native.library import native_library
from higgs_audio.native.matrix import MULTIPLE, Matrix, Packer, are_half

__all__ = ["MULTIPLE", "Matrix", "Packer", "are_half", "native_library"]
