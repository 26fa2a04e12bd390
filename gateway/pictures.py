"""Avatars made of the pictures and clips that talks name: known by what is in them, prepared once, kept for a while.

They stand apart from the avatars that have a name: whose picture it was is nobody else's business, so none is listed.
Their folder is one gateway's own. How many stay is bounded here; how old and how large they get, by retention.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Condition, Event

from avatar_prep.prepare import Parameters, Progress
from gateway.avatars import AvatarCache
from gateway.engine import Engine
from gateway.metrics import Metrics
from gateway.retention import Kept
from gateway.timing import Stopwatch
from lipserve.avatar import sha256
from lipserve.errors import AvatarDamaged, AvatarNotFound, Cancelled
from lipserve.settings import Settings
from lipserve.store import AvatarStore

PREFIX = "src-"
HASH_DIGITS = 40
SOURCE_NAME = "source"  # what avatar.json calls it: the sender's name for it does not belong to a shared thing
POLL = 0.2  # seconds


class PictureAvatars:
    """Safe to use from several threads."""

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics) -> None:
        root = settings.storage_dir / "pictures"
        self.avatars = AvatarCache(AvatarStore(root), settings.avatar_cache, metrics)
        self._store = self.avatars.store
        self._engine, self._metrics, self._most = engine, metrics, settings.max_picture_avatars
        self._parameters = Parameters()
        self._used: Counter[str] = Counter()  # by how many talks just now
        self._prepared_now: set[str] = set()
        self._changed = Condition()
        root.mkdir(parents=True, exist_ok=True)
        self._store.recover()

    @contextmanager
    def avatar(self, source: Path, progress: Progress, cancelled: Event, watch: Stopwatch) -> Iterator[str]:
        """The id of this picture's or clip's avatar in `avatars`, prepared if it is new; it stays while the block runs.

        Whoever comes while it is being prepared waits for that. Raises what Engine.prepare does, and Cancelled.
        """
        avatar_id = self._id(source)
        known = self._take(avatar_id, cancelled)
        self._metrics.picture_looked_up(known)
        try:
            if not known:
                self._prepare(source, avatar_id, progress, cancelled, watch)
            yield avatar_id
        finally:
            self._give_back(avatar_id)

    def _id(self, source: Path) -> str:
        made_of = "\n".join((sha256(source), self._parameters.model_dump_json(), self._engine.weights_id))
        return PREFIX + hashlib.sha256(made_of.encode()).hexdigest()[:HASH_DIGITS]

    def _take(self, avatar_id: str, cancelled: Event) -> bool:
        """Whether it is there. If not, the caller has it to prepare, and nobody else."""
        with self._changed:
            while avatar_id in self._prepared_now:
                if cancelled.is_set():
                    raise Cancelled("The request was cancelled.")
                self._changed.wait(POLL)
            known = self._is_there(avatar_id)
            self._used[avatar_id] += 1
            if known:
                self._marker(avatar_id).touch()
            else:
                self._prepared_now.add(avatar_id)
            return known

    def _is_there(self, avatar_id: str) -> bool:
        try:
            self.avatars.get(avatar_id)
        except (AvatarNotFound, AvatarDamaged):
            return False
        return True

    def _prepare(self, source: Path, avatar_id: str, progress: Progress, cancelled: Event, watch: Stopwatch) -> None:
        try:
            self._engine.prepare(
                source,
                avatar_id,
                self._parameters,
                force=True,
                progress=progress,
                cancelled=cancelled,
                source_name=SOURCE_NAME,
                watch=watch,
                store=self._store,
            )
            self._marker(avatar_id).touch()
        finally:
            with self._changed:
                self._prepared_now.discard(avatar_id)
                self._changed.notify_all()

    def _give_back(self, avatar_id: str) -> None:
        with self._changed:
            self._used[avatar_id] -= 1
            if not self._used[avatar_id]:
                del self._used[avatar_id]
                if not self._store.exists(avatar_id):
                    self._remove_traces(avatar_id)
            self._make_room()

    def _make_room(self) -> None:
        """Those used longest ago go first, never one in use."""
        ids = sorted(self._store.list(), key=self._last_used)
        free = [avatar_id for avatar_id in ids if avatar_id not in self._used]
        for avatar_id in free[: max(0, len(ids) - self._most)]:
            self._remove(avatar_id)

    def kept(self) -> list[Kept]:
        """For retention."""
        with self._changed:
            return [
                Kept(
                    datetime.fromtimestamp(self._last_used(avatar_id), UTC),
                    self._size(avatar_id),
                    None if avatar_id in self._used else partial(self._expire, avatar_id),
                )
                for avatar_id in self._store.list()
            ]

    def _expire(self, avatar_id: str) -> None:
        """Unless it was taken, or has gone, since `kept` looked."""
        with self._changed:
            if avatar_id not in self._used and self._store.exists(avatar_id):
                self._remove(avatar_id)

    def _remove(self, avatar_id: str) -> None:
        self._store.delete(avatar_id)
        self.avatars.forget(avatar_id)
        self._remove_traces(avatar_id)

    def _remove_traces(self, avatar_id: str) -> None:
        """Else there would be two files for every picture ever seen."""
        self._marker(avatar_id).unlink(missing_ok=True)
        self._store.lock_file(avatar_id).unlink(missing_ok=True)

    def _marker(self, avatar_id: str) -> Path:
        """A file whose time says when the avatar was used last."""
        return self._store.root / f".used-{avatar_id}"

    def _last_used(self, avatar_id: str) -> float:
        marker = self._marker(avatar_id)
        return marker.stat().st_mtime if marker.exists() else 0.0

    def _size(self, avatar_id: str) -> int:
        size = 0
        for file in self._store.folder(avatar_id).iterdir():
            with suppress(FileNotFoundError):  # a draft that has got its name meanwhile
                size += file.stat().st_size
        return size
