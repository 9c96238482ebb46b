"""Reads prompts into a cache, a piece at a time; what precedes a text is read once, however often it comes."""

from higgs_audio.checks import audio_mask
from higgs_audio.engine.prefix import PrefixCache, prefix_key
from higgs_audio.engine.rows import Rows
from higgs_audio.engine.run import Run
from higgs_audio.engine.runner import Runner


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

    def read(self, run: Run, most: int | None) -> int:
        """The next positions of a prompt, at most so many, or all where None; how many they were.

        Those that were read before cost nothing and do not count.
        """
        if not run.rows:
            self._rows.take(run)
            self._recall(run)
        left = len(run.request.input_ids) - run.num_read
        size = left if most is None else min(left, most)
        start, prefix = run.num_read, run.request.prefix
        if start < prefix < start + size:
            self._read_piece(run, prefix)
        self._read_piece(run, start + size)
        return size

    def _read_piece(self, run: Run, stop: int) -> None:
        """Up to a position; a prefix that ends there is kept."""
        start, device = run.num_read, self._runner.model.device
        before, within = (self._num_columns(run, end) for end in (start, stop))
        ids, columns = run.ids[:, start:stop], run.request.columns[before:within]
        self._runner.read(run.rows, ids.to(device), columns.to(device), start)
        run.num_read = stop
        if stop == run.request.prefix:
            for key, row in dict(zip(self._keys(run), run.rows, strict=True)).items():  # guided, both may be the same
                self._prefixes.put(key, self._rows.cache.save(row, stop))

    def _recall(self, run: Run) -> None:
        """Takes over what is known of the prompt."""
        prefix = run.request.prefix
        known = [self._prefixes.get(key) for key in self._keys(run)] if prefix else []
        if not known or None in known:
            return
        self._rows.cache.reserve(run.rows[-1] + 1, prefix)
        for row, saved in zip(run.rows, known, strict=True):
            assert saved is not None
            self._rows.cache.load(row, saved)
        run.num_read = prefix

    def _keys(self, run: Run) -> list[bytes]:
        """What its prefix is known by, for each of its rows."""
        prefix = run.request.prefix
        columns = run.request.columns[: self._num_columns(run, prefix)]
        return [prefix_key(ids, columns) for ids in run.ids[:, :prefix]]

    def _num_columns(self, run: Run, stop: int) -> int:
        """Columns before a position."""
        return int(audio_mask(run.request.input_ids[:stop], self._config).sum())
