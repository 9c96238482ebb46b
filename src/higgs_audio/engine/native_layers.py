"""The layers of a model as one call of compiled C (`native/layers.c`), for models in float32 on a CPU.

Without a compiler, or for a model that C does not know, torch does it.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from higgs_audio.engine.kv_cache import KVCache, Shared
from higgs_audio.model.layers import DualFFNLayer, FeedForward, RMSNorm
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.native import MULTIPLE, Packer, Watch, are_half, are_hooked, native_library, num_threads
from higgs_audio.native.structs import CacheStruct, FeedForwardStruct, LayerStruct, ModelStruct, StepStruct

WATCHED = ("model.layers", "model.norm", "audio_lm_head")  # modules that C stands for
MAX_BYTES = 2 << 30  # of packed weights; the products of larger models are fast enough in torch


class NativeTrunk:
    """Forward passes of one model's layers.

    Args:
        model: one that `fits`.
        turns: of `runner.turning`, `[T, 2, 1, H]` float32.
        library: of `native_library`.
    """

    def __init__(self, model: HiggsAudioForConditionalGeneration, turns: Tensor, library: ctypes.CDLL) -> None:
        self._library, self._turns = library, turns.contiguous()
        self._watch, parts = Watch(model, WATCHED), list(_parts(model))
        self._is_half = are_half(part.weight for part in parts if isinstance(part, nn.Linear))
        self._pack = Packer(library, self._is_half)
        layers = [self._layer(layer) for layer in model.model.layers]
        attention, norm = model.model.layers[0].self_attn, model.model.norm
        self._num_logits = model.audio_lm_head.out_features
        self._model = ModelStruct(
            len(layers),
            model.model.text_config.hidden_size,
            model.model.layers[0].mlp.gate_proj.out_features,
            attention.q_proj.out_features // attention.head_dim,
            attention.k_proj.out_features // attention.head_dim,
            attention.head_dim,
            self._is_half,
            (LayerStruct * len(layers))(*layers),
            norm.weight.data_ptr(),
            self._pack(model.audio_lm_head.weight),
            norm.eps,
        )

    @property
    def is_current(self) -> bool:
        """Whether the model still has the weights that were packed, unchanged, and no hooks that C would not call."""
        return self._watch.is_current

    def __call__(
        self,
        rows: Tensor,
        num_text: int,
        num_read: int,
        sequences: Tensor,
        positions: Tensor,
        cache: KVCache,
        shared: Shared | None = None,
    ) -> Tensor:
        """Embeddings to logits; keys and values go into the cache.

        Args:
            rows: `[N, D]`, text first, then audio; written to.
            num_text: rows that are text.
            num_read: the last rows, whose logits are wanted.
            sequences, positions: `[N]`, rows of the cache and places in them; of a sequence in order, without holes.
            cache: with room for them, float32.
            shared: where the beginnings of the N rows lie too.

        Returns:
            `[num_read, K (V + 2)]`.
        """
        assert len(rows) == len(sequences) == len(positions)
        assert sequences.dtype == positions.dtype == torch.long and rows.device.type == "cpu"
        rows = rows.float()
        rows, sequences, positions = (tensor.contiguous() for tensor in (rows, sequences, positions))
        state, threads = cache.state, num_threads()
        length = state.shape[4]
        logits = rows.new_empty(num_read, self._num_logits)
        work = rows.new_empty(self._library.workspace(ctypes.byref(self._model), len(rows), threads, length))
        layer, pair, row, group = state.stride()[:4]
        where = [tensor.data_ptr() for tensor in (sequences, positions, self._turns)]
        if shared is not None:
            where += [tensor.data_ptr() for tensor in (shared.pointers, shared.counts, shared.sizes)]
        self._library.forward(
            ctypes.byref(self._model),
            ctypes.byref(CacheStruct(state.data_ptr(), layer, pair, row, group)),
            ctypes.byref(StepStruct(len(rows), num_text, num_read, *where)),
            *(tensor.data_ptr() for tensor in (rows, logits, work)),
            threads,
            length,
        )
        return logits

    def _layer(self, layer: DualFFNLayer) -> LayerStruct:
        attention = layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        matrices = (self._pack(projection.weight) for projection in projections)
        return LayerStruct(*matrices, self._feed(*layer.of_text), self._feed(*layer.of_audio))

    def _feed(self, before: RMSNorm, between: RMSNorm, feed: FeedForward) -> FeedForwardStruct:
        matrices = (self._pack(part.weight) for part in (feed.gate_proj, feed.up_proj, feed.down_proj))
        return FeedForwardStruct(before.weight.data_ptr(), between.weight.data_ptr(), *matrices)


def native_trunk(model: HiggsAudioForConditionalGeneration, turns: Tensor) -> NativeTrunk | None:
    """The model's layers in C; None where they cannot be."""
    library = native_library() if fits(model) else None
    return None if library is None else NativeTrunk(model, turns, library)


def fits(model: HiggsAudioForConditionalGeneration) -> bool:
    """Whether C knows such a model: float32 on a CPU, no biases, widths that are multiples of 16, SiLU, no hooks.

    It must not be too large to be packed, either.
    """
    parts = list(_parts(model))
    linears = [part for part in parts if type(part) is nn.Linear]
    return (
        all(type(part) in (nn.Linear, RMSNorm) for part in parts)
        and all(part.weight.device.type == "cpu" and part.weight.dtype == torch.float32 for part in parts)
        and all(part.weight.is_contiguous() for part in parts)
        and all(part.bias is None and part.in_features % MULTIPLE == 0 for part in linears)
        and model.model.layers[0].self_attn.head_dim % MULTIPLE == 0
        and all(isinstance(feed.act, (nn.SiLU, SiLUActivation)) for feed in _feeds(model))
        and not are_hooked(part for name in WATCHED for part in model.get_submodule(name).modules())
        and _is_small([linear.weight for linear in linears])
    )


def _parts(model: HiggsAudioForConditionalGeneration) -> Iterator[Any]:
    """What has the weights."""
    for layer in model.model.layers:
        attention = layer.self_attn
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        for before, between, feed in (layer.of_text, layer.of_audio):
            yield from (before, between, feed.gate_proj, feed.up_proj, feed.down_proj)
    yield from (model.model.norm, model.audio_lm_head)


def _feeds(model: HiggsAudioForConditionalGeneration) -> list[FeedForward]:
    return [feed for layer in model.model.layers for _, _, feed in (layer.of_text, layer.of_audio)]


def _is_small(matrices: list[Tensor]) -> bool:
    """Whether they may be packed, every one once. Whether bfloat16 holds them is asked last: all are read for it."""
    size = sum({matrix.data_ptr(): matrix.numel() for matrix in matrices}.values())
    return 4 * size <= MAX_BYTES or (2 * size <= MAX_BYTES and are_half(matrices))
