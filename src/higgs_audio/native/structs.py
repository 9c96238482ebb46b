"""The structures that C reads, as ctypes."""

import ctypes

from higgs_audio.native import Matrix


class SamplerStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_lanes", "num_books", "num_ids", "window_width", "bos", "eos")),
        *((name, ctypes.c_void_p) for name in ("read", "unread", "made", "end", "min_frames", "max_frames", "top_k")),
        *((name, ctypes.c_void_p) for name in ("window", "repeats", "end_books", "is_random", "temperature", "top_p")),
        *((name, ctypes.c_void_p) for name in ("scale", "recent", "noise")),
        ("of_noise", ctypes.c_int64),
    ]


class FeedForwardStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("before", "between")),
        *((name, Matrix) for name in ("gate", "up", "down")),
    ]


class LayerStruct(ctypes.Structure):
    _fields_ = [
        *((name, Matrix) for name in ("query", "key", "value", "output")),
        *((name, FeedForwardStruct) for name in ("text", "audio")),
    ]


class ModelStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_layers", "width", "inner", "heads", "groups", "head_width")),
        ("is_half", ctypes.c_int64),
        ("layers", ctypes.POINTER(LayerStruct)),
        ("last", ctypes.c_void_p),
        ("head", Matrix),
        ("eps", ctypes.c_float),
    ]


class CacheStruct(ctypes.Structure):
    _fields_ = [
        ("state", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("of_layer", "of_value", "of_row", "of_group")),
    ]


class StepStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_rows", "num_text", "num_read")),
        *((name, ctypes.c_void_p) for name in ("sequences", "positions", "turns", "shared", "num_shared", "sizes")),
    ]
