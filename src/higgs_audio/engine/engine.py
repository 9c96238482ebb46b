"""Many requests, one model: they join and leave at any step, and each gets what it would get alone.

Nobody but those who wait for columns does the work: whoever waits first takes steps for all, and the others wait for
him. So there is no thread to start or to stop, and one request alone costs nothing more.
"""

import math
import threading
import traceback
from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor

from higgs_audio.engine.decode_state import first_lane
from higgs_audio.engine.guard import Guard
from higgs_audio.engine.handle import RequestHandle
from higgs_audio.engine.kv_cache import KVCache, row_bytes
from higgs_audio.engine.prefill import Reader
from higgs_audio.engine.prefix import PrefixCache
from higgs_audio.engine.request import Request
from higgs_audio.engine.runner import Runner
from higgs_audio.engine.sampler import NUM_STEPS
from higgs_audio.engine.scheduler import Scheduler, Ticket
from higgs_audio.engine.sequence import Run
from higgs_audio.engine.slots import Rows
from higgs_audio.errors import NumericsError, OptionError, check_count, typed
from higgs_audio.generation.sampling import NOT_FINITE
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

MEMORY = 4 << 30  # bytes of keys and values at most; they are taken as they are needed
GPU_SHARE = 0.5  # of what is free
CONTEXT = 4096
PREFIX_SHARE = 0.25  # of them for prompts read before
MAX_ROWS = 128
MAX_WAITING = 1024
GPU_STEPS = 4  # 8 ms where a step takes 2
PIECE = 64  # positions of prompts read between two steps of those who speak
LARGE_PIECE = 2048  # where nobody waits for their columns one by one
IDLE_BYTES = 256 << 20  # of the cache that stay where nobody speaks: of 16 requests to nano; to take them is 60 ms


