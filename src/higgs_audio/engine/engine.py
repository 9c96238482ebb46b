"""Many requests, one model: they join and leave at any step, and each gets what it would get alone.

Nobody but those who wait for columns does the work: whoever waits first takes steps for all, and the others wait for
him. So there is no thread to start or to stop, and one request alone costs nothing more.
"""

import math
import threading
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from higgs_audio.engine.answer import Answer
from higgs_audio.engine.guard import Guard
from higgs_audio.engine.kv_cache import KVCache, Saved, row_bytes
from higgs_audio.engine.lanes import Habits, Lanes, first_lane, is_finished, next_columns
from higgs_audio.engine.prefix import PrefixCache, prefix_key
from higgs_audio.engine.request import Request
from higgs_audio.engine.runner import Runner
from higgs_audio.engine.scheduler import Scheduler, Ticket
from higgs_audio.errors import NumericsError, OptionError, PromptError
from higgs_audio.guidance import guided
from higgs_audio.model import HiggsAudioForConditionalGeneration
from higgs_audio.sampling import check_count

MEMORY = 4 << 30  # bytes of keys and values at most; they are taken as they are needed
GPU_SHARE = 0.5  # of what is free
CONTEXT = 4096
PREFIX_SHARE = 0.25  # of them for prompts read before
MAX_ROWS = 128
MAX_WAITING = 1024
PIECE = 64  # positions of a prompt read between two steps of those who speak
NOISE_STEPS = 32  # whose random numbers are made at once
IDLE_BYTES = 64 << 20  # of the cache that stay where nobody speaks


@dataclass(eq=False)  # a run is itself: tensors have no one answer to ==
class _Run:
    """A request on its way. `rows` of the cache are its own from its first piece on, `read` positions are in them."""

    request: Request
    answer: Answer
    ticket: Ticket
    guard: Guard | None
    rows: list[int] = field(default_factory=list)
    num_read: int = 0
    length: int = 0  # positions in the cache
    saved: tuple[list[Saved], Lanes] | None = None  # while it is set aside

    @property
    def ids(self) -> Tensor:
        """Token ids `[R, T]` of its rows."""
        request = self.request
        both = (request.input_ids,) if request.unread_ids is None else (request.input_ids, request.unread_ids)
        return torch.stack(both)


