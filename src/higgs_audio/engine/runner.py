"""The model on the rows of a KV cache: prompts are read in pieces, then all rows take one step together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from higgs_audio.engine.cache_views import DecodeView, PrefillChunk, PrefillView
from higgs_audio.engine.fused import FusedLayer, FusedNorm, is_plain, turning
from higgs_audio.engine.kv_cache import KVCache, Shared
from higgs_audio.engine.native_layers import native_trunk
from higgs_audio.errors import OptionError, nearest
from higgs_audio.generation.checks import audio_mask
from higgs_audio.model.layers import Route
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

BACKENDS = ("sdpa", "eager")  # attention that takes a mask


class Runner:
    """Forward passes of one model over one cache.

    Args:
        model: in eval mode.
        cache: of its sizes.
        fused: few operations where layers are plain, in C (`NativeTrunk`) or with matrices joined that read the same
            rows; None: where they are.
    """

    def __init__(self, model: HiggsAudioForConditionalGeneration, cache: KVCache, fused: bool | None = None) -> None:
        self.model, self.cache = model, cache
        self._trunk = model.model
        backend = self._trunk.text_config._attn_implementation
        if backend not in BACKENDS:
            raise OptionError(f"attention {backend!r}: an engine needs a mask; {nearest(str(backend), BACKENDS)}")
        self._adds_mask = backend == "eager"
        plain = all(is_plain(layer) for layer in self._trunk.layers)
        self.fused = plain if fused is None else fused and plain
        positions = torch.arange(cache.max_positions, device=model.device)[None]
        self._turns = turning(*self._trunk.rotary_emb(positions, model.dtype))  # [T, 2, 1, H]
        self._native = native_trunk(model, self._turns) if self.fused else None
        layers: Any = self._trunk.layers if self.fused and self._native is None else []
        self._fused = [FusedLayer(layer) for layer in layers]
        self._last = FusedNorm(self._trunk.norm) if self.fused and is_plain(self._trunk.norm) else self._trunk.norm

    @property
    def is_current(self) -> bool:
        """Whether the joined matrices are still the model's: they are not where it was moved or converted."""
        fused = all(layer.is_current for layer in self._fused)
        native = self._native is None or self._native.is_current
        return self.cache.fits(self.model.device, self.model.dtype) and fused and native

    @property
    def is_invariant(self) -> bool:
        """Whether a position has the same numbers whatever it is read with."""
        return self._native is not None

    def cost(self, sizes: Sequence[int]) -> int:
        """Positions that pieces of such sizes are to `read`: torch fills the shorter ones up."""
        return sum(sizes) if self.is_invariant else len(sizes) * max(sizes, default=0)

    @torch.inference_mode()
    def read(self, pieces: Sequence[PrefillChunk]) -> None:
        """Pieces of prompts, each in a row of its own."""
        length = max(piece.stop for piece in pieces)
        self.cache.reserve(1 + max(piece.row for piece in pieces), length)
        if self._native is None:
            self._read_in_torch(pieces, length)
            return
        ids = torch.cat([piece.ids for piece in pieces])  # [N]
        columns = torch.cat([piece.columns for piece in pieces])  # [F, K]
        audio = audio_mask(ids, self.model.config)  # [N]
        order = torch.cat([(~audio).nonzero(), audio.nonzero()])[:, 0]
        written = self._trunk.embed_tokens(ids[~audio])
        rows = torch.cat([written, self._trunk.embed_audio_tokens(columns)])  # [N, D]
        sequences = torch.cat([torch.full_like(piece.ids, piece.row) for piece in pieces])
        positions = torch.cat([piece.positions for piece in pieces])
        self._native(rows, len(written), 0, sequences[order], positions[order], self.cache)

    def _read_in_torch(self, pieces: Sequence[PrefillChunk], length: int) -> None:
        """One batch `[B, t]`, shorter pieces filled up on the right."""
        device = self.model.device
        padding = self.model.config.pad_token_id or 0
        ids = pad_sequence([piece.ids for piece in pieces], True, padding).to(device)  # [B, t]
        positions = pad_sequence([piece.positions for piece in pieces], True).to(device)  # [B, t]
        real = pad_sequence([torch.ones_like(piece.ids) for piece in pieces], True).to(device)  # [B, t]
        columns = pad_sequence([piece.columns for piece in pieces], True).to(device)  # [B, F, K]
        filled = pad_sequence([torch.ones(len(piece.columns)).bool() for piece in pieces], True).to(device)  # [B, F]
        codes = (columns, filled) if columns.shape[1] else (None, None)
        way, embeds = self._trunk.embed(ids, real, *codes, None, None)
        rotary = self._trunk.rotary_emb(positions, embeds.dtype)
        seen = torch.arange(length, device=device) <= positions[:, :, None]  # [B, t, T]
        is_whole = not self._adds_mask and all(len(piece.ids) == length for piece in pieces)
        mask = None if is_whole else self._mask(seen[:, None])  # the attention masks whole prompts by itself
        place, hidden = PrefillView(self.cache, pieces, length), way.take(embeds)
        for layer in self._trunk.layers:
            hidden = layer(hidden, way, rotary, mask, place)

    @torch.inference_mode()
    def step(self, columns: Tensor, positions: Sequence[int], shared: Shared | None = None) -> Tensor:
        """One column of every row: `[R, K]` at `positions`, which the host knows -> logits `[R, K, V + 2]`.

        Where their beginnings are `shared`, C reads them there.
        """
        length = 1 + max(positions)
        self.cache.reserve(len(columns), length)
        places = torch.tensor(positions, device=columns.device)  # [R]
        hidden = self._trunk.embed_audio_tokens(columns)  # [R, D]
        if self._native is not None:
            sequences = torch.arange(len(hidden), device="cpu")
            logits = self._native(hidden, 0, len(hidden), sequences, places, self.cache, shared)
            return logits.unflatten(-1, (self.model.config.audio_num_codebooks, -1))
        uneven = min(positions) + 1 < length
        mask = None
        if uneven:
            seen = torch.arange(length, device=places.device) <= places[:, None]  # [R, T]
            mask = self._mask(seen[:, None, None])
        place = DecodeView(self.cache, places, length, uneven)
        if self.fused:
            turn = self._turns[places]  # [R, 2, 1, H]
            for layer in self._fused:
                hidden = layer(hidden, turn, mask, place)
        else:
            rotary = self._trunk.rotary_emb(places[:, None], self.model.dtype)
            for layer in self._trunk.layers:
                hidden = layer(hidden, Route(len(columns), 0), rotary, mask, place)
        return self.model.audio_logits(self._last(hidden))

    def _mask(self, seen: Tensor) -> Tensor:
        """Which positions see which, as the attention takes it."""
        return torch.where(seen, 0.0, float("-inf")).to(self.model.dtype) if self._adds_mask else seen
