"""A `VocosDecoder` on features that come in pieces, of one sound or of several at once.

Every layer remembers what the next piece needs of the last ones, so nothing is computed twice, and what is said in all
is what the decoder says of the whole. Pieces of several sounds stand one after another in time, each behind what is
remembered of its own past: a convolution is right wherever it does not see across a seam, and the rest is left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from higgs_audio.codec.blocks import Blocks, blocks_of
from higgs_audio.codec.harmonic import PhaseState
from higgs_audio.codec.vocos import VocosDecoder


class VocosStream:
    """What is remembered of one sound. Tensors are replaced, never written to.

    Args:
        decoder: whose layers they are.
    """

    def __init__(self, decoder: VocosDecoder) -> None:
        self.decoder = decoder
        self.kept: list[Tensor | None] = [None] * (len(decoder.coarse) + len(decoder.fine))  # [n, D], of every block
        self.left: tuple[Tensor, Tensor] | None = None  # sums that later frames add to
        self.position: PhaseState | None = None  # of a harmonic head
        self.to_skip = (decoder.n_fft - decoder.hop) // 2

    def copy(self) -> "VocosStream":
        """Where it stands now, to go on from in another way."""
        other = VocosStream(self.decoder)
        other.kept, other.left, other.position = list(self.kept), self.left, self.position
        other.to_skip = self.to_skip
        return other

    def add_up(self, frames: Tensor, is_last: bool) -> Tensor:
        """Windowed frames `[1, T, n_fft]` to the samples `[S]` that they make certain."""
        overlap = self.decoder.n_fft - self.decoder.hop
        if frames.shape[1]:
            sums = self.decoder.sums(frames)  # [1, 1, T * hop + overlap] each
            for total, left in zip(sums, self.left or (), strict=False):
                total[..., :overlap] += left
        elif self.left is None or not is_last:
            return frames.new_zeros(0)
        else:
            sums = self.left
        length = sums[0].shape[-1] - (overlap // 2 if is_last else overlap)
        self.left = (sums[0][..., -overlap:].clone(), sums[1][..., -overlap:].clone())
        sound = (sums[0] / sums[1].clamp(min=1e-6))[0, 0, self.to_skip : length]
        self.to_skip = max(0, self.to_skip - length)
        return sound


def sound_together(streams: Sequence[VocosStream], features: Sequence[Tensor], last: Sequence[bool]) -> list[Tensor]:
    """The next features of every stream to the samples that they make certain.

    Args:
        streams: of one decoder, no one twice; changed, also where it fails: give copies.
        features: `[F, hidden]` of each, F at least 0.
        last: whether nothing comes behind them.

    Returns:
        `[S]` of each.
    """
    decoder, sizes = streams[0].decoder, [len(part) for part in features]
    blocks, num_coarse, stride = blocks_of(decoder), len(decoder.coarse), decoder.up.stride[0]
    x = F.linear(torch.cat(list(features)), decoder.embed.weight[..., 0], decoder.embed.bias)  # [all F, D]
    x = nn.LayerNorm.forward(decoder.embed_norm, x)
    for number in range(len(blocks.blocks)):
        if number == num_coarse:
            x, sizes = _up(decoder, x), [size * stride for size in sizes]
        x, sizes = _through(blocks, number, streams, x, sizes, last)
    parts = zip(streams, _frames(streams, x, sizes), last, strict=True)
    return [stream.add_up(frames, is_last) for stream, frames, is_last in parts]


def _up(decoder: VocosDecoder, x: Tensor) -> Tensor:
    """Frames `[F, D]` to spectra `[T, D']`, as many of each as its kernel is long: `decoder.up` on rows."""
    weight = decoder.up.weight  # [D, D', stride]
    spectra = (x @ weight.flatten(1)).unflatten(1, weight.shape[1:])  # [F, D', stride]
    return spectra.transpose(1, 2).flatten(0, 1) + decoder.up.bias


def _through(
    blocks: Blocks, number: int, streams: Sequence[VocosStream], x: Tensor, sizes: Sequence[int], last: Sequence[bool]
) -> tuple[Tensor, list[int]]:
    """Rows `[T, D]`, of every stream so many, through a block; those it looks ahead to come with the next."""
    before, ahead = blocks.blocks[number].pad
    zeros, wide, starts, counts = x.new_zeros(before + ahead, x.shape[1]), list[Tensor](), list[Tensor](), list[int]()
    place = 0
    for stream, part, is_last in zip(streams, x.split(list(sizes)), last, strict=True):
        past = stream.kept[number]
        wide.append(torch.cat([zeros[:before] if past is None else past, part, zeros[: ahead * is_last]]))
        stream.kept[number] = wide[-1][-(before + ahead) :].clone()  # or all of it would be kept
        counts.append(max(0, len(wide[-1]) - before - ahead))
        starts.append(torch.arange(place, place + counts[-1], device=x.device))
        place += len(wide[-1])
    if not sum(counts):
        return x[:0], counts
    return blocks(number, torch.cat(wide), torch.cat(starts)), counts


def _frames(streams: Sequence[VocosStream], x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """What the last layer says `[T, D]`, of every stream so many, to frames of sound `[1, T, n_fft]` of each."""
    decoder = streams[0].decoder
    if not sum(sizes):
        return [x.new_zeros(1, 0, decoder.n_fft)] * len(streams)
    speaking = [(stream, size) for stream, size in zip(streams, sizes, strict=True) if size]
    frames, positions = decoder.frames_of_several(
        decoder.norm(x)[None], [size for _, size in speaking], [stream.position for stream, _ in speaking]
    )
    for (stream, _), position in zip(speaking, positions, strict=True):
        stream.position = position
    return list(frames.split(list(sizes), dim=1))
