"""The ConvNeXt blocks of a decoder on packed rows, in torch or in C.

Rows are the positions of several streams, concatenated in time. Chunks of a stream are small and torch's overhead per
call is large, so a decoder in float32 on a CPU runs its blocks in C (`native/convnext.c`).
"""

import ctypes
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from higgs_audio.codec.vocos import ConvNeXt, VocosDecoder
from higgs_audio.native import (
    WIDTH_MULTIPLE,
    MatrixPacker,
    ModuleSnapshot,
    are_exact_in_bfloat16,
    have_hooks,
    native_library,
    num_threads,
)
from higgs_audio.native.structs import ConvNeXtStruct


class ConvNeXtBlocks:
    """The blocks of one decoder, run in torch.

    Args:
        blocks: the blocks, in the order in which the decoder runs them.
    """

    def __init__(self, blocks: Sequence[ConvNeXt]) -> None:
        self.blocks = blocks

    def __call__(self, index: int, padded: Tensor, starts: Tensor) -> Tensor:
        """Runs one block.

        Args:
            index: index of the block.
            padded: rows `[W, D]`, with the convolution's context before and after them.
            starts: `[N]`, index of the first of the `kernel` rows of `padded` that each output row depends on.

        Returns:
            Rows `[N, D]`.
        """
        block = self.blocks[index]
        convolved = block.depthwise(padded.T[None]).index_select(2, starts)  # [1, D, N]
        center = padded.index_select(0, starts + block.pad[0])
        return block.mix(convolved, center.T[None])[0].T


class NativeConvNeXtBlocks(ConvNeXtBlocks):
    """The blocks of one decoder, run in C. The result of a row does not depend on the other rows.

    Args:
        blocks: blocks for which `are_supported` returns True.
        library: from `native_library`.

    Attributes:
        is_half: whether all large weights are exact in bfloat16 and therefore packed in it.
    """

    def __init__(self, blocks: Sequence[ConvNeXt], library: ctypes.CDLL) -> None:
        super().__init__(blocks)
        self.is_half = are_exact_in_bfloat16(
            linear.weight for block in blocks for linear in (block.expand, block.contract)
        )
        self._library = library
        self._pack = MatrixPacker(library, self.is_half)
        # [kernel, D] of each block; the structs hold pointers to them
        self._depthwise = [block.depthwise.weight.detach()[:, 0].T.contiguous() for block in blocks]
        self._structs = [self._struct(block, kernel) for block, kernel in zip(blocks, self._depthwise, strict=True)]

    def __call__(self, index: int, padded: Tensor, starts: Tensor) -> Tensor:
        if padded.dtype != torch.float32:  # under autocast
            return super().__call__(index, padded, starts)
        struct, threads = ctypes.byref(self._structs[index]), num_threads()
        padded, starts = padded.contiguous(), starts.long().contiguous()
        output = padded.new_empty(len(starts), padded.shape[1])
        workspace = padded.new_empty(self._library.higgs_convnext_workspace(struct))
        inputs = (tensor.data_ptr() for tensor in (padded, starts))
        self._library.higgs_convnext(struct, *inputs, len(starts), output.data_ptr(), workspace.data_ptr(), threads)
        return output

    def _struct(self, block: ConvNeXt, depthwise: Tensor) -> ConvNeXtStruct:
        width, kernel = block.norm.normalized_shape[0], block.depthwise.kernel_size[0]
        assert block.depthwise.bias is not None
        convolution = (depthwise, block.depthwise.bias, block.norm.weight, block.norm.bias)
        biases = (block.expand.bias, block.contract.bias, block.scale)
        return ConvNeXtStruct(
            *(width, kernel, block.pad[0], self.is_half),
            *(tensor.data_ptr() for tensor in convolution),
            *(self._pack(block.expand.weight), self._pack(block.contract.weight)),
            *(tensor.data_ptr() for tensor in biases),
            block.norm.eps,
        )


_CACHE: WeakKeyDictionary[VocosDecoder, tuple[ModuleSnapshot, ConvNeXtBlocks]] = WeakKeyDictionary()


def decoder_blocks(decoder: VocosDecoder) -> ConvNeXtBlocks:
    """Returns the blocks of a decoder, in C where possible, cached until the decoder's modules or weights change."""
    cached = _CACHE.get(decoder)
    if cached is None or not cached[0].is_current:
        blocks = [module for module in (*decoder.coarse, *decoder.fine) if isinstance(module, ConvNeXt)]
        library = native_library() if are_supported(blocks) else None
        runner = ConvNeXtBlocks(blocks) if library is None else NativeConvNeXtBlocks(blocks, library)
        cached = _CACHE[decoder] = ModuleSnapshot(decoder, ("coarse", "fine")), runner
    return cached[1]


def are_supported(blocks: Sequence[ConvNeXt]) -> bool:
    """Whether C can run the blocks: torch's own modules without hooks, float32 on a CPU, widths in multiples of 16."""
    modules = [module for block in blocks for module in block.modules()]
    weights = [weight for block in blocks for weight in block.parameters()]
    return (
        all(type(module) in (ConvNeXt, nn.Conv1d, nn.LayerNorm, nn.Linear) for module in modules)
        and not have_hooks(modules)
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        and all(weight.is_contiguous() for weight in weights)
        and all(block.norm.normalized_shape[0] % WIDTH_MULTIPLE == 0 for block in blocks)
    )
