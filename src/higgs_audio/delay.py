"""The delay pattern: codebook k of a frame is predicted k steps after codebook 0. Functions apply and revert it.

A delayed segment of F frames and K codebooks has L = F + K + 1 columns. Row k holds k + 1 stream bos, F codes and
K - k stream eos, so the code of frame f, codebook k, is in column f + 1 + k (here K = 3, F = 2, B bos, E eos)::

    column   0   1   2   3   4   5
    row 0    B  a0  b0   E   E   E
    row 1    B   B  a1  b1   E   E
    row 2    B   B   B  a2  b2   E

A generated segment differs in two ways: the model may sample its first eos in a codebook k > 0, and the cells on the
diagonal after that eos are sampled freely. One rule covers every case: the codes of a segment are its complete frames
before the first frame that contains a special id (bos or eos). `revert_delay` and `FrameAligner` both follow it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from higgs_audio.errors import CodesError

Column = tuple[int, ...]  # [K] ids of one step: codes, stream bos, stream eos
IGNORE_INDEX = -100  # label of a position that is not trained; the default `ignore_index` of torch's cross-entropy


def apply_delay(codes: Tensor, bos: int, eos: int) -> Tensor:
    """Returns the delayed segment of complete codes, with stream bos and stream eos.

    Args:
        codes: [K, F] integers in [0, bos). F may be 0.
        bos, eos: ids of stream bos and stream eos.

    Returns:
        [K, F + K + 1], of the same dtype and device.

    Raises:
        CodesError: `codes` is not a matrix of integers, or an id is outside [0, bos).

    >>> apply_delay(torch.tensor([[1, 2], [3, 4]]), bos=8, eos=9).tolist()
    [[8, 1, 2, 9, 9], [8, 8, 3, 4, 9]]
    """
    _check_matrix(codes, "codes [K, F]")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= bos):
        raise CodesError(
            f"codes run from {int(codes.min())} to {int(codes.max())}; allowed: 0 to {bos - 1}. "
            "Pass codes without stream bos and eos, as the audio tokenizer returns them."
        )
    num_codebooks, num_frames = codes.shape
    delayed = codes.new_full((num_codebooks, num_frames + num_codebooks + 1), eos)  # [K, L]
    for k in range(num_codebooks):
        delayed[k, : k + 1] = bos
        delayed[k, k + 1 : k + 1 + num_frames] = codes[k]
    return delayed


def delay_labels(codes: Tensor, eos: int) -> Tensor:
    """Returns the training labels of a delayed segment: every code, and exactly one eos per codebook.

    Args:
        codes: [K, F] integers.
        eos: id of stream eos.

    Returns:
        [K, F + K + 1], aligned with `apply_delay(codes, ...)`: the label of a cell is that cell's own id, or
        IGNORE_INDEX for every bos, and for every eos after the first of its row.

    Raises:
        CodesError: `codes` is not a matrix of integers.

    >>> delay_labels(torch.tensor([[1, 2], [3, 4]]), eos=9).tolist()
    [[-100, 1, 2, 9, -100], [-100, -100, 3, 4, 9]]
    """
    _check_matrix(codes, "codes [K, F]")
    num_codebooks, num_frames = codes.shape
    labels = codes.new_full((num_codebooks, num_frames + num_codebooks + 1), IGNORE_INDEX)  # [K, L]
    for k in range(num_codebooks):
        labels[k, k + 1 : k + 1 + num_frames] = codes[k]
        labels[k, k + 1 + num_frames] = eos
    return labels


def revert_delay(delayed: Tensor) -> Tensor:
    """Returns the codes of a delayed segment, whether it is complete or cut off.

    The result holds the complete frames before the first one with a special id. A segment whose first eos is in
    codebook k of column t yields t - k - 1 frames; a segment of L columns cut off before any eos yields L - K frames.

    Args:
        delayed: [K, L] integers whose column 0 is the segment's bos column. Every id from bos on is special.

    Returns:
        [K, F] codes without special ids; F = L - K - 1 for the complete result of `apply_delay`. F may be 0.

    Raises:
        CodesError: `delayed` is not a matrix of integers, has no columns, or its column 0 holds different ids.

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
    ended = (frames >= delayed[0, 0]).any(dim=0).nonzero()  # [n, 1] frames with a special id
    return frames[:, : int(ended[0])] if len(ended) else frames


def _check_matrix(values: Tensor, name: str) -> None:
    if values.dim() != 2 or values.dtype.is_floating_point or values.dtype in (torch.bool, torch.complex64):
        raise CodesError(f"got shape {tuple(values.shape)} of {values.dtype}; {name} must be a matrix of integers")


