"""Who runs, who waits, who is set aside. Policy alone: no tensors.

Requests of one priority run in the order of their arrival. A request is admitted when the rows that it takes are free,
and whoever is admitted can always finish: rows are whole, so nobody is stopped for want of memory. One that waits sets
aside those of a lower priority, the last come first, where that makes enough room; they go on where they stopped, as
the first of their priority.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from higgs_audio.errors import QueueFullError


@dataclass(frozen=True, order=True)
class Ticket:
    """A request as the scheduler knows it; ordered by who goes first."""

    priority: int
    number: int  # of arrival
    num_rows: int = field(compare=False)


@dataclass(frozen=True)
class Plan:
    """What changes before the next step: tickets to set aside, then tickets that begin or go on."""

    set_aside: tuple[Ticket, ...] = ()
    admitted: tuple[Ticket, ...] = ()


class Scheduler:
    """Keeps the books of one engine.

    Args:
        num_rows: that can run at once.
        max_waiting: requests that may wait; more are refused.
    """

    def __init__(self, num_rows: int, max_waiting: int) -> None:
        self.num_rows, self.max_waiting = num_rows, max_waiting
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self._arrived = 0

    @property
    def num_free(self) -> int:
        """Rows that nobody has."""
        return self.num_rows - _rows(self.running)

    def add(self, num_rows: int, priority: int) -> Ticket:
        """Takes a request.

        Raises:
            QueueFullError: as many wait as may.
        """
        assert 1 <= num_rows <= self.num_rows
        if len(self.waiting) >= self.max_waiting:
            raise QueueFullError(
                f"{len(self.waiting)} requests wait, which is as many as may; ask again when some are done, or give "
                "the engine a greater max_waiting"
            )
        ticket = Ticket(priority, self._arrived, num_rows)
        self._arrived += 1
        self.waiting.append(ticket)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """A request has ended or is no longer wanted."""
        (self.running if ticket in self.running else self.waiting).remove(ticket)

    def plan(self) -> Plan:
        """Admits whom it can, in order. Nobody overtakes one that waits for room: it would starve."""
        set_aside: list[Ticket] = []
        admitted: list[Ticket] = []
        for ticket in sorted(self.waiting):
            victims = self._victims(ticket)
            if victims is None:
                break
            for victim in victims:
                self.running.remove(victim)
            self.running.append(ticket)
            set_aside += victims
            admitted.append(ticket)
        self.waiting = [ticket for ticket in self.waiting if ticket not in admitted] + set_aside
        return Plan(tuple(set_aside), tuple(admitted))

    def _victims(self, ticket: Ticket) -> list[Ticket] | None:
        """Whom the ticket sets aside to have room: nobody where there is some, None where there can be none."""
        missing, victims = ticket.num_rows - self.num_free, []
        for victim in sorted(self.running, reverse=True):
            if missing <= 0 or victim.priority <= ticket.priority:
                break
            victims.append(victim)
            missing -= victim.num_rows
        return victims if missing <= 0 else None


def _rows(tickets: Iterable[Ticket]) -> int:
    return sum(ticket.num_rows for ticket in tickets)