class Engine:
    """Runs requests on one model.

    Args:
        model: the language model, in eval mode. It may be moved or converted while nobody speaks; where its weights
            are changed in place, `forget`.
        memory: bytes for keys and values, a quarter of them for prompts that may come again, taken as they are needed;
            when None 4 GiB or half of what a GPU has free, and never less than for one request with guidance.
        context: most positions of a prompt and its answer; when None 4096, or what the model was made for.
        max_rows: that run at once; as many as the memory holds when None, at most 128. Guidance takes two.
        max_waiting: requests that may wait for room.
        piece: positions of a prompt that are read between two steps of those who speak already.
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
        silent: Collection[int] = (),
        fused: bool | None = None,
    ) -> None:
        config = model.model.text_config
        most = config.max_position_embeddings
        self.context = min(CONTEXT, most) if context is None else context
        check_count("context", self.context, 1, most)
        least = math.ceil(row_bytes(config, self.context, model.dtype) / (1 - PREFIX_SHARE))  # bytes for one row
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
        self._runs: dict[Ticket, _Run] = {}
        self._reading: list[_Run] = []  # admitted, in order; rows belong to the first alone
        self._speaking: list[_Run] = []  # in the order of the lanes
        self._lanes: Lanes | None = None
        self._places: _Places | None = None
        self._cancelled: list[Answer] = []
        self._changed = threading.Condition()
        self._has_driver = False

    def _begin(self) -> None:
        """A cache and a runner for the model as it is now."""
        model = self._model
        self._cache = KVCache(model.model.text_config, self.max_rows, self.context, model.dtype, model.device)
        self._runner = Runner(model, self._cache, self._wants_fused)
        self._prefixes.clear()

    # What others may call, from any thread.

    def submit(self, request: Request) -> Answer:
        """Takes a request; its work begins when somebody waits for an answer.

        Raises:
            OptionError: it can need more positions or rows than there are.
            PromptError: a prompt that does not fit the model, or does not end where sound begins.
            QueueFullError: too many wait already.
        """
        self._check(request)
        with self._changed:
            if not self._runs and not self._runner.is_current:
                self._begin()  # the model was moved or converted
            ticket = self._scheduler.add(request.num_rows, request.priority)
            answer = Answer(self._wait, self._cancel)
            guard = Guard(self._silent, self.config.audio_stream_bos_id) if request.guarded else None
            self._runs[ticket] = _Run(request, answer, ticket, guard)
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
        """Bytes of keys and values held, those of prompts that may come again among them."""
        return self._cache.num_bytes + self._prefixes.num_bytes

    def forget(self) -> None:
        """Forgets the prompts read before: the model's weights have changed."""
        with self._changed:
            self._prefixes.clear()

    def _check(self, request: Request) -> None:
        num_codebooks = self.config.audio_num_codebooks
        needed = request.num_positions(num_codebooks)
        if needed > self.context:
            raise OptionError(
                f"a prompt of {len(request.input_ids)} positions and {request.max_frames} frames need {needed}; this "
                f"engine has {self.context}: give a shorter text or reference, or a greater context"
            )
        if request.num_rows > self.max_rows:
            raise OptionError(f"guidance needs 2 rows and this engine has {self.max_rows}; give it more memory")
        ids, columns = request.input_ids, request.columns
        if not len(ids) or int(ids[-1]) != self.config.audio_out_bos_token_id:
            raise PromptError("the prompt must end in <|audio_out_bos|>, where sound begins (force_audio=True)")
        places = int(_placeholders(ids, self.config.audio_placeholder_ids).sum())
        if columns.shape != (places, num_codebooks):
            raise PromptError(
                f"{places} placeholders and columns {tuple(columns.shape)}: give [{places}, {num_codebooks}]"
            )

    # Who waits, drives.

    def _wait(self, answer: Answer) -> None:
        """Comes back when the answer may have something new."""
        with self._changed:
            if self._has_driver:
                self._changed.wait()
                return
            self._has_driver = True
        try:
            self.step()
        finally:
            with self._changed:
                self._has_driver = False
                self._changed.notify_all()

    def _cancel(self, answer: Answer) -> None:
        with self._changed:
            self._cancelled.append(answer)
            if not self._has_driver:
                self._settle()

    def step(self) -> None:
        """One step for all who speak, and a piece of the prompt of whoever is next; one thread at a time."""
        try:
            with self._changed:
                self._settle()
            self._speak()
            self._read()
        except BaseException as error:  # the batch cannot be trusted any more: all who were in it are told
            with self._changed:
                self._fail(error if isinstance(error, Exception) else RuntimeError(f"interrupted by {error!r}"))
            if not isinstance(error, Exception):
                raise

    # Joining and leaving; the lock is held.

    def _settle(self) -> None:
        for answer in self._cancelled:
            for run in [run for run in self._runs.values() if run.answer is answer]:
                self._end(run, "cancelled")
        self._cancelled.clear()
        plan = self._scheduler.plan()
        for ticket in plan.set_aside:
            self._set_aside(self._runs[ticket])
        for ticket in plan.admitted:
            self._admit(self._runs[ticket])

    def _admit(self, run: _Run) -> None:
        """To those who read, or back to those who speak where it spoke before."""
        if run.saved is None:
            self._reading.append(run)
            return
        saved, lane = run.saved
        self._take_rows(run)
        for row, state in zip(run.rows, saved, strict=True):
            self._cache.load(row, state)
        run.saved = None
        self._join(run, lane)

    def _set_aside(self, run: _Run) -> None:
        """What it has read or said is kept. One that reads begins again: its prompt is read as fast as copied."""
        if run in self._speaking:
            saved = [self._cache.save(row, run.length) for row in run.rows]
            assert self._lanes is not None
            run.saved = (saved, self._lanes.select([self._speaking.index(run)]))
        self._leave(run)

    def _end(self, run: _Run, reason: str | None, error: Exception | None = None) -> None:
        self._leave(run)
        self._scheduler.remove(run.ticket)
        del self._runs[run.ticket]
        run.answer.close(reason, error)
        if not self._runs and self._cache.num_bytes > IDLE_BYTES:
            self._cache.release()

    def _fail(self, error: Exception) -> None:
        """Everybody is told, and everything begins anew: after half a step nothing is certain."""
        runs = list(self._runs.values())
        self._runs.clear()
        self._reading, self._speaking, self._lanes, self._places = [], [], None, None
        self._scheduler.clear()
        self._cache.release()
        for run in runs:
            run.answer.close(error=error)

    def _take_rows(self, run: _Run) -> None:
        """The next rows behind those who speak. Whoever has begun to read moves up behind them, later."""
        first = sum(len(one.rows) for one in self._speaking)
        reader = next((one for one in self._reading if one.rows), None)
        run.rows = list(range(first, first + run.request.num_rows))
        longest = max(run.length, 1)
        if reader is not None and reader is not run:
            self._move(reader, run.rows[-1] + 1)
        self._cache.reserve(run.rows[-1] + 1, longest)

    def _leave(self, run: _Run) -> None:
        """Gives its rows back and closes the holes: rows that are used have no holes between them."""
        if run in self._speaking:
            lane = self._speaking.index(run)
            assert self._lanes is not None
            self._speaking.remove(run)
            self._lanes = self._lanes.select([n for n in range(len(self._lanes)) if n != lane])
            self._close_holes(run.rows)
        elif run in self._reading:
            self._reading.remove(run)
        run.rows, run.num_read = [], 0
        self._places = None

    def _close_holes(self, holes: list[int]) -> None:
        """Moves the last rows of those who speak into the holes, and who reads up behind them."""
        used = sum(len(one.rows) for one in self._speaking)
        free = [row for row in holes if row < used]
        for run in self._speaking:
            for number, row in enumerate(run.rows):
                if row >= used:
                    target = free.pop()
                    self._cache.move(row, target, run.length)
                    run.rows[number] = target
        reader = next((one for one in self._reading if one.rows), None)
        if reader is not None:
            self._move(reader, used)

    def _move(self, reader: _Run, first: int) -> None:
        """The rows of whoever reads to `first` and on; in the order in which none is overwritten before it is read."""
        rows = list(range(first, first + len(reader.rows)))
        self._cache.reserve(rows[-1] + 1, max(1, reader.num_read))
        pairs = list(zip(reader.rows, rows, strict=True))
        for source, target in pairs if first < reader.rows[0] else reversed(pairs):
            self._cache.move(source, target, reader.num_read)
        reader.rows = rows

    def _join(self, run: _Run, lane: Lanes) -> None:
        self._speaking.append(run)
        self._lanes = lane if self._lanes is None or not len(self._lanes) else self._lanes.join(lane)
        self._places = None

    # The work; only the driver does it, and the lock is not held.

    def _read(self) -> None:
        """Pieces of prompts, as many positions as a step may be held up for."""
        left = self._piece
        while self._reading and left > 0:
            run = self._reading[0]
            if not run.rows:
                self._take_rows(run)
                self._recall(run)
            size = len(run.request.input_ids) - run.num_read
            size = min(size, left) if self._speaking else size
            self._read_piece(run, size)
            left -= size
            if run.num_read == len(run.request.input_ids):
                self._reading.remove(run)
                run.length = run.num_read
                run.answer.push((self.config.audio_stream_bos_id,) * self.config.audio_num_codebooks, None)
                self._join(run, first_lane(run.request, self.config, self._runner.model.device))

    def _read_piece(self, run: _Run, size: int) -> None:
        """The next positions of a prompt; a prefix that may come again ends a piece, and is kept."""
        prefix, start = run.request.prefix, run.num_read
        if start < prefix < start + size:
            self._read_piece(run, prefix - start)
            self._read_piece(run, size - prefix + start)
            return
        stop, device = start + size, self._runner.model.device
        before, within = (
            int(_placeholders(run.request.input_ids[:end], self.config.audio_placeholder_ids).sum())
            for end in (start, stop)
        )
        ids, columns = run.ids[:, start:stop], run.request.columns[before:within]
        self._runner.read(run.rows, ids.to(device), columns.to(device), start)
        run.num_read = stop
        if stop == prefix:
            for number, row in enumerate(run.rows):
                self._prefixes.put(self._prefix_key(run, number), self._cache.save(row, prefix))

    def _recall(self, run: _Run) -> None:
        """Takes over what is known of the prompt."""
        prefix = run.request.prefix
        if not prefix:
            return
        known = [self._prefixes.get(self._prefix_key(run, number)) for number in range(len(run.rows))]
        if all(saved is not None for saved in known):
            self._cache.reserve(run.rows[-1] + 1, prefix)
            for row, saved in zip(run.rows, known, strict=True):
                assert saved is not None
                self._cache.load(row, saved)
            run.num_read = prefix

    def _prefix_key(self, run: _Run, number: int) -> bytes:
        ids = run.ids[number, : run.request.prefix]
        count = int(_placeholders(ids, self.config.audio_placeholder_ids).sum())
        return prefix_key(ids, run.request.columns[:count])

    def _speak(self) -> None:
        """One column of everybody who speaks."""
        if not self._speaking:
            return
        assert self._lanes is not None
        if self._places is None or self._places.num_steps == NOISE_STEPS:
            self._places = _Places.of(self._speaking, self._lanes)
        lanes, places = self._lanes, self._places
        positions = [self._speaking[lane].length for lane in places.lanes]
        logits = self._runner.step(lanes.column[places.lane_of_row], positions)  # [R, K, V + 2]
        read = logits[places.read]  # [B, K, V + 2]
        finite = (read < float("inf")).flatten(1).all(1)  # [B]
        if places.is_guided:
            both = torch.cat([read, logits[places.unread]])
            scale = lanes.scale[:, None, None]
            read = torch.where(scale == 1, read.float(), guided(both, scale, self.config.audio_stream_eos_id))
        self._lanes = next_columns(lanes, read, self.config, places.habits, places.num_steps)
        places.num_steps += 1
        ended = torch.stack([is_finished(self._lanes), finite], dim=1)
        made = torch.cat([self._lanes.column, self._lanes.end[:, None], ended], dim=1).tolist()  # the one wait for it
        with self._changed:
            speaking = list(self._speaking)
            for run in speaking:
                run.length += 1
            for run, (*column, end, is_last, is_finite) in zip(speaking, made, strict=True):
                self._hand_out(run, tuple(column), end if is_last else 0, bool(is_finite))

    def _hand_out(self, run: _Run, column: tuple[int, ...], end: int, is_finite: bool) -> None:
        if not is_finite:
            self._end(
                run,
                None,
                NumericsError(
                    "the model gave logits with NaN or infinity. Usual reasons: float16, whose range is too small (use "
                    "bfloat16 or float32), or damaged weights."
                ),
            )
            return
        reason = None
        if end:
            frames = end - self.config.audio_num_codebooks - 1
            reason = "length" if frames == run.request.max_frames else "stop"
        elif run.guard is not None:
            reason = run.guard.push(column)
        run.answer.push(column, reason)
        if reason is not None:
            self._end(run, reason)


