"""Who follows which job, across threads: workers tell, event loops are told."""

import asyncio
from contextlib import suppress
from threading import Lock

from gateway.jobs.model import Job

Changes = asyncio.Queue[Job | None]


class Followers:
    def __init__(self) -> None:
        self._of: dict[str, list[tuple[asyncio.AbstractEventLoop, Changes]]] = {}
        self._closed = False
        self._lock = Lock()

    def add(self, job_id: str, loop: asyncio.AbstractEventLoop, changes: Changes) -> None:
        with self._lock:
            self._of.setdefault(job_id, []).append((loop, changes))
            if self._closed:
                _put(loop, changes, None)

    def remove(self, job_id: str, changes: Changes) -> None:
        with self._lock:
            left = [(loop, other) for loop, other in self._of.pop(job_id, []) if other is not changes]
            if left:
                self._of[job_id] = left

    def tell(self, job: Job) -> None:
        with self._lock:
            for loop, changes in self._of.get(job.id, []):
                _put(loop, changes, job)

    def close(self) -> None:
        """Nothing will be told any more."""
        with self._lock:
            self._closed = True
            for followers in self._of.values():
                for loop, changes in followers:
                    _put(loop, changes, None)


def _put(loop: asyncio.AbstractEventLoop, changes: Changes, job: Job | None) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody listens
        loop.call_soon_threadsafe(changes.put_nowait, job)
