"""A request on its way through an engine."""

from dataclasses import dataclass, field
from weakref import ref

import torch

from higgs_audio.engine.decode_state import Lanes
from higgs_audio.engine.guard import Guard
from higgs_audio.engine.handle import RequestHandle
from higgs_audio.engine.kv_cache import Saved
from higgs_audio.engine.request import Request
from higgs_audio.engine.scheduler import Ticket


@dataclass(eq=False)  # a run is itself: tensors have no one answer to ==
class Run:
    """A request that an engine has taken.

    Attributes:
        request, answer, ticket: what was asked, what is given back, its place in the queue.
        guard: what watches its codes, where it is guarded.
        rows: of the cache, its own from its first piece on; none while it waits or is set aside.
        num_read: positions of the prompt that are in them.
        known: positions that were read before, of each row: they may be ahead of the others.
        shared: of each row, what of its beginning is saved for others too, as long as it is, and how many positions.
        length: positions in them, once it speaks.
        saved: what was in them, and its lane, while it is set aside.
        is_cancelled: whether it is to leave at the next step.
    """

    request: Request
    answer: RequestHandle
    ticket: Ticket
    guard: Guard | None = None
    rows: list[int] = field(default_factory=list)
    num_read: int = 0
    known: list[int] = field(default_factory=list)
    shared: list[tuple[ref[Saved], int] | None] = field(default_factory=list)
    length: int = 0
    saved: tuple[list[Saved], Lanes] | None = None
    is_cancelled: bool = False

    def __post_init__(self) -> None:
        request = self.request
        both = (request.input_ids,) if request.negative_ids is None else (request.input_ids, request.negative_ids)
        self.ids = torch.stack([ids.long() for ids in both])  # [R, T] of its rows

    @property
    def num_saved_bytes(self) -> int:
        """What it keeps while it is set aside."""
        return 0 if self.saved is None else sum(saved.num_bytes for saved in self.saved[0])