@dataclass
class _Places:
    """What stays the same until somebody joins or leaves, or its random numbers are used up.

    `lanes` and `lane_of_row [R]` say whose a row is; `read`, `unread` `[B]` which rows a lane has, the same one where
    there is no second; `num_steps` have been taken.
    """

    lanes: list[int]
    lane_of_row: Tensor
    read: Tensor
    unread: Tensor
    is_guided: bool
    habits: Habits
    num_steps: int = 0

    @classmethod
    def of(cls, runs: list[_Run], lanes: Lanes) -> "_Places":
        owner = {row: lane for lane, run in enumerate(runs) for row in run.rows}
        rows = [owner[row] for row in range(len(owner))]
        columns = (rows, [run.rows[0] for run in runs], [run.rows[-1] for run in runs])
        lane_of_row, read, unread = (torch.tensor(column, device=lanes.made.device) for column in columns)
        is_guided = any(len(run.rows) > 1 for run in runs)
        return cls(rows, lane_of_row, read, unread, is_guided, Habits.of(lanes, NOISE_STEPS))


def free_memory(device: torch.device) -> int:
    """Bytes that keys and values may take where nobody says how many."""
    return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else MEMORY


def _placeholders(ids: Tensor, placeholder_ids: tuple[int, ...]) -> Tensor:
    """Which of `ids [T]` stand for a column."""
    return torch.isin(ids, torch.tensor(placeholder_ids))
