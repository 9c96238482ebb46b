"""All layers of a model in one C call (`native/layers.c`), for models in float32 on a CPU.

Without a C compiler, and for models that the C code does not support, torch runs the layers.
"""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from higgs_audio.engine.kv_cache import KVCache, SharedPrefixes
from higgs_audio.model.layers import DualFFNLayer, FeedForward, RMSNorm
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.native import (
    WIDTH_MULTIPLE,
    MatrixPacker,
    ModuleSnapshot,
    are_exact_in_bfloat16,
    have_hooks,
    native_library,
    num_threads,
)
from higgs_audio.native.structs import BatchStruct, FeedForwardStruct, KVCacheStruct, LayerStruct, ModelStruct

REPLACED = ("model.layers", "model.norm", "audio_lm_head")  # submodules that C replaces
MAX_BYTES = 2 << 30  # limit of packed weights; torch's matrix products are fast enough for larger models


class NativeLayers:
    """Forward passes through the layers of one model, its final norm and its audio head.

    Args:
        model: a model for which `is_supported` returns True.
        rotation: `[T, 2, 1, H]` float32, from `rotation_factors`.
        library: from `native_library`.

    Attributes:
        is_bfloat16: whether all weights are exact in bfloat16 and therefore packed in it.
    """

    def __init__(self, model: HiggsAudioForConditionalGeneration, rotation: Tensor, library: ctypes.CDLL) -> None:
        self._library, self._rotation = library, rotation.contiguous()
        self._snapshot = ModuleSnapshot(model, REPLACED)
        self.is_bfloat16 = are_exact_in_bfloat16(
            module.weight for module in _weighted_modules(model) if isinstance(module, nn.Linear)
        )
        self._pack = MatrixPacker(library, self.is_bfloat16)
        layers = [self._layer_struct(layer) for layer in model.model.layers]
        attention, norm = model.model.layers[0].self_attn, model.model.norm
        self._num_logits = model.audio_lm_head.out_features
        self._struct = ModelStruct(
            len(layers),
            model.model.text_config.hidden_size,
            model.model.layers[0].mlp.gate_proj.out_features,
            attention.q_proj.out_features // attention.head_dim,
            attention.k_proj.out_features // attention.head_dim,
            attention.head_dim,
            self.is_bfloat16,
            (LayerStruct * len(layers))(*layers),
            norm.weight.data_ptr(),
            self._pack(model.audio_lm_head.weight),
            norm.eps,
        )

    @property
    def is_current(self) -> bool:
        """Whether the model still has the weights that were packed, and no hooks, which C would not call."""
        return self._snapshot.is_current

    def __call__(
        self,
        rows: Tensor,
        num_text_rows: int,
        num_logit_rows: int,
        slots: Tensor,
        positions: Tensor,
        cache: KVCache,
        shared: SharedPrefixes | None = None,
    ) -> Tensor:
        """Runs embeddings through the layers; keys and values are written to the cache.

        Args:
            rows: `[N, D]` embeddings, text first, then audio; overwritten.
            num_text_rows: number of text rows.
            num_logit_rows: number of last rows for which logits are computed.
            slots, positions: `[N]`, slot of the cache and position in it; consecutive positions within a slot.
            cache: a float32 cache with memory for them.
            shared: prefixes that slots share, for each of the N rows.

        Returns:
            Logits `[num_logit_rows, K (V + 2)]`.
        """
        assert len(rows) == len(slots) == len(positions)
        assert slots.dtype == positions.dtype == torch.long and rows.device.type == "cpu"
        rows = rows.float()
        rows, slots, positions = (tensor.contiguous() for tensor in (rows, slots, positions))
        state, threads = cache.state, num_threads()
        length = state.shape[4]
        logits = rows.new_empty(num_logit_rows, self._num_logits)
        model = ctypes.byref(self._struct)
        work = rows.new_empty(self._library.higgs_forward_workspace(model, len(rows), length))
        pointers = [tensor.data_ptr() for tensor in (slots, positions, self._rotation)]
        if shared is not None:
            pointers += [tensor.data_ptr() for tensor in (shared.pointers, shared.counts, shared.lengths)]
        layer_stride, value_stride, slot_stride, head_stride = state.stride()[:4]
        self._library.higgs_forward(
            model,
            ctypes.byref(KVCacheStruct(state.data_ptr(), layer_stride, value_stride, slot_stride, head_stride)),
            ctypes.byref(BatchStruct(len(rows), num_text_rows, num_logit_rows, *pointers)),
            *(tensor.data_ptr() for tensor in (rows, logits, work)),
            threads,
            length,
        )
        return logits

    def _layer_struct(self, layer: DualFFNLayer) -> LayerStruct:
        attention = layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        matrices = (self._pack(projection.weight) for projection in projections)
        return LayerStruct(
            *matrices, self._feed_forward_struct(*layer.text_modules), self._feed_forward_struct(*layer.audio_modules)
        )

    def _feed_forward_struct(
        self, input_norm: RMSNorm, post_attention_norm: RMSNorm, feed_forward: FeedForward
    ) -> FeedForwardStruct:
        projections = (feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj)
        matrices = (self._pack(projection.weight) for projection in projections)
        return FeedForwardStruct(input_norm.weight.data_ptr(), post_attention_norm.weight.data_ptr(), *matrices)