class FrameAligner:
    """Incremental `revert_delay` of one segment: takes columns and returns each frame as soon as it is final.

    Frame f has its cells in columns f + 1 (codebook 0) to f + K (codebook K - 1), so it is complete when column f + K
    arrives. It is final at the same moment: later columns hold none of its cells, and the segment is cut at the first
    frame with a special id, whose cells are all known before those of a later frame. For example, an eos in codebook 0
    of column t belongs to frame t - 1, which completes in column t - 1 + K; all earlier frames are returned before
    that. A first eos in codebook k belongs to frame t - 1 - k: the k later frames that have cells in the lower
    codebooks never complete. A frame is therefore returned at most K columns after its first cell.

    The returned frames, in order, equal `revert_delay` of all pushed columns, wherever the segment stops. Use one
    aligner per segment.

    Args:
        num_codebooks: K.
        bos, eos: ids of stream bos and stream eos, greater than every code.

    Attributes:
        ended: whether a frame with a special id has completed; no frame is returned after it.
    """

    def __init__(self, num_codebooks: int, bos: int, eos: int) -> None:
        self.num_codebooks = num_codebooks
        self.first_special_id = min(bos, eos)
        self.ended = False
        self._recent: deque[Sequence[int]] = deque(maxlen=num_codebooks)
        self._num_columns = 0

    def push(self, column: Sequence[int]) -> list[int] | None:
        """Adds the next column [K] of the segment and returns the frame [K] that it completes, or None.

        Raises:
            CodesError: the column does not have K cells.
        """
        if len(column) != self.num_codebooks:
            raise CodesError(f"the column has {len(column)} cells; allowed: {self.num_codebooks}, one per codebook")
        self._recent.append(column)
        self._num_columns += 1
        if self.ended or self._num_columns <= self.num_codebooks:
            return None
        frame = [int(cells[k]) for k, cells in enumerate(self._recent)]
        self.ended = max(frame) >= self.first_special_id
        return None if self.ended else frame


@dataclass(frozen=True)
class DelayState:
    """The progress of a segment that is being generated.

    `push` writes the bos and eos that the delay pattern requires into a sampled column. They depend on the segment
    alone: neither a reference recording just before it nor a prompt of one token has an effect.

    Attributes:
        num_codebooks: K.
        bos, eos: ids of stream bos and stream eos.
        num_columns: columns of the segment so far.
        total_columns: columns of the whole segment; None until the first eos sets it.
    """

    num_codebooks: int
    bos: int
    eos: int
    num_columns: int = 0
    total_columns: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the segment has its last column."""
        return self.total_columns is not None and self.num_columns >= self.total_columns

    @property
    def num_frames(self) -> int | None:
        """Frames of the whole segment as implied by its first eos; None before that."""
        return None if self.total_columns is None else self.total_columns - self.num_codebooks - 1

    def push(self, sampled: Sequence[int]) -> tuple[Column, "DelayState"]:
        """Adds a column.

        Codebooks that have not started are set to bos. A first eos in codebook k of column t leaves K - k - 1 more
        columns: the codebooks below k are set to eos in column t, and one more codebook in each further column. The
        cell that holds a codebook's last code keeps its sampled id.

        Args:
            sampled: the K ids sampled for the column.

        Returns:
            The column [K] with its forced bos and eos, and the state after it.
        """
        num_started = min(self.num_columns, self.num_codebooks)
        column = [*sampled[:num_started], *[self.bos] * (self.num_codebooks - num_started)]
        total = self.total_columns
        if total is None and self.eos in column:
            total = self.num_columns + self.num_codebooks - column.index(self.eos)
        if total is not None:
            num_forced = self.num_columns + self.num_codebooks - total
            column[:num_forced] = [self.eos] * num_forced
        return tuple(column), replace(self, num_columns=self.num_columns + 1, total_columns=total)

    def resume(self, columns: Sequence[Sequence[int]]) -> "DelayState":
        """Returns the state after existing `columns` [n, K] of a segment, its bos column first.

        In the first column with an eos, codebooks 0 to k are all eos, so the length of that run gives the end.
        """
        for index, column in enumerate(columns):
            if self.eos in column:
                run = next((k for k, code in enumerate(column) if code != self.eos), self.num_codebooks)
                total = index + self.num_codebooks - max(run - 1, 0)
                return replace(self, num_columns=len(columns), total_columns=total)
        return replace(self, num_columns=len(columns))
