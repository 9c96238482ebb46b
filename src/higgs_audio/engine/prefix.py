"""Prompts' first positions that were read before: a voice is read once, however often it speaks."""

import hashlib
import threading
from collections import OrderedDict

from torch import Tensor

from higgs_audio.engine.kv_cache import Saved


class PrefixCache:
    """Keys and values by the hash of what they were computed from; the least recently used go first. From any thread.

    Args:
        max_bytes: of all together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._saved: OrderedDict[bytes, Saved] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Saved | None:
        """What was kept under the key."""
        with self._lock:
            saved = self._saved.get(key)
            if saved is not None:
                self._saved.move_to_end(key)
            return saved

    def put(self, key: bytes, saved: Saved) -> bool:
        """Keeps it, if it is not larger than everything together may be; whether it does."""
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
        """Forgets everything: the model has changed."""
        with self._lock:
            self._saved.clear()
            self.num_bytes = 0


def prefix_key(ids: Tensor, columns: Tensor) -> bytes:
    """The hash of token ids `[T]` and of their delayed columns `[F, K]`: what voices of one length differ in."""
    digest = hashlib.sha256(f"{tuple(ids.shape)} {tuple(columns.shape)}".encode())
    for part in (ids, columns):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.digest()
