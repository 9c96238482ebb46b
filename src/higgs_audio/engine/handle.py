"""What an engine gives back for a request: its columns, as they are made."""

from collections import deque
from collections.abc import Callable, Iterator

from higgs_audio.engine.request import Column


class RequestHandle:
    """The columns of one segment, from its bos column on; iterating waits for them and does the engine's work.

    Attributes:
        finish_reason: one of `FINISH_REASONS`, None while it runs.
        error: what it failed with; iterating raises it behind the columns made before.
    """

    def __init__(self, wait: Callable[[], None], cancel: Callable[[], None]) -> None:
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self._columns: deque[Column] = deque()
        self._wait, self._cancel = wait, cancel

    @property
    def is_done(self) -> bool:
        """Whether no more columns will come."""
        return self.finish_reason is not None or self.error is not None

    def __iter__(self) -> Iterator[Column]:
        return self

    def __next__(self) -> Column:
        while True:
            is_done = self.is_done  # first: the last column comes before the answer is done
            if self._columns:
                return self._columns.popleft()
            if is_done:
                raise StopIteration if self.error is None else self.error
            self.wait()

    def poll(self) -> Column | None:
        """The next column, where it has been made."""
        return self._columns.popleft() if self._columns else None

    def wait(self) -> None:
        """A step of the engine's work, or until another thread has done it."""
        self._wait()

    def cancel(self) -> None:
        """Ends it at the next step; nothing where it has ended."""
        if not self.is_done:
            self._cancel()

    def push(self, column: Column, finish_reason: str | None) -> None:
        """The engine's side: the next column, and the reason with the last one."""
        self._columns.append(column)
        self.finish_reason = finish_reason

    def close(self, finish_reason: str | None = None, error: Exception | None = None) -> None:
        """The engine's side: it ends without a further column."""
        self.finish_reason, self.error = finish_reason, error