def native_layers(model: HiggsAudioForConditionalGeneration, rotation: Tensor) -> NativeLayers | None:
    """Returns the model's layers in C; None without a compiler, or if `is_supported` returns False."""
    library = native_library() if is_supported(model) else None
    return None if library is None else NativeLayers(model, rotation, library)


def is_supported(model: HiggsAudioForConditionalGeneration) -> bool:
    """Whether C can run the model.

    The model must be in float32 on a CPU, without biases and hooks, with widths that are multiples of 16, SiLU, and
    packed weights of at most `MAX_BYTES`.
    """
    modules = list(_weighted_modules(model))
    linears = [module for module in modules if type(module) is nn.Linear]
    return (
        all(type(module) in (nn.Linear, RMSNorm) for module in modules)
        and all(module.weight.device.type == "cpu" and module.weight.dtype == torch.float32 for module in modules)
        and all(module.weight.is_contiguous() for module in modules)
        and all(linear.bias is None and linear.in_features % WIDTH_MULTIPLE == 0 for linear in linears)
        and model.model.layers[0].self_attn.head_dim % WIDTH_MULTIPLE == 0
        and all(isinstance(feed.act, (nn.SiLU, SiLUActivation)) for feed in _feed_forwards(model))
        and not have_hooks(module for name in REPLACED for module in model.get_submodule(name).modules())
        and _is_small([linear.weight for linear in linears])
    )


def _weighted_modules(model: HiggsAudioForConditionalGeneration) -> Iterator[nn.Linear | RMSNorm]:
    """Yields the modules with weights, in the order of the forward pass."""
    for layer in model.model.layers:
        attention = layer.self_attn
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        for input_norm, post_attention_norm, feed in (layer.text_modules, layer.audio_modules):
            yield from (input_norm, post_attention_norm, feed.gate_proj, feed.up_proj, feed.down_proj)
    yield from (model.model.norm, model.audio_lm_head)


def _feed_forwards(model: HiggsAudioForConditionalGeneration) -> list[FeedForward]:
    return [feed for layer in model.model.layers for _, _, feed in (layer.text_modules, layer.audio_modules)]


def _is_small(matrices: list[Tensor]) -> bool:
    """Whether the packed matrices, each counted once, need at most `MAX_BYTES`.

    Exactness in bfloat16 is checked last, because that reads all weights.
    """
    size = sum({matrix.data_ptr(): matrix.numel() for matrix in matrices}.values())
    return 4 * size <= MAX_BYTES or (2 * size <= MAX_BYTES and are_exact_in_bfloat16(matrices))
