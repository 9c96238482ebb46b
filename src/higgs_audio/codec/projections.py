"""The large linear maps of a decoder on packed rows, in torch or in C (`native/linear.c`)."""

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.codec.harmonic import HarmonicHead, HeadKernels
from higgs_audio.codec.native_head import NativeHead, is_plain
from higgs_audio.codec.vocos import VocosDecoder
from higgs_audio.native import WIDTH_MULTIPLE, ModuleSnapshot, NativeLinear, have_hooks, native_library


class Projections:
    """The maps of one decoder, run in torch.

    Args:
        decoder: the decoder.

    Attributes:
        head: the work of a harmonic head; None for another head.
    """

    def __init__(self, decoder: VocosDecoder) -> None:
        self._embed, self._up = decoder.embed, decoder.up
        self.head: HeadKernels | None = decoder.head if isinstance(decoder.head, HarmonicHead) else None

    def embed(self, features: Tensor) -> Tensor:
        """Maps features `[F, hidden]` to rows `[F, D]`."""
        return F.linear(features, self._embed.weight[..., 0], self._embed.bias)

    def upsample(self, rows: Tensor) -> Tensor:
        """Maps rows `[F, D]` to `[F, D' * stride]`."""
        return rows @ self._up.weight.flatten(1)


class NativeProjections(Projections):
    """The maps of one decoder, run in C. The result of a row does not depend on the other rows.

    Args:
        decoder: a decoder for which `are_supported` returns True.
        library: from `native_library`.
    """

    def __init__(self, decoder: VocosDecoder, library: ctypes.CDLL) -> None:
        super().__init__(decoder)
        self._native_embed = NativeLinear(library, self._embed.weight.detach()[..., 0], self._embed.bias)
        self._native_up = NativeLinear(library, self._up.weight.detach().flatten(1).T.contiguous(), None)
        if isinstance(decoder.head, HarmonicHead):
            self.head = NativeHead(decoder.head, library)

    def embed(self, features: Tensor) -> Tensor:
        return self._native_embed(features) if is_plain(features) else super().embed(features)

    def upsample(self, rows: Tensor) -> Tensor:
        return self._native_up(rows) if is_plain(rows) else super().upsample(rows)


_CACHE: WeakKeyDictionary[VocosDecoder, tuple[ModuleSnapshot, Projections]] = WeakKeyDictionary()


def decoder_projections(decoder: VocosDecoder) -> Projections:
    """Returns the maps of a decoder, in C where possible, cached until its modules or weights change."""
    cached = _CACHE.get(decoder)
    if cached is None or not cached[0].is_current:
        library = native_library() if are_supported(decoder) else None
        runner = Projections(decoder) if library is None else NativeProjections(decoder, library)
        cached = _CACHE[decoder] = ModuleSnapshot(decoder, ("embed", "up", "head")), runner
    return cached[1]


def are_supported(decoder: VocosDecoder) -> bool:
    """Whether C can run the maps: torch's own modules without hooks, float32 on a CPU."""
    modules: list[nn.Module] = [decoder.embed, decoder.up]
    if isinstance(decoder.head, HarmonicHead):
        modules += [decoder.head, decoder.head.filters]
        if decoder.n_fft % WIDTH_MULTIPLE:
            return False
    weights = [weight for module in modules for weight in module.parameters()]
    return (
        all(type(module) in (nn.Conv1d, nn.ConvTranspose1d, nn.Linear, HarmonicHead) for module in modules)
        and not have_hooks(modules)
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        and all(weight.is_contiguous() for weight in weights)
    )
