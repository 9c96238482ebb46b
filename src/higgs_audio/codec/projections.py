"""The large linear maps of a decoder on packed rows, in torch or in C (`native/linear.c`)."""

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.codec.harmonic import HarmonicHead
from higgs_audio.codec.vocos import VocosDecoder
from higgs_audio.native import ModuleSnapshot, NativeLinear, have_hooks, native_library


class Projections:
    """The maps of one decoder, run in torch.

    Args:
        decoder: the decoder.
    """

    def __init__(self, decoder: VocosDecoder) -> None:
        self._embed, self._up = decoder.embed, decoder.up
        self._filters = decoder.head.filters if isinstance(decoder.head, HarmonicHead) else None

    def embed(self, features: Tensor) -> Tensor:
        """Maps features `[F, hidden]` to rows `[F, D]`."""
        return F.linear(features, self._embed.weight[..., 0], self._embed.bias)

    def upsample(self, rows: Tensor) -> Tensor:
        """Maps rows `[F, D]` to `[F, D' * stride]`."""
        return rows @ self._up.weight.flatten(1)

    def filters(self, hidden: Tensor) -> Tensor:
        """Maps the input `[T, D']` of a harmonic head to its filters `[T, 3 * bins]`."""
        assert self._filters is not None
        result: Tensor = self._filters(hidden)
        return result


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
        filters = self._filters
        self._native_filters = None if filters is None else NativeLinear(library, filters.weight, filters.bias)

    def embed(self, features: Tensor) -> Tensor:
        return self._native_embed(features) if _is_plain(features) else super().embed(features)

    def upsample(self, rows: Tensor) -> Tensor:
        return self._native_up(rows) if _is_plain(rows) else super().upsample(rows)

    def filters(self, hidden: Tensor) -> Tensor:
        if self._native_filters is None or not _is_plain(hidden):
            return super().filters(hidden)
        return self._native_filters(hidden)


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
    weights = [weight for module in modules for weight in module.parameters()]
    return (
        all(type(module) in (nn.Conv1d, nn.ConvTranspose1d, nn.Linear, HarmonicHead) for module in modules)
        and not have_hooks(modules)
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        and all(weight.is_contiguous() for weight in weights)
    )


def _is_plain(rows: Tensor) -> bool:
    """Whether C can read the rows; not under autocast."""
    return rows.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
