"""Forward passes of a model over the KV cache: prompts in chunks, then one decode step for all slots together."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from higgs_audio.engine.cache_views import DecodeView, PrefillChunk, PrefillView
from higgs_audio.engine.fused import FusedLayer, FusedNorm, is_plain, rotation_factors
from higgs_audio.engine.kv_cache import KVCache, SharedPrefixes
from higgs_audio.engine.native_layers import native_layers
from higgs_audio.errors import OptionError, nearest
from higgs_audio.generation.checks import audio_mask
from higgs_audio.model.layers import Route
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

BACKENDS = ("sdpa", "eager")  # attention implementations that take a mask


class ModelRunner:
    """Runs one model on one cache.

    Args:
        model: the model, in eval mode.
        cache: a cache of the model's sizes.
        fused: whether to run plain layers in few operations, in C (`NativeLayers`) or in torch with joined projections
            (`FusedLayer`); has no effect unless all layers are plain. None for True.

    Attributes:
        fused: whether layers run in few operations.
        native: the layers in C; None if torch runs them.

    Raises:
        OptionError: an attention implementation that accepts no mask.
    """

    def __init__(self, model: HiggsAudioForConditionalGeneration, cache: KVCache, fused: bool | None = None) -> None:
        self.model, self.cache = model, cache
        self._decoder = model.model
        backend = self._decoder.text_config._attn_implementation
        if backend not in BACKENDS:
            raise OptionError(
                f"attn_implementation={backend!r} does not accept the masks of the engine; "
                f"{nearest(str(backend), BACKENDS)}"
            )
        self._is_mask_added = backend == "eager"
        plain = all(is_plain(layer) for layer in self._decoder.layers)
        self.fused = plain if fused is None else fused and plain
        positions = torch.arange(cache.max_positions, device=model.device)[None]
        self._rotation = rotation_factors(*self._decoder.rotary_emb(positions, model.dtype))  # [T, 2, 1, H]
        self.native = native_layers(model, self._rotation) if self.fused else None
        is_joined = self.fused and self.native is None
        self._fused_layers = [FusedLayer(layer) for layer in self._decoder.layers] if is_joined else []
        norm = self._decoder.norm
        self._final_norm = FusedNorm(norm) if self.fused and is_plain(norm) else norm

    @property
    def is_current(self) -> bool:
        """Whether the packed or joined weights are still the model's; False after it was moved or converted."""
        fused = all(layer.is_current for layer in self._fused_layers)
        native = self.native is None or self.native.is_current
        return self.cache.matches(self.model.device, self.model.dtype) and fused and native

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the result of a position is bitwise independent of the rest of its batch."""
        return self.native is not None

    def prefill_cost(self, sizes: Sequence[int]) -> int:
        """Returns the number of positions that are computed for chunks of these sizes; torch pads shorter chunks."""
        return sum(sizes) if self.is_batch_invariant else len(sizes) * max(sizes, default=0)

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """Writes the keys and values of chunks of prompts, each to its own slot."""
        length = max(chunk.stop for chunk in chunks)
        self.cache.reserve(1 + max(chunk.slot for chunk in chunks), length)
        if self.native is None:
            self._prefill_in_torch(chunks, length)
            return
        ids = torch.cat([chunk.ids for chunk in chunks])  # [N]
        columns = torch.cat([chunk.columns for chunk in chunks])  # [F, K]
        audio = audio_mask(ids, self.model.config)  # [N]
        order = torch.cat([(~audio).nonzero(), audio.nonzero()])[:, 0]
        text = self._decoder.embed_tokens(ids[~audio])
        rows = torch.cat([text, self._decoder.embed_audio_tokens(columns)])  # [N, D]
        slots = torch.cat([torch.full_like(chunk.ids, chunk.slot) for chunk in chunks])
        positions = torch.cat([chunk.positions for chunk in chunks])
        self.native(rows, len(text), 0, slots[order], positions[order], self.cache)

    def _prefill_in_torch(self, chunks: Sequence[PrefillChunk], length: int) -> None:
        """Runs one batch `[B, t]`, shorter chunks padded on the right."""
        device = self.model.device
        padding = self.model.config.pad_token_id or 0
        ids = pad_sequence([chunk.ids for chunk in chunks], True, padding).to(device)  # [B, t]
        positions = pad_sequence([chunk.positions for chunk in chunks], True).to(device)  # [B, t]
        attended = pad_sequence([torch.ones_like(chunk.ids) for chunk in chunks], True).to(device)  # [B, t]
        columns = pad_sequence([chunk.columns for chunk in chunks], True).to(device)  # [B, F, K]
        columns_mask = pad_sequence([torch.ones(len(chunk.columns)).bool() for chunk in chunks], True).to(device)
        codes = (columns, columns_mask) if columns.shape[1] else (None, None)  # [B, F, K], [B, F]
        route, embeds = self._decoder.embed(ids, attended, *codes, None, None)
        rotary = self._decoder.rotary_emb(positions, embeds.dtype)
        visible = torch.arange(length, device=device) <= positions[:, :, None]  # [B, t, T]
        is_whole = not self._is_mask_added and all(len(chunk.ids) == length for chunk in chunks)
        mask = None if is_whole else self._mask(visible[:, None])  # for whole prompts, causal attention is enough
        view, hidden = PrefillView(self.cache, chunks, length), route.gather(embeds)
        for layer in self._decoder.layers:
            hidden = layer(hidden, route, rotary, mask, view)

    @torch.inference_mode()
    def decode(self, columns: Tensor, positions: Sequence[int], shared: SharedPrefixes | None = None) -> Tensor:
        """Runs one step for the first R slots.

        Args:
            columns: `[R, K]`, the last column of each slot.
            positions: the R positions of the columns, on the host.
            shared: prefixes that C reads from a shared copy; torch ignores it.

        Returns:
            Logits `[R, K, V + 2]`.
        """
        length = 1 + max(positions)
        self.cache.reserve(len(columns), length)
        indices = torch.tensor(positions, device=columns.device)  # [R]
        hidden = self._decoder.embed_audio_tokens(columns)  # [R, D]
        if self.native is not None:
            slots = torch.arange(len(hidden), device="cpu")
            logits = self.native(hidden, 0, len(hidden), slots, indices, self.cache, shared)
            return logits.unflatten(-1, (self.model.config.audio_num_codebooks, -1))
        is_ragged = min(positions) + 1 < length
        mask = None
        if is_ragged:
            visible = torch.arange(length, device=indices.device) <= indices[:, None]  # [R, T]
            mask = self._mask(visible[:, None, None])
        view = DecodeView(self.cache, indices, length, is_ragged)
        if self.fused:
            rotation = self._rotation[indices]  # [R, 2, 1, H]
            for layer in self._fused_layers:
                hidden = layer(hidden, rotation, mask, view)
        else:
            rotary = self._decoder.rotary_emb(indices[:, None], self.model.dtype)
            for layer in self._decoder.layers:
                hidden = layer(hidden, Route(len(columns), 0), rotary, mask, view)
        return self.model.audio_logits(self._final_norm(hidden))

    def _mask(self, visible: Tensor) -> Tensor:
        """Converts a bool mask to the format of the attention implementation: bool, or added to the scores."""
        return torch.where(visible, 0.0, float("-inf")).to(self.model.dtype) if self._is_mask_added else visible
