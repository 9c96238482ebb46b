"""Whose the rows of a cache are: first, without holes, of those who speak; behind them of those who read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from higgs_audio.config import HiggsAudioConfig
from higgs_audio.engine.decode_state import Lanes
from higgs_audio.engine.kv_cache import KVCache, Shared
from higgs_audio.engine.sampler import NUM_STEPS, Choice, choice_for
from higgs_audio.engine.sequence import Run


class Rows:
    """Keeps the books of one cache.

    Args:
        cache: whose rows they are.
        config: of the model.

    Attributes:
        cache: as given.
        speaking: runs, in the order of their lanes.
        lanes: where they stand; None before the first.
        expected: rows that will be wanted soon; room for them is made at once.
        readers: runs whose prompts are in the cache in part, in the order of their rows.
    """

    def __init__(self, cache: KVCache, config: HiggsAudioConfig) -> None:
        self.cache, self._config = cache, config
        self.speaking: list[Run] = []
        self.lanes: Lanes | None = None
        self.readers: list[Run] = []
        self.expected = 0
        self._places: Places | None = None

    def take(self, run: Run) -> None:
        """The next rows, for whoever reads from now on."""
        first = _num_rows(self.speaking) + _num_rows(self.readers)
        rows = list(range(first, first + run.request.num_rows))
        self.cache.reserve(max(rows[-1] + 1, self.expected), 1)
        self.readers.append(run)
        run.rows, run.known, run.shared = rows, [0] * len(rows), [None] * len(rows)

    def join(self, run: Run, lane: Lanes) -> None:
        """The first who reads has read its prompt, and speaks."""
        assert run is self.readers[0]
        self.readers.remove(run)
        run.length = run.num_read
        self._add(run, lane)

    def set_aside(self, run: Run) -> None:
        """Takes its rows. What has been said is kept; a prompt is read again, about as fast as it would be copied."""
        if run in self.speaking:
            assert self.lanes is not None
            saved = [self.cache.save(row, run.length) for row in run.rows]
            run.saved = (saved, self.lanes.select([self.speaking.index(run)]))
        self.leave(run)

    def take_back(self, run: Run) -> None:
        """Whoever was set aside speaks on. Those who read move up behind it."""
        assert run.saved is not None
        saved, lane = run.saved
        first = _num_rows(self.speaking)
        rows = list(range(first, first + run.request.num_rows))
        self.cache.reserve(rows[-1] + 1, run.length)
        self._move_readers(rows[-1] + 1)
        run.rows = rows
        for row, state in zip(run.rows, saved, strict=True):
            self.cache.load(row, state)
        run.saved = None
        self._add(run, lane)

    def leave(self, run: Run) -> None:
        """Gives its rows back, if it has any, and closes the holes."""
        rows, run.rows = run.rows, []
        for row in rows:
            self.cache.wipe(row, run.length or len(run.request.input_ids))
        if run in self.speaking:
            lane = self.speaking.index(run)
            assert self.lanes is not None
            self.speaking.remove(run)
            self.lanes = self.lanes.select([n for n in range(len(self.lanes)) if n != lane])
            self._close(rows)
        elif run in self.readers:
            self.readers.remove(run)
            self._move_readers(_num_rows(self.speaking))
        run.num_read = 0
        self._places = None

    def places(self) -> "Places":
        """Which lane has which rows, with random numbers for at least one step."""
        assert self.lanes is not None
        if self._places is None or self._places.choice.num_steps == NUM_STEPS:
            self._places = Places.of(self.speaking, self.lanes, self._config)
        return self._places

    def _add(self, run: Run, lane: Lanes) -> None:
        self.speaking.append(run)
        self.lanes = lane if self.lanes is None or not len(self.lanes) else self.lanes.join(lane)
        self._places = None

    def _close(self, holes: list[int]) -> None:
        """Moves the last rows of those who speak into the holes, and who reads up behind them."""
        used = _num_rows(self.speaking)
        free = [row for row in holes if row < used]
        for run in self.speaking:
            for number, row in enumerate(run.rows):
                if row >= used:
                    target = free.pop()
                    self.cache.move(row, target, run.length)
                    run.rows[number] = target
        self._move_readers(used)

    def _move_readers(self, first: int) -> None:
        """Their rows to `first` and on; in the order in which none is overwritten before it is read."""
        moves: list[tuple[int, int, int]] = []  # source, target, positions
        for run in self.readers:
            rows = list(range(first, first + len(run.rows)))
            lengths = [max(run.num_read, known) for known in run.known]
            moves += zip(run.rows, rows, lengths, strict=True)
            run.rows, first = rows, first + len(rows)
        if not moves or moves[-1][0] == moves[-1][1]:
            return
        self.cache.reserve(first, max(1, *(length for _, _, length in moves)))
        for source, target, length in moves if moves[-1][1] < moves[-1][0] else reversed(moves):
            if source != target:
                self.cache.move(source, target, length)


@dataclass(frozen=True)
class Places:
    """What stays the same until somebody joins or leaves, or its random numbers are used up.

    `lanes` and `lane_of_row [R]` say whose a row is; `choice` makes the columns; `shared` is of the rows.
    """

    lanes: list[int]
    lane_of_row: Tensor
    choice: Choice
    shared: Shared

    @classmethod
    def of(cls, runs: list[Run], lanes: Lanes, config: HiggsAudioConfig) -> "Places":
        owner = {row: lane for lane, run in enumerate(runs) for row in run.rows}
        rows = [owner[row] for row in range(len(owner))]
        columns = (rows, [run.rows[0] for run in runs], [run.rows[-1] for run in runs])
        lane_of_row, read, unread = (torch.tensor(column, device=lanes.made.device) for column in columns)
        parts = {row: part for run in runs for row, part in zip(run.rows, run.shared, strict=True)}
        alive = ((part[0](), part[1]) if (part := parts[row]) else (None, 0) for row in range(len(rows)))
        shared = Shared([(saved, count) if saved else None for saved, count in alive])
        return cls(rows, lane_of_row, choice_for(lanes, read, unread, config), shared)


def _num_rows(runs: list[Run]) -> int:
    return sum(len(run.rows) for run in runs)
