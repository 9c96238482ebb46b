"""A stuck model, told by its codes: the same frames again and again, or silence that does not end."""

from collections import deque
from collections.abc import Collection, Sequence

FRAMES = 24  # just under a second; the pauses of speech and its longest vowels are shorter
PERIODS = (1, 2, 3, 4, 6, 8)  # frames after which a loop begins again; they divide FRAMES
BOOKS = 2  # codebooks that are compared, if there are so many: the upper ones are noise to a small model


class Guard:
    """Watches the frames of one segment.

    Args:
        silent: codes of codebook 0 that stand for silence.
        first_marker: ids from here on are no codes.
    """

    def __init__(self, silent: Collection[int], first_marker: int) -> None:
        self._silent, self._first_marker = frozenset(silent), first_marker
        self._columns: deque[Sequence[int]] = deque(maxlen=BOOKS)
        self._frames: deque[tuple[int, ...]] = deque(maxlen=FRAMES)

    def push(self, column: Sequence[int]) -> str | None:
        """The next column `[K]`; why the model is stuck, or None."""
        self._columns.append(column)
        if len(self._columns) < min(BOOKS, len(column)):
            return None
        latest = list(self._columns)[-len(column) :]  # one column where there is one codebook
        frame = tuple(cells[book] for book, cells in enumerate(latest))
        if max(frame) >= self._first_marker:
            self._frames.clear()
            return None
        self._frames.append(frame)
        return self._reason() if len(self._frames) == FRAMES else None

    def _reason(self) -> str | None:
        frames = list(self._frames)
        if all(frame[0] in self._silent for frame in frames):
            return "silence"
        if any(frames[period:] == frames[:-period] for period in PERIODS):
            return "repetition"
        return None