class Engine:
    """Runs requests on one model.

    Args:
        model: the language model, in eval mode. It may be moved, converted or adapted while nobody speaks; where its
            weights are changed in place, `forget`. One engine a model: two of them join its matrices in turns.
        memory: bytes for keys and values, a quarter of them for prompts that may come again, taken as they are needed;
            when None 4 GiB or half of what a GPU has free, and never less than for one request with guidance.
        context: most positions of a prompt and its answer; when None 4096, or what the model was made for.
        max_rows: that run at once; as many as the memory holds when None, at most 128. Guidance takes two.
        max_waiting: requests that may wait for room.
        piece: positions of prompts, counted once a row, that are read between two steps of those who speak already;
            more where all requests are patient.
        num_steps: taken before the host looks at what was made, while it waits for a device but once. Who joins or is
            cancelled waits for them; what follows a last column is thrown away. When None 1, and 4 on a GPU.
        silent: codes of codebook 0 that stand for silence, for requests that are guarded.
        fused: see `Runner`.

    Raises:
        OptionError: memory for less than one row, or a number below 1.
    """

    def __init__(
        self,
        model: HiggsAudioForConditionalGeneration,
        *,
        memory: int | None = None,
        context: int | None = None,
        max_rows: int | None = None,
        max_waiting: int = MAX_WAITING,
        piece: int = PIECE,
        num_steps: int | None = None,
        silent: Collection[int] = (),
        fused: bool | None = None,
    ) -> None:
        config = model.model.text_config
        most = config.max_position_embeddings
        self.context = min(CONTEXT, most) if context is None else context
        check_count("context", self.context, 1, most)
        self._num_steps = (GPU_STEPS if model.device.type == "cuda" else 1) if num_steps is None else num_steps
        check_count("num_steps", self._num_steps, 1, NUM_STEPS)
        self._positions = self.context + self._num_steps - 1  # of a row: some are written behind a last column
        least = math.ceil(row_bytes(config, self._positions, model.dtype) / (1 - PREFIX_SHARE))  # bytes for one row
        memory = max(free_memory(model.device), 2 * least) if memory is None else memory
        for name, value in (("memory", memory), ("max_waiting", max_waiting), ("piece", piece)):
            check_count(name, value, 1)
        room = memory // least
        if room < 1:
            raise OptionError(
                f"memory={memory} holds no row of {self.context} positions, which needs {least}; give more, or a "
                "smaller context"
            )
        self.max_rows = min(room, MAX_ROWS) if max_rows is None else max_rows
        check_count("max_rows", self.max_rows, 1, room)
        self.config, self._piece, self._silent = model.config, piece, frozenset(silent)
        self._model, self._wants_fused = model, fused
        self._prefixes = PrefixCache(int(memory * PREFIX_SHARE))
        self._begin()
        self._scheduler = Scheduler(self.max_rows, max_waiting)
        self._runs: dict[Ticket, Run] = {}
        self._reading: list[Run] = []  # admitted, in order; the first of them have rows
        self._is_any_cancelled = self._is_dropping = False
        self._changed = threading.Condition()
        self._driver: int | None = None  # the thread that takes a step now

    def _begin(self) -> None:
        """A cache and a runner for the model as it is now."""
        model, self._is_stale = self._model, False
        self._cache = KVCache(model.model.text_config, self.max_rows, self._positions, model.dtype, model.device)
        self._runner = Runner(model, self._cache, self._wants_fused)
        self._rows = Rows(self._cache, self.config)
        self._prefixes.clear()
        self._reader = Reader(self._runner, self._rows, self._prefixes)

    # What others may call, from any thread.

    def submit(self, request: Request) -> RequestHandle:
        """Takes a request; its work begins when somebody waits for an answer.

        Raises:
            OptionError: it can need more positions or rows than there are.
            PromptError, CodesError: a prompt that the model cannot read; see `Request.check`.
            QueueFullError: too many wait already.
        """
        self._check(request)
        with self._changed:
            if not self._runs and (self._is_stale or not self._runner.is_current):
                self._begin()  # the model was moved, converted or adapted
            ticket = self._scheduler.add(request.num_rows, request.priority)
            answer = RequestHandle(self.step, lambda: self._cancel(run))
            guard = Guard(self._silent, self.config.audio_stream_bos_id) if request.guarded else None
            run = self._runs[ticket] = Run(request, answer, ticket, guard)
        return answer

    @property
    def num_running(self) -> int:
        """Requests that have rows."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for rows."""
        return len(self._scheduler.waiting)

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values held, those of prompts that may come again and of who is set aside among them."""
        with self._changed:
            aside = sum(run.num_saved_bytes for run in self._runs.values())
            return self._cache.num_bytes + self._prefixes.num_bytes + aside

    def forget(self) -> None:
        """Forgets the prompts read before, and what was made of the weights: they have changed."""
        with self._changed:
            self._prefixes.clear()
            self._is_stale = True

    def _check(self, request: Request) -> None:
        request.check(self.config)
        needed = request.num_positions(self.config.audio_num_codebooks)
        if needed > self.context:
            raise OptionError(
                f"a prompt of {len(request.input_ids)} positions and {request.max_frames} frames need {needed}; this "
                f"engine has {self.context}: give a shorter text or reference, or a greater context"
            )
        if request.num_rows > self.max_rows:
            raise OptionError(f"guidance needs 2 rows and this engine has {self.max_rows}; give it more memory")

    # Who waits, drives.

    def step(self) -> None:
        """One step for all who speak, and a piece of the prompt of whoever is next.

        Where another thread is at it, waits for that one instead. Comes back when there may be something new.
        """
        me = threading.get_ident()
        try:
            with self._changed:
                if self._driver not in (None, me):
                    self._changed.wait()
                    return
                self._driver = me
            self._step()
        finally:
            with self._changed:
                if self._driver == me:
                    self._driver = None
                    try:
                        self._drop()  # whoever was cancelled during the step; nobody may come for another
                    finally:
                        self._changed.notify_all()

    def _cancel(self, run: Run) -> None:
        with self._changed:
            run.is_cancelled = self._is_any_cancelled = True
            if self._driver is None:
                self._drop()
                self._changed.notify_all()

    def _step(self) -> None:
        try:
            with self._changed:
                self._settle()
            self._speak()
            self._read()
        except BaseException as error:  # half a step is no state to go on from: all who were in it are told
            with self._changed:
                self._fail(error)
            if not isinstance(error, Exception):
                raise

    # Joining and leaving; the lock is held.

    def _settle(self) -> None:
        """Who is cancelled leaves, and whom the scheduler admits begins or goes on."""
        self._drop()
        plan = self._scheduler.plan()
        self._rows.expected = self.max_rows - self._scheduler.num_free
        for ticket in plan.set_aside:
            self._set_aside(self._runs[ticket])
        for ticket in plan.admitted:
            run = self._runs[ticket]
            self._reading.append(run) if run.saved is None else self._rows.take_back(run)

    def _set_aside(self, run: Run) -> None:
        self._rows.set_aside(run)
        self._forget_reading(run)

    def _forget_reading(self, run: Run) -> None:
        if run in self._reading:
            self._reading.remove(run)

    def _drop(self) -> None:
        """Those who are cancelled leave; also who is meanwhile, by the garbage collector in this thread."""
        if self._is_dropping:
            return
        self._is_dropping = True
        try:
            while self._is_any_cancelled:
                self._is_any_cancelled = False
                for run in [run for run in self._runs.values() if run.is_cancelled]:
                    self._end(run, "cancelled")
        except Exception as error:
            self._fail(error)
        finally:
            self._is_dropping = False

    def _end(self, run: Run, reason: str | None, error: Exception | None = None) -> None:
        self._rows.leave(run)
        self._close(run, reason, error)
        if not self._runs and self._cache.num_bytes > IDLE_BYTES:
            self._cache.release()

    def _close(self, run: Run, reason: str | None, error: Exception | None) -> None:
        """Out of the books, its answer first: somebody waits for it."""
        run.answer.close(reason, error)
        self._forget_reading(run)
        self._scheduler.remove(run.ticket)
        del self._runs[run.ticket]

    def _fail(self, error: BaseException) -> None:
        """All who have rows, or were about to get some, are told; those who wait or are set aside lose nothing.

        Where nobody was, an error that comes again and again would leave the others waiting for ever: all are told.
        """
        lost = [run for run in self._runs.values() if run.rows or not self._waits(run)]
        if not lost and isinstance(error, Exception):
            lost = list(self._runs.values())
        traceback.clear_frames(error.__traceback__)  # they hold the cache, and whoever is told may try again
        self._cache.release()
        self._rows = Rows(self._cache, self.config)
        self._reader = Reader(self._runner, self._rows, self._prefixes)
        for run in lost:
            self._close(run, None, typed(error))

    def _waits(self, run: Run) -> bool:
        """For rows, or to be read."""
        return run in self._reading or run.ticket in self._scheduler.waiting

    # The work; only the driver does it, and the lock is not held.

    def _read(self) -> None:
        """Pieces of prompts, as many positions as a step may be held up for. All but the last come to their ends."""
        stops = self._stops()
        try:
            self._reader.read(stops)
        except Exception:  # such as a prompt too long for the memory left: it ends alone
            for run, stop in list(stops.items()):
                if not self._survives(run, partial(self._reader.read, {run: stop})):
                    del stops[run]
        for run in stops:
            if run.num_read == len(run.request.input_ids):
                self._survives(run, partial(self._begin_to_speak, run))

    def _stops(self) -> dict[Run, int]:
        """How far prompts are read in this step, in order; where nobody waits for one, the first is read whole."""
        is_offline = all(run.request.is_offline for run in (*self._rows.speaking, *self._reading))
        most, sizes, stops = max(self._piece, LARGE_PIECE) if is_offline else self._piece, list[int](), dict[Run, int]()
        for run in list(self._reading):
            left = most - self._runner.cost(sizes)
            if left <= 0:
                break
            if not run.rows and not self._survives(run, partial(self._reader.begin, run)):
                continue
            unread = len(run.request.input_ids) - run.num_read
            is_alone = not stops and not self._rows.speaking
            size = unread if is_alone else min(unread, max(1, left // len(run.rows)))
            sizes += [size] * len(run.rows)
            if stops and self._runner.cost(sizes) > most:
                break
            stops[run] = run.num_read + size
            if size < unread:
                break
        return stops

    def _survives(self, run: Run, do: Callable[[], None]) -> bool:
        """Does what may fail for one request alone, which then ends."""
        try:
            do()
        except Exception as error:
            with self._changed:
                self._end(run, None, typed(error))
            return False
        return True

    def _begin_to_speak(self, run: Run) -> None:
        lane = first_lane(run.request, self.config, self._runner.model.device)
        self._reading.remove(run)
        self._rows.join(run, lane)
        run.answer.push((self.config.audio_stream_bos_id,) * self.config.audio_num_codebooks, None)

    def _speak(self) -> None:
        """The next columns of everybody who speaks; what follows somebody's last one is nobody's."""
        rows, count = self._rows, self._num_steps
        if not rows.speaking:
            return
        made = torch.stack([self._column(number) for number in range(count)]).tolist()  # the one wait for the device
        with self._changed:
            speaking = list(rows.speaking)
            for run in speaking:
                run.length += count
            for number, columns in enumerate(made, start=1):
                for run, column in zip(speaking, columns, strict=True):
                    if run.rows:
                        self._hand_out(run, column, run.length - count + number)

    def _column(self, number: int) -> Tensor:
        """The one behind so many that the host has not seen, `[B, K + 3]`; see `Choice`."""
        rows = self._rows
        assert rows.lanes is not None
        places = rows.places()
        positions = [rows.speaking[lane].length + number for lane in places.lanes]
        columns = rows.lanes.column[places.lane_of_row]  # [R, K]
        logits = self._runner.step(columns, positions, places.shared)  # [R, K, V + 2]
        rows.lanes, made = places.choice(rows.lanes, logits)
        return made

    def _hand_out(self, run: Run, made: list[int], position: int) -> None:
        """One column of one request, as `_column` made it, at a position."""
        *codes, end, is_last, is_finite = made
        column, reason = tuple(codes), None
        if not is_finite:
            self._end(run, None, NumericsError(f"after {position} positions: {NOT_FINITE}"))
            return
        if is_last:
            frames = end - self.config.audio_num_codebooks - 1
            reason = "length" if frames == run.request.max_frames else "stop"
        elif run.guard is not None:
            reason = run.guard.push(column)
        run.answer.push(column, reason)
        if reason is not None:
            self._end(run, reason)


def free_memory(device: torch.device) -> int:
    """Bytes that keys and values may take where nobody says how many."""
    return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else MEMORY
