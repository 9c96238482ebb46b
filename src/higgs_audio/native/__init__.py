"""What Python and torch are too slow for on a CPU, in C."""

from higgs_audio.native.library import native_library as native_library
