"""Reads prompts into a cache, pieces of several at once; what precedes a text is read once, however often it comes.

So is a hidden text: padding after padding, of which a longer one begins with every shorter one.
"""

from collections.abc import Iterator, Mapping
from weakref import ref

from higgs_audio.engine.cache_views import PrefillChunk
from higgs_audio.engine.prefix import PrefixCache, prefix_key
from higgs_audio.engine.runner import Runner
from higgs_audio.engine.sequence import Run
from higgs_audio.engine.slots import Rows
from higgs_audio.generation.checks import audio_mask


class Reader:
    """Reads for one engine.

    Args:
        runner: of the model.
        rows: the books of its cache.
        prefixes: what was read before.
    """

    def __init__(self, runner: Runner, rows: Rows, prefixes: PrefixCache) -> None:
        self._runner, self._rows, self._prefixes = runner, rows, prefixes
        self._config = runner.model.config

    def begin(self, run: Run) -> None:
        """Gives it rows, with what is known of its prompt."""
        self._rows.take(run)
        if run.request.prefix:
            found = [self._load(run, row, key, run.request.prefix) for row, key in enumerate(self._keys(run))]
            run.num_read = min(found)
        if hidden := self._hidden(run):
            self._load(run, 1, *hidden)

    def read(self, stops: Mapping[Run, int]) -> None:
        """Prompts that have begun, each up to its position.

        A prefix is read by itself, so that the rest has the same numbers whether it was known or not.
        """
        while ends := {run: self._end(run, stop) for run, stop in stops.items() if run.num_read < stop}:
            self._read(ends)
            for run, end in ends.items():
                run.num_read = end
                if end == run.request.prefix:
                    self._keep(run)
                if end == len(run.request.input_ids):
                    self._keep_hidden(run)

    def _read(self, ends: Mapping[Run, int]) -> None:
        """From where they are to their ends; of a prefix that several rows have, one reads."""
        pieces, copies, first = list[PrefillChunk](), list[tuple[int, int, int]](), dict[tuple[int, bytes], int]()
        for run, end in ends.items():
            for row, piece in self._pieces(run, end):
                if end <= run.request.prefix:
                    key = piece.start, self._key(run, row, end)
                    if key in first:
                        copies.append((first[key], piece.row, end))
                        continue
                    first[key] = piece.row
                pieces.append(piece)
        if pieces:
            self._runner.read(pieces)
        for copy in copies:
            self._rows.cache.copy(*copy)

    def _load(self, run: Run, row: int, key: bytes, most: int) -> int:
        """What is known under a key, up to so many positions, into one of its rows; how many they are."""
        saved = self._prefixes.get(key)
        if saved is None:
            return 0
        length = min(most, saved.length)
        self._rows.cache.reserve(run.rows[-1] + 1, length)
        self._rows.cache.load(run.rows[row], saved, length)
        run.known[row], run.shared[row] = length, (ref(saved), length)
        return length

    def _end(self, run: Run, stop: int) -> int:
        prefix = run.request.prefix
        return prefix if run.num_read < prefix < stop else stop

    def _pieces(self, run: Run, stop: int) -> Iterator[tuple[int, PrefillChunk]]:
        """From where it is to a position, for each of its rows that does not know them; and which one that is."""
        for number, known in enumerate(run.known):
            start = max(run.num_read, known)
            if start < stop:
                columns = run.request.columns[self._num_columns(run, start) : self._num_columns(run, stop)]
                yield number, PrefillChunk(run.rows[number], run.ids[number, start:stop], columns, start)

    def _keep(self, run: Run) -> None:
        """Its prefix."""
        for row, key in enumerate(self._keys(run)):
            self._share(run, row, key, run.request.prefix)

    def _keep_hidden(self, run: Run) -> None:
        """Its hidden text, where it is longer than what is known."""
        if hidden := self._hidden(run):
            self._share(run, 1, *hidden)

    def _share(self, run: Run, row: int, key: bytes, length: int) -> None:
        """Saves the first positions of one of its rows, where no more of them are known by then."""
        saved = self._prefixes.get(key)
        if saved is None or saved.length < length:
            saved = self._rows.cache.save(run.rows[row], length)
            if not self._prefixes.put(key, saved):
                return
        known = run.shared[row]
        if known is None or known[1] < length:
            run.shared[row] = ref(saved), length

    def _keys(self, run: Run) -> list[bytes]:
        """What its prefix is known by, for each of its rows."""
        return [self._key(run, row, run.request.prefix) for row in range(len(run.rows))]

    def _key(self, run: Run, row: int, stop: int) -> bytes:
        """What the first positions of one of its rows are known by."""
        return prefix_key(run.ids[row, :stop], run.request.columns[: self._num_columns(run, stop)])

    def _hidden(self, run: Run) -> tuple[bytes, int] | None:
        """What a text hidden by one token again and again is known by, whatever its length, and where it stops.

        None where there is none, or where numbers depend on what they are read with: those of a piece of such a text
        would not be those of the whole.
        """
        if len(run.rows) < 2 or not self._runner.is_invariant:
            return None
        places = (run.ids[0] != run.ids[1]).nonzero()[:, 0].tolist()
        if not places:
            return None
        start, stop = places[0], places[-1] + 1
        text = run.ids[1, start:stop]
        if bool((text != text[0]).any()) or bool(audio_mask(text, self._config).any()):
            return None
        return b"hidden" + self._key(run, 1, start + 1), stop

    def _num_columns(self, run: Run, stop: int) -> int:
        """Columns before a position."""
        return int(audio_mask(run.request.input_ids[:stop], self._config).sum())
