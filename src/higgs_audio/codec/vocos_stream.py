"""Decodes streams of features with a `VocosDecoder`, several streams in one call.

Every layer keeps the rows that later outputs depend on, so nothing is computed twice and the concatenated output equals
that of one call. A call concatenates the new rows of all streams in time, each stream after its own kept rows: a
convolution is correct at every row whose kernel stays within one stream, and only these rows are used.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from higgs_audio.codec.blocks import ConvNeXtBlocks, decoder_blocks
from higgs_audio.codec.harmonic import PhaseState
from higgs_audio.codec.projections import Projections, decoder_projections
from higgs_audio.codec.vocos import WEIGHT_FLOOR, VocosDecoder


class VocosStream:
    """The decoder state of one stream. Tensors are replaced, never modified in place.

    Args:
        decoder: the decoder of the stream.

    Attributes:
        context: the last inputs `[n, D]` of every block.
        sums: overlap-add sums and weights `[1, 1, overlap]` to which later frames contribute.
        phase: phase of a harmonic head.
        num_to_trim: samples still to be dropped at the beginning.
    """

    def __init__(self, decoder: VocosDecoder) -> None:
        self.decoder = decoder
        self.context: list[Tensor | None] = [None] * (len(decoder.coarse) + len(decoder.fine))
        self.sums: tuple[Tensor, Tensor] | None = None
        self.phase: PhaseState | None = None
        self.num_to_trim = decoder.trim

    def copy(self) -> "VocosStream":
        """Returns an independent copy of the state."""
        other = VocosStream(self.decoder)
        other.context, other.sums, other.phase = list(self.context), self.sums, self.phase
        other.num_to_trim = self.num_to_trim
        return other

    def add_frames(self, frames: Tensor, is_last: bool) -> Tensor:
        """Adds windowed frames `[1, T, n_fft]` and returns the samples `[S]` that are final."""
        overlap = self.decoder.overlap
        if frames.shape[1]:
            sums = self.decoder.overlap_add(frames)  # [1, 1, T * hop + overlap] each
            for total, earlier in zip(sums, self.sums or (), strict=False):
                total[..., :overlap] += earlier
        elif self.sums is None or not is_last:
            return frames.new_zeros(0)
        else:
            sums = self.sums
        end = sums[0].shape[-1] - (self.decoder.trim if is_last else overlap)
        self.sums = (sums[0][..., -overlap:].clone(), sums[1][..., -overlap:].clone())
        samples = (sums[0] / sums[1].clamp(min=WEIGHT_FLOOR))[0, 0, self.num_to_trim : end]
        self.num_to_trim = max(0, self.num_to_trim - end)
        return samples


def decode_packed(streams: Sequence[VocosStream], features: Sequence[Tensor], last: Sequence[bool]) -> list[Tensor]:
    """Decodes the next features of several streams.

    Args:
        streams: distinct streams of one decoder. They are modified, even if the call fails: pass copies.
        features: `[F, hidden]` of every stream, F >= 0.
        last: whether a stream ends with these features.

    Returns:
        The samples `[S]` of every stream that are final.
    """
    decoder, sizes = streams[0].decoder, [len(part) for part in features]
    blocks, num_coarse, stride = decoder_blocks(decoder), len(decoder.coarse), decoder.up.stride[0]
    projections = decoder_projections(decoder)
    x = projections.embed(torch.cat(list(features)))  # [all F, D]
    x = nn.LayerNorm.forward(decoder.embed_norm, x)
    for index in range(len(blocks.blocks)):
        if index == num_coarse:
            x, sizes = _upsample(decoder, projections, x), [size * stride for size in sizes]
        x, sizes = _run_block(blocks, index, streams, x, sizes, last)
    parts = zip(streams, _head_frames(streams, projections, x, sizes), last, strict=True)
    return [stream.add_frames(frames, is_last) for stream, frames, is_last in parts]


def _upsample(decoder: VocosDecoder, projections: Projections, x: Tensor) -> Tensor:
    """Applies `decoder.up` to rows: `[F, D]` to `[F * stride, D']`."""
    spectra = projections.upsample(x).unflatten(1, decoder.up.weight.shape[1:])  # [F, D', stride]
    return spectra.transpose(1, 2).flatten(0, 1) + decoder.up.bias


def _run_block(
    blocks: ConvNeXtBlocks,
    index: int,
    streams: Sequence[VocosStream],
    x: Tensor,
    sizes: Sequence[int],
    last: Sequence[bool],
) -> tuple[Tensor, list[int]]:
    """Runs a block on packed rows `[T, D]`; `sizes` is the number of rows of every stream.

    Returns:
        The rows whose whole kernel is known, and their number for every stream.
    """
    left, right = blocks.blocks[index].pad
    zeros, padded, starts, counts = x.new_zeros(left + right, x.shape[1]), list[Tensor](), list[Tensor](), list[int]()
    offset = 0
    for stream, rows, is_last in zip(streams, x.split(list(sizes)), last, strict=True):
        context = stream.context[index]
        padded.append(torch.cat([zeros[:left] if context is None else context, rows, zeros[: right * is_last]]))
        stream.context[index] = padded[-1][-(left + right) :].clone()  # a view would keep all rows in memory
        counts.append(max(0, len(padded[-1]) - left - right))
        starts.append(torch.arange(offset, offset + counts[-1], device=x.device))
        offset += len(padded[-1])
    if not sum(counts):
        return x[:0], counts
    return blocks(index, torch.cat(padded), torch.cat(starts)), counts


def _head_frames(
    streams: Sequence[VocosStream], projections: Projections, x: Tensor, sizes: Sequence[int]
) -> list[Tensor]:
    """Returns the windowed frames `[1, T, n_fft]` of every stream, from packed rows `[T, D]` of the last block."""
    decoder = streams[0].decoder
    if not sum(sizes):
        return [x.new_zeros(1, 0, decoder.n_fft)] * len(streams)
    active = [(stream, size) for stream, size in zip(streams, sizes, strict=True) if size]
    frames, phases = decoder.frames_packed(
        decoder.norm(x)[None],
        [size for _, size in active],
        [stream.phase for stream, _ in active],
        projections.head,
    )
    for (stream, _), phase in zip(active, phases, strict=True):
        stream.phase = phase
    return list(frames.split(list(sizes), dim=1))
