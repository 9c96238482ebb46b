"""Continuous batching: requests join and leave the batch at any step, with the same result as alone.

The engine has no thread of its own. The first thread that waits for columns runs steps for all requests, and the other
threads wait for it; so nothing has to be started or stopped, and a single request has no overhead.
"""

import math
import threading
import traceback
from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor

from higgs_audio.engine.decode_state import initial_state
from higgs_audio.engine.handle import RequestHandle
from higgs_audio.engine.kv_cache import INITIAL_POSITIONS, KVCache, slot_bytes
from higgs_audio.engine.loop_detector import LoopDetector
from higgs_audio.engine.model_runner import ModelRunner
from higgs_audio.engine.prefill import Prefiller
from higgs_audio.engine.prefix_cache import PrefixCache
from higgs_audio.engine.request import Request
from higgs_audio.engine.sampler import NUM_STEPS
from higgs_audio.engine.scheduler import QueueEntry, Scheduler
from higgs_audio.engine.sequence import Sequence
from higgs_audio.engine.slots import Slots
from higgs_audio.errors import NumericsError, OptionError, check_count, wrap_error
from higgs_audio.generation.sampling import NOT_FINITE
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.native import one_torch_thread

CPU_MEMORY = 4 << 30  # default limit of the keys and values, in bytes; allocated on demand
GPU_MEMORY_SHARE = 0.5  # default limit of the keys and values, as a share of the free memory of a GPU
CONTEXT = 4096
PREFIX_SHARE = 0.25  # share of that limit for cached prefixes
MAX_SLOTS = 128
MAX_WAITING = 1024
GPU_STEPS = 4  # 8 ms if a step takes 2 ms
PREFILL_CHUNK = 64  # positions that are prefilled between two decode steps
OFFLINE_PREFILL_CHUNK = 2048  # if all requests are offline
IDLE_BYTES = 256 << 20  # cache memory kept while idle, enough for 16 requests of nano: allocation takes 60 ms


