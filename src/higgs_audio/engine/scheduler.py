"""Decides which requests run, wait or are preempted. Policy only, without torch.

Requests of one priority run in the order of their arrival. A request is admitted when as many slots as it needs are
free, and an admitted request can always finish: a slot has room for the longest sequence, so that no request stops for
lack of memory. A waiting request preempts running ones of lower priority, the latest first, if that frees enough slots.
Preempted requests resume where they stopped, before the other waiting requests of their priority.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from higgs_audio.errors import QueueFullError


@dataclass(frozen=True, order=True)
class QueueEntry:
    """A request as the scheduler knows it, ordered by priority and arrival.

    Attributes:
        priority: lower values run first.
        arrival: the number of the request.
        num_slots: slots of the KV cache that it needs.
    """

    priority: int
    arrival: int
    num_slots: int = field(compare=False)


@dataclass(frozen=True)
class Schedule:
    """What changes before the next step: entries to preempt, then entries that begin or resume."""

    preempted: tuple[QueueEntry, ...] = ()
    admitted: tuple[QueueEntry, ...] = ()


class Scheduler:
    """The queue of one engine.

    Args:
        num_slots: slots of the KV cache.
        max_waiting: requests that may wait; `add` refuses more.

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
        """Slots that no running request has."""
        return self.num_slots - _count_slots(self.running)

    def add(self, num_slots: int, priority: int) -> QueueEntry:
        """Queues a request.

        Raises:
            QueueFullError: `max_waiting` requests wait already.
        """
        assert 1 <= num_slots <= self.num_slots
        if len(self.waiting) >= self.max_waiting:
            raise QueueFullError(
                f"{len(self.waiting)} requests wait, the most that this engine allows; try again when some are done, "
                "or create the engine with a greater max_waiting"
            )
        entry = QueueEntry(priority, self._num_arrived, num_slots)
        self._num_arrived += 1
        self.waiting.append(entry)
        return entry

    def remove(self, entry: QueueEntry) -> None:
        """Removes a request that has ended."""
        (self.running if entry in self.running else self.waiting).remove(entry)

    def schedule(self) -> Schedule:
        """Admits waiting requests in order, until one does not fit: to let others overtake it could starve it."""
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
        """Running requests to preempt for an entry, none where it fits; None where preemption does not free enough."""
        missing, victims = entry.num_slots - self.num_free_slots, []
        for victim in sorted(self.running, reverse=True):
            if missing <= 0 or victim.priority <= entry.priority:
                break
            victims.append(victim)
            missing -= victim.num_slots
        return victims if missing <= 0 else None


def _count_slots(entries: Iterable[QueueEntry]) -> int:
    return sum(entry.num_slots for entry in entries)
