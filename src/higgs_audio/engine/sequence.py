"""The state of a request inside an engine."""

from dataclasses import dataclass, field
from weakref import ref

import torch

from higgs_audio.engine.decode_state import DecodeState
from higgs_audio.engine.guard import Guard
from higgs_audio.engine.handle import RequestHandle
from higgs_audio.engine.kv_cache import SavedSlot
from higgs_audio.engine.request import Request
from higgs_audio.engine.scheduler import QueueEntry


@dataclass(eq=False)  # compared by identity: tensors cannot be compared as one value
class Sequence:
    """A request that an engine has accepted.

    Attributes:
        request, handle, entry: the request, its result and its place in the scheduler's queue.
        guard: watches its codes where `request.guarded`.
        slots: of the KV cache, from its first prefill chunk on; empty while it waits or is preempted.
        num_prefilled: positions of the prompt that are in all its slots.
        num_cached: per slot, first positions that came from the prefix cache; may exceed `num_prefilled`.
        shared: per slot, the entry of the prefix cache that its first positions equal, while that is cached, and their
            number.
        length: positions in its slots, from its first decode step on.
        saved: while it is preempted, the contents of its slots and its decode state.
        is_cancelled: whether to end it before the next step.
    """

    request: Request
    handle: RequestHandle
    entry: QueueEntry
    guard: Guard | None = None
    slots: list[int] = field(default_factory=list)
    num_prefilled: int = 0
    num_cached: list[int] = field(default_factory=list)
    shared: list[tuple[ref[SavedSlot], int] | None] = field(default_factory=list)
    length: int = 0
    saved: tuple[list[SavedSlot], DecodeState] | None = None
    is_cancelled: bool = False

    def __post_init__(self) -> None:
        request = self.request
        both = (request.input_ids,) if request.negative_ids is None else (request.input_ids, request.negative_ids)
        self.ids = torch.stack([ids.long() for ids in both])  # [1 or 2, T], one row per slot

    @property
    def num_saved_bytes(self) -> int:
        """Bytes of keys and values that it holds while it is preempted."""
        return 0 if self.saved is None else sum(saved.num_bytes for saved in self.saved[0])