class Engine:
    """Runs requests on one model. Its methods may be called from any thread.

    Args:
        model: the model, in eval mode. It may be moved, converted or wrapped in adapters while no request runs; call
            `reset_caches` after changing weights in place. Use one engine per model: two engines would replace each
            other's joined matrices.
        memory: bytes for keys and values, a quarter of them for cached prefixes; allocated on demand. When None, 4 GiB
            or half of a GPU's free memory, and at least enough for one request with guidance.
        context: maximum number of positions of a prompt and its continuation; when None, 4096, or the model's limit if
            that is lower.
        max_slots: slots of the KV cache; a running request uses one, or two with guidance. When None, as many as fit
            into `memory`, at most 128.
        max_waiting: requests that may wait for slots.
        prefill_chunk: positions that are prefilled between two decode steps, counted for each slot; more if all
            requests are offline.
        num_steps: decode steps between two reads of the sampled columns; a read waits for the device. Requests join and
            are cancelled between reads; columns sampled after the last column of a segment are discarded. When None, 1,
            and 4 on a GPU.
        silent: codes of codebook 0 that represent silence, for requests with `detect_loops`.
        fused: see `ModelRunner`.
        initial_positions: positions of each slot that are allocated at first; the number doubles on demand.

    Attributes:
        config: config of the model.
        context, max_slots: the resolved arguments.
        scheduler, prefixes: the queue and the prefix cache.
        cache, runner, slots: the KV cache, the model on it and the allocation of its slots; replaced when a request
            arrives after the model has changed.

    Raises:
        OptionError: memory for less than one slot, or a number below 1.
    """

    def __init__(
        self,
        model: HiggsAudioForConditionalGeneration,
        *,
        memory: int | None = None,
        context: int | None = None,
        max_slots: int | None = None,
        max_waiting: int = MAX_WAITING,
        prefill_chunk: int = PREFILL_CHUNK,
        num_steps: int | None = None,
        silent: Collection[int] = (),
        fused: bool | None = None,
        initial_positions: int = INITIAL_POSITIONS,
    ) -> None:
        config = model.model.text_config
        max_context = config.max_position_embeddings
        self.context = min(CONTEXT, max_context) if context is None else context
        check_count("context", self.context, 1, max_context)
        self._num_steps = (GPU_STEPS if model.device.type == "cuda" else 1) if num_steps is None else num_steps
        check_count("num_steps", self._num_steps, 1, NUM_STEPS)
        self._positions = self.context + self._num_steps - 1  # per slot: steps after a last column write there too
        one_slot = math.ceil(slot_bytes(config, self._positions, model.dtype) / (1 - PREFIX_SHARE))
        memory = max(free_memory(model.device), 2 * one_slot) if memory is None else memory
        counts = {"memory": memory, "max_waiting": max_waiting, "prefill_chunk": prefill_chunk}
        for name, value in (counts | {"initial_positions": initial_positions}).items():
            check_count(name, value, 1)
        num_slots = memory // one_slot
        if num_slots < 1:
            raise OptionError(
                f"memory={memory} is too small for one sequence of {self.context} positions, which requires {one_slot} "
                "bytes; give more memory or a smaller context"
            )
        self.max_slots = min(num_slots, MAX_SLOTS) if max_slots is None else max_slots
        check_count("max_slots", self.max_slots, 1, num_slots)
        self.config, self._prefill_chunk, self._silent = model.config, prefill_chunk, frozenset(silent)
        self._model, self._use_fused, self._initial_positions = model, fused, initial_positions
        self.prefixes = PrefixCache(int(memory * PREFIX_SHARE))
        self._build()
        self.scheduler = Scheduler(self.max_slots, max_waiting)
        self._sequences: dict[QueueEntry, Sequence] = {}
        self._prefilling: list[Sequence] = []  # admitted, in order; the first of them have slots
        self._is_any_cancelled = self._is_removing = False
        self._changed = threading.Condition()
        self._stepping_thread: int | None = None

    def _build(self) -> None:
        """Creates the cache and the runner for the model as it is now."""
        model, self._is_stale = self._model, False
        size, initial = (self.max_slots, self._positions), self._initial_positions
        self.cache = KVCache(model.model.text_config, *size, model.dtype, model.device, initial)
        self.runner = ModelRunner(model, self.cache, self._use_fused)
        self.prefixes.clear()
        self._reset_slots()

    def _reset_slots(self) -> None:
        self.slots = Slots(self.cache, self.config)
        self._prefiller = Prefiller(self.runner, self.slots, self.prefixes)

    def submit(self, request: Request) -> RequestHandle:
        """Queues a request. It is processed when a thread waits for a column of this or another request.

        Raises:
            OptionError: the request may need more positions or slots than the engine has.
            PromptError, CodesError: a prompt that the model cannot process; see `Request.check`.
            QueueFullError: `max_waiting` requests are waiting already.
        """
        self._check(request)
        with self._changed:
            if not self._sequences and (self._is_stale or not self.runner.is_current):
                self._build()  # the model was moved, converted or adapted
            entry = self.scheduler.add(request.num_slots, request.priority)
            handle = RequestHandle(self.step, lambda: self._cancel(sequence))
            detector = LoopDetector(self._silent, self.config.audio_stream_bos_id) if request.detect_loops else None
            sequence = self._sequences[entry] = Sequence(request, handle, entry, detector)
        return handle

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._sequences)

    @property
    def num_running(self) -> int:
        """Requests that have slots."""
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for slots."""
        return len(self.scheduler.waiting)

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values, including cached prefixes and preempted requests."""
        with self._changed:
            saved = sum(sequence.num_saved_bytes for sequence in self._sequences.values())
            return self.cache.num_bytes + self.prefixes.num_bytes + saved

    def reset_caches(self) -> None:
        """Discards cached prefixes now, and packed and joined weights before the next request.

        Call it after changing weights in place.
        """
        with self._changed:
            self.prefixes.clear()
            self._is_stale = True

    def _check(self, request: Request) -> None:
        request.check(self.config)
        needed = request.num_positions(self.config.audio_num_codebooks)
        if needed > self.context:
            raise OptionError(
                f"a prompt of {len(request.input_ids)} positions and {request.max_frames} frames may need {needed}; "
                f"this engine has {self.context}: give a shorter text or reference, or a larger context"
            )
        if request.num_slots > self.max_slots:
            raise OptionError(f"guidance needs 2 slots and this engine has {self.max_slots}; give more memory or slots")

    # Steps. The lock is held while sequences join and leave, not while the model runs.

    def step(self) -> None:
        """Runs one decode step for all decoding requests, and prefills a chunk of the next prompts.

        If another thread is running a step, waits for that step instead. Returns when there may be new columns.
        """
        this_thread = threading.get_ident()
        try:
            with self._changed:
                if self._stepping_thread not in (None, this_thread):
                    self._changed.wait()
                    return
                self._stepping_thread = this_thread
            self._step()
        finally:
            with self._changed:
                if self._stepping_thread == this_thread:
                    self._stepping_thread = None
                    try:
                        self._remove_cancelled()  # cancelled during the step; there may be no further step
                    finally:
                        self._changed.notify_all()

    def _cancel(self, sequence: Sequence) -> None:
        with self._changed:
            sequence.is_cancelled = self._is_any_cancelled = True
            if self._stepping_thread is None:
                self._remove_cancelled()
                self._changed.notify_all()

    def _step(self) -> None:
        try:
            with one_torch_thread(self.runner.native is not None):
                with self._changed:
                    self._update_batch()
                self._decode()
                self._prefill()
        except BaseException as error:  # a step that fails midway leaves no valid state: its requests fail
            with self._changed:
                self._fail(error)
            if not isinstance(error, Exception):
                raise

    # Joining and leaving; the lock is held.

    def _update_batch(self) -> None:
        """Removes cancelled requests, preempts requests, and starts or resumes admitted requests."""
        self._remove_cancelled()
        schedule = self.scheduler.schedule()
        self.slots.expected = self.max_slots - self.scheduler.num_free_slots
        for entry in schedule.preempted:
            self._preempt(self._sequences[entry])
        for entry in schedule.admitted:
            sequence = self._sequences[entry]
            if sequence.saved is None:
                self._prefilling.append(sequence)
            else:
                self.slots.resume(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self.slots.preempt(sequence)
        self._stop_prefill(sequence)

    def _stop_prefill(self, sequence: Sequence) -> None:
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)

    def _remove_cancelled(self) -> None:
        """Ends cancelled requests, including requests that the garbage collector cancels in this thread meanwhile."""
        if self._is_removing:
            return
        self._is_removing = True
        try:
            while self._is_any_cancelled:
                self._is_any_cancelled = False
                for sequence in [sequence for sequence in self._sequences.values() if sequence.is_cancelled]:
                    self._end(sequence, "cancelled")
        except Exception as error:
            self._fail(error)
        finally:
            self._is_removing = False

    def _end(self, sequence: Sequence, reason: str | None, error: Exception | None = None) -> None:
        self.slots.free(sequence)
        self._close(sequence, reason, error)
        if not self._sequences and self.cache.num_bytes > IDLE_BYTES:
            self.cache.release()

    def _close(self, sequence: Sequence, reason: str | None, error: Exception | None) -> None:
        """Removes the request; closes the handle first, because a thread may wait for it."""
        sequence.handle.close(reason, error)
        self._stop_prefill(sequence)
        self.scheduler.remove(sequence.entry)
        del self._sequences[sequence.entry]

    def _fail(self, error: BaseException) -> None:
        """Ends all requests that had slots or were about to get them; waiting and preempted requests continue.

        If there were none, all requests end: an error that recurs in every step would make them wait forever.
        """
        failed = [sequence for sequence in self._sequences.values() if sequence.slots or not self._is_waiting(sequence)]
        if not failed and isinstance(error, Exception):
            failed = list(self._sequences.values())
        traceback.clear_frames(error.__traceback__)  # frames keep the cache alive, whose memory may be needed
        self.cache.release()
        self._reset_slots()
        for sequence in failed:
            self._close(sequence, None, wrap_error(error))

    def _is_waiting(self, sequence: Sequence) -> bool:
        """Whether a sequence waits for slots or for its prefill."""
        return sequence in self._prefilling or sequence.entry in self.scheduler.waiting

    # Prefill and decode, in the stepping thread only; the lock is not held.

    def _prefill(self) -> None:
        """Prefills chunks of prompts, up to the number of positions that may delay a decode step."""
        stops = self._prefill_stops()
        try:
            self._prefiller.prefill(stops)
        except Exception:  # such as a prompt too long for the memory: retry one by one, so that only its request fails
            for sequence, stop in list(stops.items()):
                if not self._try(sequence, partial(self._prefiller.prefill, {sequence: stop})):
                    del stops[sequence]
        for sequence in stops:
            if sequence.num_prefilled == len(sequence.request.input_ids):
                self._try(sequence, partial(self._start_decoding, sequence))

    def _prefill_stops(self) -> dict[Sequence, int]:
        """Returns the position up to which each prompt is prefilled in this step, in order.

        If no sequence is decoding, the whole first prompt is prefilled.
        """
        is_offline = all(sequence.request.is_offline for sequence in (*self.slots.decoding, *self._prefilling))
        budget = max(self._prefill_chunk, OFFLINE_PREFILL_CHUNK) if is_offline else self._prefill_chunk
        sizes, stops = list[int](), dict[Sequence, int]()
        for sequence in list(self._prefilling):
            remaining = budget - self.runner.prefill_cost(sizes)
            if remaining <= 0:
                break
            if not sequence.slots and not self._try(sequence, partial(self._prefiller.begin, sequence)):
                continue
            num_left = len(sequence.request.input_ids) - sequence.num_prefilled
            is_alone = not stops and not self.slots.decoding
            size = num_left if is_alone else min(num_left, max(1, remaining // len(sequence.slots)))
            sizes += [size] * len(sequence.slots)
            if stops and self.runner.prefill_cost(sizes) > budget:
                break
            stops[sequence] = sequence.num_prefilled + size
            if size < num_left:
                break
        return stops

    def _try(self, sequence: Sequence, work: Callable[[], None]) -> bool:
        """Runs work for one sequence; if it fails, only that request ends. Returns whether it succeeded."""
        try:
            work()
        except Exception as error:
            with self._changed:
                self._end(sequence, None, wrap_error(error))
            return False
        return True

    def _start_decoding(self, sequence: Sequence) -> None:
        state = initial_state(sequence.request, self.config, self.runner.model.device)
        self._prefilling.remove(sequence)
        self.slots.start_decoding(sequence, state)
        sequence.handle.push((self.config.audio_stream_bos_id,) * self.config.audio_num_codebooks, None)

    def _decode(self) -> None:
        """Runs `num_steps` decode steps, then passes their columns to the handles, up to the end of each segment."""
        count = self._num_steps
        if not self.slots.decoding:
            return
        steps = torch.stack([self._decode_step(index) for index in range(count)]).tolist()  # waits for the device
        with self._changed:
            decoding = list(self.slots.decoding)
            for sequence in decoding:
                sequence.length += count
            for number, columns in enumerate(steps, start=1):
                for sequence, column in zip(decoding, columns, strict=True):
                    if sequence.slots:
                        self._add_column(sequence, column, sequence.length - count + number)

    def _decode_step(self, index: int) -> Tensor:
        """Runs step `index` since the last read, without waiting for the device; see `Sampler` for the result."""
        slots = self.slots
        assert slots.state is not None
        layout = slots.layout()
        positions = [slots.decoding[owner].length + index for owner in layout.owners]
        columns = slots.state.column[layout.owner_index]  # [R, K]
        logits = self.runner.decode(columns, positions, layout.shared)  # [R, K, V + 2]
        slots.state, sampled = layout.sampler(slots.state, logits)
        return sampled

    def _add_column(self, sequence: Sequence, sampled: list[int], num_positions: int) -> None:
        """Adds a column, as returned by `_decode_step`, to the handle of its request; the last column ends it."""
        *codes, end, is_last, is_finite = sampled
        column, reason = tuple(codes), None
        if not is_finite:
            self._end(sequence, None, NumericsError(f"after {num_positions} positions: {NOT_FINITE}"))
            return
        if is_last:
            num_frames = end - self.config.audio_num_codebooks - 1
            reason = "length" if num_frames == sequence.request.max_frames else "stop"
        elif sequence.detector is not None:
            reason = sequence.detector.push(column)
        sequence.handle.push(column, reason)
        if reason is not None:
            self._end(sequence, reason)


def free_memory(device: torch.device) -> int:
    """Returns the default limit of keys and values in bytes: 4 GiB, or half of the free memory of a GPU."""
    if device.type == "cuda":
        return int(GPU_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0])
    return CPU_MEMORY
