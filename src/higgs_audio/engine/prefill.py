"""Prefill of prompts: in chunks, several prompts in one batch, with a cache of prefixes.

The cache contains two kinds of prefixes: those that requests declare (`Request.prefix`), and the hidden text of
guidance. A hidden text is one padding token repeated, so that a longer one begins with every shorter one.
"""

from collections.abc import Iterator, Mapping
from weakref import ref

from higgs_audio.engine.cache_views import PrefillChunk
from higgs_audio.engine.model_runner import ModelRunner
from higgs_audio.engine.prefix_cache import PrefixCache, prefix_key
from higgs_audio.engine.sequence import Sequence
from higgs_audio.engine.slots import Slots
from higgs_audio.generation.checks import audio_mask


class Prefiller:
    """Prefills the prompts of one engine.

    Args:
        runner: runs the model.
        slots: the slots of its cache.
        prefixes: the prefix cache.
    """

    def __init__(self, runner: ModelRunner, slots: Slots, prefixes: PrefixCache) -> None:
        self._runner, self._slots, self._prefixes = runner, slots, prefixes
        self._config = runner.model.config

    def begin(self, sequence: Sequence) -> None:
        """Allocates slots for a sequence and loads the cached part of its prompt."""
        self._slots.allocate(sequence)
        prefix = sequence.request.prefix
        if prefix:
            loaded = [self._load(sequence, row, key, prefix) for row, key in enumerate(self._prefix_keys(sequence))]
            sequence.num_prefilled = min(loaded)
        if hidden := self._hidden_text(sequence):
            self._load(sequence, 1, *hidden)

    def prefill(self, stops: Mapping[Sequence, int]) -> None:
        """Prefills sequences that have begun, each up to its position.

        A prefix is a separate chunk, so that the result of the rest is the same whether the prefix was cached or not.
        """
        while ends := {
            sequence: self._chunk_end(sequence, stop)
            for sequence, stop in stops.items()
            if sequence.num_prefilled < stop
        }:
            self._prefill_batch(ends)
            for sequence, end in ends.items():
                sequence.num_prefilled = end
                if end == sequence.request.prefix:
                    self._cache_prefix(sequence)
                if end == len(sequence.request.input_ids):
                    self._cache_hidden_text(sequence)

    def _prefill_batch(self, ends: Mapping[Sequence, int]) -> None:
        """Prefills sequences up to their ends. A prefix that several slots share is computed once and copied."""
        chunks, copies, first = list[PrefillChunk](), list[tuple[int, int, int]](), dict[tuple[int, bytes], int]()
        for sequence, end in ends.items():
            for row, chunk in self._chunks(sequence, end):
                if end <= sequence.request.prefix:
                    key = chunk.start, self._key(sequence, row, end)
                    if key in first:
                        copies.append((first[key], chunk.slot, end))
                        continue
                    first[key] = chunk.slot
                chunks.append(chunk)
        if chunks:
            self._runner.prefill(chunks)
        for copy in copies:
            self._slots.cache.copy(*copy)

    def _load(self, sequence: Sequence, row: int, key: bytes, max_length: int) -> int:
        """Loads up to `max_length` cached positions into one slot of a sequence; returns their number."""
        saved = self._prefixes.get(key)
        if saved is None:
            return 0
        length = min(max_length, saved.length)
        self._slots.cache.reserve(sequence.slots[-1] + 1, length)
        self._slots.cache.load(sequence.slots[row], saved, length)
        sequence.num_cached[row], sequence.shared[row] = length, (ref(saved), length)
        return length

    def _chunk_end(self, sequence: Sequence, stop: int) -> int:
        prefix = sequence.request.prefix
        return prefix if sequence.num_prefilled < prefix < stop else stop

    def _chunks(self, sequence: Sequence, stop: int) -> Iterator[tuple[int, PrefillChunk]]:
        """Yields the row of `sequence.ids` and the chunk up to `stop`, for each slot that is not cached that far."""
        for row, cached in enumerate(sequence.num_cached):
            start = max(sequence.num_prefilled, cached)
            if start < stop:
                first, last = self._num_columns(sequence, start), self._num_columns(sequence, stop)
                columns = sequence.request.columns[first:last]
                yield row, PrefillChunk(sequence.slots[row], sequence.ids[row, start:stop], columns, start)

    def _cache_prefix(self, sequence: Sequence) -> None:
        for row, key in enumerate(self._prefix_keys(sequence)):
            self._cache(sequence, row, key, sequence.request.prefix)

    def _cache_hidden_text(self, sequence: Sequence) -> None:
        if hidden := self._hidden_text(sequence):
            self._cache(sequence, 1, *hidden)

    def _cache(self, sequence: Sequence, row: int, key: bytes, length: int) -> None:
        """Saves the first positions of one slot of a sequence, unless an entry of at least that length is cached."""
        saved = self._prefixes.get(key)
        if saved is None or saved.length < length:
            saved = self._slots.cache.save(sequence.slots[row], length)
            if not self._prefixes.put(key, saved):
                return
        shared = sequence.shared[row]
        if shared is None or shared[1] < length:
            sequence.shared[row] = ref(saved), length

    def _prefix_keys(self, sequence: Sequence) -> list[bytes]:
        """Returns the cache keys of a sequence's prefix, one for each slot."""
        return [self._key(sequence, row, sequence.request.prefix) for row in range(len(sequence.slots))]

    def _key(self, sequence: Sequence, row: int, stop: int) -> bytes:
        """Returns the cache key of the first `stop` positions of one slot of a sequence."""
        return prefix_key(sequence.ids[row, :stop], sequence.request.columns[: self._num_columns(sequence, stop)])

    def _hidden_text(self, sequence: Sequence) -> tuple[bytes, int] | None:
        """Returns the cache key of a sequence's hidden text, the same for any length, and the position where it ends.

        None without a hidden text, and if the runner is not batch invariant: the first part of a cached hidden text
        would then differ from a hidden text of that length.
        """
        if len(sequence.slots) < 2 or not self._runner.is_batch_invariant:
            return None
        different = (sequence.ids[0] != sequence.ids[1]).nonzero()[:, 0].tolist()
        if not different:
            return None
        start, stop = different[0], different[-1] + 1
        text = sequence.ids[1, start:stop]
        if bool((text != text[0]).any()) or bool(audio_mask(text, self._config).any()):
            return None
        return b"hidden" + self._key(sequence, 1, start + 1), stop

    def _num_columns(self, sequence: Sequence, stop: int) -> int:
        """Returns the number of columns before a position."""
        return int(audio_mask(sequence.request.input_ids[:stop], self._config).sum())
