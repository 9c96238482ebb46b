"""The prefix cache: keys and values of prompt prefixes. The prefix of a voice is prefilled once for all requests."""

import hashlib
import threading
from collections import OrderedDict

from torch import Tensor

from higgs_audio.engine.kv_cache import SavedSlot


class PrefixCache:
    """An LRU cache of keys and values, by the hash of the ids and columns that they were computed from. Thread-safe.

    Args:
        max_bytes: limit of all entries together.

    Attributes:
        num_bytes: size of all entries now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._saved: OrderedDict[bytes, SavedSlot] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._saved)

    def get(self, key: bytes) -> SavedSlot | None:
        """Returns the entry of a key and marks it as most recently used; None if there is none."""
        with self._lock:
            saved = self._saved.get(key)
            if saved is not None:
                self._saved.move_to_end(key)
            return saved

    def put(self, key: bytes, saved: SavedSlot) -> bool:
        """Stores an entry and evicts the least recently used ones; returns False if it alone exceeds `max_bytes`."""
        if saved.num_bytes > self.max_bytes:
            return False
        with self._lock:
            old = self._saved.pop(key, None)
            self.num_bytes += saved.num_bytes - (0 if old is None else old.num_bytes)
            self._saved[key] = saved
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._saved.popitem(last=False)[1].num_bytes
        return True

    def clear(self) -> None:
        """Removes all entries, for example after a change of the model."""
        with self._lock:
            self._saved.clear()
            self.num_bytes = 0


def prefix_key(ids: Tensor, columns: Tensor) -> bytes:
    """Returns the hash of token ids `[T]` and delayed columns `[F, K]`.

    Prefixes of two voices may differ in the columns only.
    """
    digest = hashlib.sha256(f"{tuple(ids.shape)} {tuple(columns.shape)}".encode())
    for part in (ids, columns):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.digest()
