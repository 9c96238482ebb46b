"""Detects a stuck model from its codes: frames that repeat in a loop, or endless silence."""

from collections import deque
from collections.abc import Collection, Sequence

NUM_FRAMES = 24  # just under a second; the pauses and the longest vowels of speech are shorter
PERIODS = (1, 2, 3, 4, 6, 8)  # lengths of loops that are detected, in frames; divisors of NUM_FRAMES
NUM_CODEBOOKS = 2  # codebooks that are compared, at most: in a small model, the upper ones are noise


class LoopDetector:
    """Detects loops and silence in the columns of one segment.

    Args:
        silent: codes of codebook 0 that represent silence.
        bos: id of stream bos; higher ids are not codes either.
    """

    def __init__(self, silent: Collection[int], bos: int) -> None:
        self._silent, self._bos = frozenset(silent), bos
        self._columns: deque[Sequence[int]] = deque(maxlen=NUM_CODEBOOKS)
        self._frames: deque[tuple[int, ...]] = deque(maxlen=NUM_FRAMES)

    def push(self, column: Sequence[int]) -> str | None:
        """Adds the next column `[K]`. Returns "silence" or "repetition" if the model is stuck, else None."""
        self._columns.append(column)
        if len(self._columns) < min(NUM_CODEBOOKS, len(column)):
            return None
        latest = list(self._columns)[-len(column) :]  # one column if there is one codebook
        frame = tuple(codes[codebook] for codebook, codes in enumerate(latest))
        if max(frame) >= self._bos:
            self._frames.clear()
            return None
        self._frames.append(frame)
        return self._reason() if len(self._frames) == NUM_FRAMES else None

    def _reason(self) -> str | None:
        frames = list(self._frames)
        if all(frame[0] in self._silent for frame in frames):
            return "silence"
        if any(frames[period:] == frames[:-period] for period in PERIODS):
            return "repetition"
        return None
