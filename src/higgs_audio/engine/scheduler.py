"""Decides which requests run, wait or are preempted. Policy only, without torch.

Requests of equal priority run in order of arrival. A request is admitted when enough slots are free, and an admitted
request can always finish: a slot has memory for the longest sequence, so that no request stops for lack of memory. A
waiting request preempts running requests of lower priority, the latest first, if that frees enough slots. Preempted
requests resume where they stopped, before other waiting requests of their priority.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from higgs_audio.errors import QueueFullError


@dataclass(frozen=True, order=True)
class QueueEntry:
    """A request in the queue, ordered by priority and arrival.

    Attributes:
        priority: lower values run first.
        arrival: the number of requests that arrived before.
        num_slots: number of slots of the KV cache that the request needs.
    """

    priority: int
    arrival: int
    num_slots: int = field(compare=False)


@dataclass(frozen=True)
class Schedule:
    """The changes before the next step: entries to preempt, then entries that begin or resume."""

    preempted: tuple[QueueEntry, ...] = ()
    admitted: tuple[QueueEntry, ...] = ()


class Scheduler:
    """The queue of one engine.

    Args:
        num_slots: slots of the KV cache.
        max_waiting: maximum number of waiting requests; `add` rejects more.

    Attributes:
        waiting, running: entries of requests without and with slots.
    """

    def __init__(self, num_slots: int, max_waiting: int) -> None:
        self.num_slots, self.max_waiting = num_slots, max_waiting
        self.waiting: list[QueueEntry] = []
        self.running: list[QueueEntry] = []
        self._num_arrived = 0

    @property
    def num_free_slots(self) -> int:
        """Number of slots that no running request uses."""
        return self.num_slots - _count_slots(self.running)

    def add(self, num_slots: int, priority: int) -> QueueEntry:
        """Queues a request.

        Raises:
            QueueFullError: `max_waiting` requests are waiting already.
        """
        assert 1 <= num_slots <= self.num_slots
        if len(self.waiting) >= self.max_waiting:
            raise QueueFullError(
                f"{len(self.waiting)} requests are waiting, the maximum of this engine; try again when some are done, "
                "or create the engine with a larger max_waiting"
            )
        entry = QueueEntry(priority, self._num_arrived, num_slots)
        self._num_arrived += 1
        self.waiting.append(entry)
        return entry

    def remove(self, entry: QueueEntry) -> None:
        """Removes a request that has ended."""
        (self.running if entry in self.running else self.waiting).remove(entry)

    def schedule(self) -> Schedule:
        """Admits waiting requests in order, until one does not fit: if others overtook it, it could starve."""
        preempted: list[QueueEntry] = []
        admitted: list[QueueEntry] = []
        for entry in sorted(self.waiting):
            victims = self._find_victims(entry)
            if victims is None:
                break
            for victim in victims:
                self.running.remove(victim)
            self.running.append(entry)
            preempted += victims
            admitted.append(entry)
        self.waiting = [entry for entry in self.waiting if entry not in admitted] + preempted
        return Schedule(tuple(preempted), tuple(admitted))

    def _find_victims(self, entry: QueueEntry) -> list[QueueEntry] | None:
        """Returns the running requests to preempt for an entry, [] if it fits; None if too few slots can be freed."""
        missing, victims = entry.num_slots - self.num_free_slots, []
        for victim in sorted(self.running, reverse=True):
            if missing <= 0 or victim.priority <= entry.priority:
                break
            victims.append(victim)
            missing -= victim.num_slots
        return victims if missing <= 0 else None


def _count_slots(entries: Iterable[QueueEntry]) -> int:
    return sum(entry.num_slots for entry in entries)
