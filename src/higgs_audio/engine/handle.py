"""The handle of a submitted request: yields its columns as they are sampled."""

from collections import deque
from collections.abc import Callable, Iterator

from higgs_audio.delay import Column


class RequestHandle:
    """An iterator over the columns of one segment, from its bos column on. Iterating runs steps of the engine.

    Args:
        wait: runs one step of the engine, or waits for the step of another thread.
        cancel: ends the request.

    Attributes:
        finish_reason: "stop", "length", "silence", "repetition" or "cancelled"; None while the request runs and if it
            failed.
        error: the exception that ended the request, or None; iterating raises it after the columns sampled before.
    """

    def __init__(self, wait: Callable[[], None], cancel: Callable[[], None]) -> None:
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self._columns: deque[Column] = deque()
        self._wait, self._cancel = wait, cancel

    @property
    def is_done(self) -> bool:
        """Whether no more columns will be added; `poll` may still return some."""
        return self.finish_reason is not None or self.error is not None

    def __iter__(self) -> Iterator[Column]:
        return self

    def __next__(self) -> Column:
        while True:
            is_done = self.is_done  # read first: the last column is added before the request is done
            if self._columns:
                return self._columns.popleft()
            if is_done:
                raise StopIteration if self.error is None else self.error
            self.wait()

    def poll(self) -> Column | None:
        """Returns the next column without waiting; None if there is none yet."""
        return self._columns.popleft() if self._columns else None

    def wait(self) -> None:
        """Runs one step of the engine, or waits until another thread has run one."""
        self._wait()

    def cancel(self) -> None:
        """Ends the request before the next step, with finish_reason "cancelled". Does nothing if it has ended."""
        if not self.is_done:
            self._cancel()

    def push(self, column: Column, finish_reason: str | None) -> None:
        """Adds a column, with the finish reason if it is the last. Called by the engine."""
        self._columns.append(column)
        self.finish_reason = finish_reason

    def close(self, finish_reason: str | None = None, error: Exception | None = None) -> None:
        """Ends the request without a further column. Called by the engine."""
        self.finish_reason, self.error = finish_reason, error
