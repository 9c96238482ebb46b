"""ctypes mirrors of the C structures, with fields in the same order. `library.py` compares the sizes."""

import ctypes

Fields = list[tuple[str, type]]


def _int64(*names: str) -> Fields:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> Fields:
    return [(name, ctypes.c_void_p) for name in names]


class MatrixStruct(ctypes.Structure):
    """`matrix` of matrix.h: a packed matrix [out, in]."""

    _fields_ = [*_pointers("panels"), *_int64("out", "in")]


def _matrices(*names: str) -> Fields:
    return [(name, MatrixStruct) for name in names]


class SamplerStruct(ctypes.Structure):
    """`sampler` of sampler.c: one call for all sequences of a batch."""

    _fields_ = [
        *_int64("num_sequences", "num_codebooks", "num_ids", "window_width", "bos", "eos"),
        *_pointers("conditional_rows", "negative_rows", "num_columns", "end", "min_frames", "max_frames"),
        *_pointers("do_sample", "temperature", "top_k", "top_p", "ras_win_len", "ras_win_max_num_repeat"),
        *_pointers("text_guidance_scale", "eos_codebooks", "recent", "noise"),
        *_int64("noise_stride"),
    ]


class FeedForwardStruct(ctypes.Structure):
    """`feed_forward` of layers.c: the feed-forward network and the norms of either text or audio positions."""

    _fields_ = [*_pointers("input_norm", "post_attention_norm"), *_matrices("gate", "up", "down")]


class LayerStruct(ctypes.Structure):
    """`layer` of layers.c: one DualFFN decoder layer."""

    _fields_ = [
        *_matrices("query", "key", "value", "output"),
        ("text", FeedForwardStruct),
        ("audio", FeedForwardStruct),
    ]


class ModelStruct(ctypes.Structure):
    """`model` of layers.c: all decoder layers, the final norm and the audio head."""

    _fields_ = [
        *_int64("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim"),
        *_int64("is_bfloat16"),
        ("layers", ctypes.POINTER(LayerStruct)),
        *_pointers("final_norm"),
        *_matrices("head"),
        ("eps", ctypes.c_float),
    ]


class KVCacheStruct(ctypes.Structure):
    """`kv_cache` of layers.c: the keys and values of all slots, with strides in floats."""

    _fields_ = [*_pointers("state"), *_int64("layer_stride", "value_stride", "slot_stride", "head_stride")]


class BatchStruct(ctypes.Structure):
    """`batch` of layers.c: the positions of one forward pass."""

    _fields_ = [
        *_int64("num_rows", "num_text_rows", "num_logit_rows"),
        *_pointers("slots", "positions", "rotation", "shared", "num_shared", "shared_lengths"),
    ]


class ConvNeXtStruct(ctypes.Structure):
    """`convnext_block` of convnext.c."""

    _fields_ = [
        *_int64("width", "kernel", "left_padding", "is_bfloat16"),
        *_pointers("depthwise", "depthwise_bias", "norm_weight", "norm_bias"),
        *_matrices("expand", "contract"),
        *_pointers("expand_bias", "contract_bias", "scale"),
        ("eps", ctypes.c_float),
    ]


STRUCTS: dict[str, type[ctypes.Structure]] = {  # name in C -> mirror
    "matrix": MatrixStruct,
    "sampler": SamplerStruct,
    "feed_forward": FeedForwardStruct,
    "layer": LayerStruct,
    "model": ModelStruct,
    "kv_cache": KVCacheStruct,
    "batch": BatchStruct,
    "convnext_block": ConvNeXtStruct,
}
