"""Reads prompts into a cache, pieces of several at once; what precedes a text is read once, however often it comes."""

from collections.abc import Mapping

from higgs_audio.checks import audio_mask
from higgs_audio.engine.prefix import PrefixCache, prefix_key
from higgs_audio.engine.rows import Rows
from higgs_audio.engine.run import Run
from higgs_audio.engine.runner import Piece, Runner


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
        prefix = run.request.prefix
        known = [self._prefixes.get(key) for key in self._keys(run)] if prefix else []
        if not known or None in known:
            return
        self._rows.cache.reserve(run.rows[-1] + 1, prefix)
        for row, saved in zip(run.rows, known, strict=True):
            assert saved is not None
            self._rows.cache.load(row, saved)
        run.num_read = prefix

    def read(self, stops: Mapping[Run, int]) -> None:
        """Prompts that have begun, each up to its position.

        A prefix is read by itself, so that the rest has the same numbers whether it was known or not.
        """
        while ends := {run: self._end(run, stop) for run, stop in stops.items() if run.num_read < stop}:
            self._runner.read([piece for run, end in ends.items() for piece in self._pieces(run, end)])
            for run, end in ends.items():
                run.num_read = end
                if end == run.request.prefix:
                    self._keep(run)

    def _end(self, run: Run, stop: int) -> int:
        prefix = run.request.prefix
        return prefix if run.num_read < prefix < stop else stop

    def _pieces(self, run: Run, stop: int) -> list[Piece]:
        """From where it is to a position, for each of its rows."""
        start = run.num_read
        columns = run.request.columns[self._num_columns(run, start) : self._num_columns(run, stop)]
        return [Piece(row, ids[start:stop], columns, start) for row, ids in zip(run.rows, run.ids, strict=True)]

    def _keep(self, run: Run) -> None:
        """Its prefix; guided, both rows may have the same."""
        for key, row in dict(zip(self._keys(run), run.rows, strict=True)).items():
            self._prefixes.put(key, self._rows.cache.save(row, run.request.prefix))

    def _keys(self, run: Run) -> list[bytes]:
        """What its prefix is known by, for each of its rows."""
        prefix = run.request.prefix
        columns = run.request.columns[: self._num_columns(run, prefix)]
        return [prefix_key(ids, columns) for ids in run.ids[:, :prefix]]

    def _num_columns(self, run: Run, stop: int) -> int:
        """Columns before a position."""
        return int(audio_mask(run.request.input_ids[:stop], self._config).sum())
