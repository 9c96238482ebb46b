"""The delay pattern: codebook k of a frame is predicted k steps after codebook 0. Apply it, revert it, and walk it.

A delayed segment of F frames and K codebooks has L = F + K + 1 columns. Row k holds k + 1 stream bos, F codes and
K - k stream eos, so that frame f, codebook k, lies in column f + 1 + k (here K = 3, F = 2, B bos, E eos)::

    column   0   1   2   3   4   5
    row 0    B  a0  b0   E   E   E
    row 1    B   B  a1  b1   E   E
    row 2    B   B   B  a2  b2   E

A generated segment ends the same way, except that the model may end it first in a codebook k > 0, and that the cells
on the diagonal after the first eos are sampled freely. One rule covers all of it: the sound is the complete frames
before the first one with a marker (bos or eos) in it. `revert_delay` and `FrameAligner` both follow that rule.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from higgs_audio.errors import CodesError


def apply_delay(codes: Tensor, bos: int, eos: int) -> Tensor:
    """Codes of a finished sound -> its delayed segment, markers included.

    Args:
        codes: [K, F] integers in [0, bos). F may be 0.
        bos, eos: ids of stream bos and stream eos.

    Returns:
        [K, F + K + 1], same type and device.

    Raises:
        CodesError: not two-dimensional integers, or an id outside [0, bos).

    >>> apply_delay(torch.tensor([[1, 2], [3, 4]]), bos=8, eos=9).tolist()
    [[8, 1, 2, 9, 9], [8, 8, 3, 4, 9]]
    """
    _check_matrix(codes, "codes [K, F]")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= bos):
        raise CodesError(
            f"codes run from {int(codes.min())} to {int(codes.max())}; allowed: 0 to {bos - 1}. "
            "Give codes without stream bos and eos, as the audio tokenizer makes them."
        )
    num_codebooks, num_frames = codes.shape
    delayed = codes.new_full((num_codebooks, num_frames + num_codebooks + 1), eos)  # [K, L]
    for k in range(num_codebooks):
        delayed[k, : k + 1] = bos
        delayed[k, k + 1 : k + 1 + num_frames] = codes[k]
    return delayed


def delay_labels(codes: Tensor, eos: int, ignore: int = -100) -> Tensor:
    """Training labels of a delayed segment: every code and exactly one eos per codebook.

    Args:
        codes: [K, F] integers.
        eos: id of stream eos.
        ignore: label of a cell that is not trained: all bos, and every eos after the first of its row.

    Returns:
        [K, F + K + 1], aligned with `apply_delay(codes, ...)`: the label of a cell is that cell's own id.

    >>> delay_labels(torch.tensor([[1, 2], [3, 4]]), eos=9).tolist()
    [[-100, 1, 2, 9, -100], [-100, -100, 3, 4, 9]]
    """
    _check_matrix(codes, "codes [K, F]")
    num_codebooks, num_frames = codes.shape
    labels = codes.new_full((num_codebooks, num_frames + num_codebooks + 1), ignore)  # [K, L]
    for k in range(num_codebooks):
        labels[k, k + 1 : k + 1 + num_frames] = codes[k]
        labels[k, k + 1 + num_frames] = eos
    return labels


def revert_delay(delayed: Tensor) -> Tensor:
    """A delayed segment, finished or cut -> the codes of its sound.

    Keeps the complete frames before the first frame that holds a marker. A segment ended by eos first in codebook k
    of column t gives t - k - 1 frames; a segment of L columns cut before any eos gives L - K frames.

    Args:
        delayed: [K, L] integers whose column 0 is the segment's bos column. Every id from bos on is a marker.

    Returns:
        [K, F] codes without markers; F = L - K - 1 for the whole of an `apply_delay`. F may be 0.

    Raises:
        CodesError: not two-dimensional integers, no columns, or column 0 is not one id throughout.

    >>> revert_delay(torch.tensor([[8, 1, 2, 9, 9], [8, 8, 3, 4, 9]])).tolist()
    [[1, 2], [3, 4]]
    """
    _check_matrix(delayed, "a delayed segment [K, L]")
    num_codebooks, length = delayed.shape
    if length == 0 or bool((delayed[:, 0] != delayed[0, 0]).any()):
        raise CodesError("the first column of a delayed segment must be its bos column; pass the whole segment")
    num_complete = max(length - num_codebooks, 0)
    rows = [delayed[k, k + 1 : k + 1 + num_complete] for k in range(num_codebooks)]
    frames = torch.stack(rows)  # [K, num_complete]
    ended = (frames >= delayed[0, 0]).any(dim=0).nonzero()  # [n, 1] frames with a marker
    return frames[:, : int(ended[0])] if len(ended) else frames


def _check_matrix(values: Tensor, name: str) -> None:
    if values.dim() != 2 or values.dtype.is_floating_point or values.dtype in (torch.bool, torch.complex64):
        raise CodesError(f"got shape {tuple(values.shape)} of {values.dtype}; {name} must be a matrix of integers")


class FrameAligner:
    """The incremental `revert_delay` of one segment: columns in, frames out as soon as they are certain.

    Frame f has its cells in columns f + 1 (codebook 0) to f + K (codebook K - 1), so it is complete when column f + K
    arrives, and certain at the same moment: later columns cannot touch its cells, and the cut of the segment falls on
    the first frame with a marker, whose cells are all known before those of any later frame. An eos in codebook 0 of
    column t, say, lies in frame t - 1, which would complete in column t - 1 + K; all frames before it are still
    handed out on the way. An eos first in codebook k lies in frame t - 1 - k: the k frames begun in the lower
    codebooks since then never complete. So a listener never waits for more than the K columns of the delay.

    The frames pushed out, in order, equal `revert_delay` of all columns, wherever the segment stops. One aligner
    serves one segment.
    """

    def __init__(self, num_codebooks: int, bos: int, eos: int) -> None:
        self.num_codebooks = num_codebooks
        self.first_marker = min(bos, eos)
        self.ended = False
        self._recent: deque[Sequence[int]] = deque(maxlen=num_codebooks)
        self._columns = 0

    def push(self, column: Sequence[int]) -> list[int] | None:
        """The next column [K] of the segment -> the frame [K] that it completes, or None.

        Raises:
            CodesError: the column does not have K cells.
        """
        if len(column) != self.num_codebooks:
            raise CodesError(f"the column has {len(column)} cells; allowed: {self.num_codebooks}, one per codebook")
        self._recent.append(column)
        self._columns += 1
        if self.ended or self._columns <= self.num_codebooks:
            return None
        frame = [int(cells[k]) for k, cells in enumerate(self._recent)]
        self.ended = max(frame) >= self.first_marker
        return None if self.ended else frame


@dataclass(frozen=True)
class DelayState:
    """Where a segment being generated stands in the delay pattern: how many columns it has, how many it will have.

    `push` writes the markers that the pattern demands into a sampled column. It looks at nothing but the segment, so
    a reference recording just before it, or a prompt of one token, changes nothing.
    """

    num_codebooks: int
    bos: int
    eos: int
    columns: int = 0
    end: int | None = None  # columns of the whole segment, known from the first eos on

    @property
    def finished(self) -> bool:
        """Whether the last column has been made."""
        return self.end is not None and self.columns >= self.end

    @property
    def frames(self) -> int | None:
        """Frames of the whole segment as its first eos announces them; None before it."""
        return None if self.end is None else self.end - self.num_codebooks - 1

    def push(self, sampled: Sequence[int]) -> tuple[tuple[int, ...], "DelayState"]:
        """Ids sampled for the next column [K] -> that column [K] with its forced markers, and the state after it.

        Rows that have not begun are bos. The first eos, in codebook k of column t, leaves K - k - 1 columns to come;
        the rows below k are eos at once and one more row each further column. The cell in which a row's sound would
        end is left as it was sampled.
        """
        num_begun = min(self.columns, self.num_codebooks)
        column = [*sampled[:num_begun], *[self.bos] * (self.num_codebooks - num_begun)]
        end = self.end
        if end is None and self.eos in column:
            end = self.columns + self.num_codebooks - column.index(self.eos)
        if end is not None:
            num_forced = self.columns + self.num_codebooks - end
            column[:num_forced] = [self.eos] * num_forced
        return tuple(column), replace(self, columns=self.columns + 1, end=end)

    def resume(self, columns: Sequence[Sequence[int]]) -> "DelayState":
        """The state after `columns` [n, K] of a segment made earlier, its bos column first.

        In its first column with eos, rows 0 to k are all eos, so the end is read from that run.
        """
        for made, column in enumerate(columns):
            if self.eos in column:
                run = next((k for k, code in enumerate(column) if code != self.eos), self.num_codebooks)
                return replace(self, columns=len(columns), end=made + self.num_codebooks - max(run - 1, 0))
        return replace(self, columns=len(columns))
