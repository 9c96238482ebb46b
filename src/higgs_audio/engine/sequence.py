"""The state of a request inside an engine."""

from dataclasses import dataclass, field
from weakref import ref

import torch

from higgs_audio.engine.decode_state import DecodeState
from higgs_audio.engine.handle import RequestHandle
from higgs_audio.engine.kv_cache import SavedSlot
from higgs_audio.engine.loop_detector import LoopDetector
from higgs_audio.engine.request import Request
from higgs_audio.engine.scheduler import QueueEntry


@dataclass(eq=False)  # compared by identity, because `==` of tensors is elementwise
class Sequence:
    """A request that an engine has accepted.

    Attributes:
        request, handle, entry: the request, its handle and its entry in the scheduler's queue.
        detector: detects loops in its codes; None unless `request.detect_loops`.
        slots: slots of the KV cache, from the first prefill chunk on; empty while the request waits or is preempted.
        num_prefilled: number of positions of the prompt that are in all slots.
        num_cached: per slot, number of positions loaded from the prefix cache; may exceed `num_prefilled`.
        shared: per slot, a weak reference to the entry of the prefix cache that equals its first positions, and their
            number.
        length: number of positions in the slots, from the first decode step on.
        saved: while preempted, the contents of the slots and the decode state.
        is_cancelled: whether the engine ends the request before the next step.
    """

    request: Request
    handle: RequestHandle
    entry: QueueEntry
    detector: LoopDetector | None = None
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
        """Bytes of keys and values that are saved while the request is preempted."""
        return 0 if self.saved is None else sum(saved.num_bytes for saved in self.saved[0])
