"""The avatars in use: opened on first use, kept in a bounded least-recently-used cache."""

from collections import OrderedDict
from threading import Lock

from gateway.metrics import Metrics
from lipserve.avatar import Avatar
from lipserve.errors import AvatarNotFound
from lipserve.store import AvatarStore


class AvatarCache:
    """Safe to use from several threads. An avatar that was prepared anew, or touched, is opened anew.

    What it lets go of stays usable for requests under way: the files close with the last of them.
    """

    def __init__(self, store: AvatarStore, size: int, metrics: Metrics) -> None:
        self.store, self._size, self._metrics = store, size, metrics
        self._open: OrderedDict[str, Avatar] = OrderedDict()
        self._lock = Lock()

    def get(self, avatar_id: str) -> Avatar:
        """Raises InvalidAvatarId, AvatarNotFound or AvatarDamaged."""
        try:
            version = self.store.version(avatar_id)
        except AvatarNotFound:
            self.forget(avatar_id)
            raise
        with self._lock:
            avatar = self._open.get(avatar_id)
            if avatar is not None and avatar.version == version:
                self._open.move_to_end(avatar_id)
                self._metrics.cache_hits.inc()
                return avatar
        self._metrics.cache_misses.inc()
        avatar = self.store.open(avatar_id)
        with self._lock:
            self._open[avatar_id] = avatar
            self._open.move_to_end(avatar_id)
            while len(self._open) > self._size:
                self._open.popitem(last=False)
        return avatar

    def forget(self, avatar_id: str) -> None:
        with self._lock:
            self._open.pop(avatar_id, None)
