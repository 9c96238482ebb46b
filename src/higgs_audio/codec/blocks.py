"""ConvNeXt blocks on rows, positions of several sounds one after another: with tensors, or for a decoder in float32 on
a CPU in C (`native/convnext.c`), as pieces of sound are small and tensors so small are mostly overhead.
"""

import ctypes
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from higgs_audio.codec.vocos import ConvNeXt, VocosDecoder
from higgs_audio.native import MULTIPLE, Matrix, Packer, Watch, are_half, are_hooked, native_library, num_threads


class Blocks:
    """All blocks of a decoder, in the order in which sound goes through them.

    Args:
        blocks: of one decoder.
    """

    def __init__(self, blocks: Sequence[ConvNeXt]) -> None:
        self.blocks = blocks

    def __call__(self, number: int, wide: Tensor, starts: Tensor) -> Tensor:
        """What the numbered block makes of each `kernel` rows of `wide [W, D]` from `starts [N]` on: rows `[N, D]`."""
        block = self.blocks[number]
        around = block.depthwise(wide.T[None]).index_select(2, starts)  # [1, D, N]
        own = wide.index_select(0, starts + block.pad[0])
        return block.mix(around, own.T[None])[0].T


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("width", "kernel", "before", "is_half")),
        *((name, ctypes.c_void_p) for name in ("depthwise", "around", "norm", "offset")),
        *((name, Matrix) for name in ("expand", "contract")),
        *((name, ctypes.c_void_p) for name in ("expanded", "contracted", "scale")),
        ("eps", ctypes.c_float),
    ]


class NativeBlocks(Blocks):
    """The same in C. A row has the same numbers whatever is beside it.

    Args:
        blocks: that `fit`.
        library: of `native_library`.
    """

    def __init__(self, blocks: Sequence[ConvNeXt], library: ctypes.CDLL) -> None:
        super().__init__(blocks)
        self._library = library
        self._is_half = are_half(part.weight for block in blocks for part in (block.expand, block.contract))
        self._pack = Packer(library, self._is_half)
        # [kernel, D] of each, which C points to
        self._depthwise = [block.depthwise.weight.detach()[:, 0].T.contiguous() for block in blocks]
        self._structs = [self._struct(block, kernel) for block, kernel in zip(blocks, self._depthwise, strict=True)]

    def __call__(self, number: int, wide: Tensor, starts: Tensor) -> Tensor:
        if wide.dtype != torch.float32:  # under autocast
            return super().__call__(number, wide, starts)
        block, threads = ctypes.byref(self._structs[number]), num_threads()
        wide, starts = wide.contiguous(), starts.long().contiguous()
        result = wide.new_empty(len(starts), wide.shape[1])
        work = wide.new_empty(self._library.convnext_workspace(block, threads))
        places = (tensor.data_ptr() for tensor in (wide, starts))
        self._library.convnext(block, *places, len(starts), result.data_ptr(), work.data_ptr(), threads)
        return result

    def _struct(self, block: ConvNeXt, depthwise: Tensor) -> _Block:
        width, kernel = block.norm.normalized_shape[0], block.depthwise.kernel_size[0]
        assert block.depthwise.bias is not None
        around = (depthwise, block.depthwise.bias, block.norm.weight, block.norm.bias)
        biases = (block.expand.bias, block.contract.bias, block.scale)
        return _Block(
            *(width, kernel, block.pad[0], self._is_half),
            *(tensor.data_ptr() for tensor in around),
            *(self._pack(block.expand.weight), self._pack(block.contract.weight)),
            *(tensor.data_ptr() for tensor in biases),
            block.norm.eps,
        )


def blocks_of(decoder: VocosDecoder) -> Blocks:
    """A decoder's, in C where that can be; made anew where it has changed."""
    known = _KNOWN.get(decoder)
    if known is None or not known[0].is_current:
        blocks = [part for part in (*decoder.coarse, *decoder.fine) if isinstance(part, ConvNeXt)]
        library = native_library() if fit(blocks) else None
        made = Blocks(blocks) if library is None else NativeBlocks(blocks, library)
        known = _KNOWN[decoder] = Watch(decoder, ("coarse", "fine")), made
    return known[1]


_KNOWN: WeakKeyDictionary[VocosDecoder, tuple[Watch, Blocks]] = WeakKeyDictionary()


def fit(blocks: Sequence[ConvNeXt]) -> bool:
    """Whether C knows such blocks: of torch's own parts, not hooked, float32 on a CPU, of widths that are multiples of
    16.
    """
    modules = [module for block in blocks for module in block.modules()]
    weights = [weight for block in blocks for weight in block.parameters()]
    return (
        all(type(module) in (ConvNeXt, nn.Conv1d, nn.LayerNorm, nn.Linear) for module in modules)
        and not are_hooked(modules)
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        and all(weight.is_contiguous() for weight in weights)
        and all(block.norm.normalized_shape[0] % MULTIPLE == 0 for block in blocks)
    )
