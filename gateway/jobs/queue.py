"""Which job is next. The interface that a task engine over several machines can take the place of.

Only the order lives here. That a job is there, and in which state, is for the store to say: what a queue hands out
twice is worked on once, and what it forgets is put in again at the next start.
"""

from collections import deque
from threading import Lock
from typing import Protocol


class JobQueue(Protocol):
    """Ids in lanes, one for each pool of workers. Safe to use from several threads; no call waits."""

    def put(self, lane: str, job_id: str, first: bool = False) -> None:
        """At the end, or at the front."""

    def take(self, lane: str) -> str | None:
        """The id at the front, now gone from here."""

    def remove(self, lane: str, job_id: str) -> None:
        """If it is there."""

    def __len__(self) -> int:
        """Ids in all lanes."""


class LocalQueue:
    """In this process's memory."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[str]] = {}
        self._lock = Lock()

    def put(self, lane: str, job_id: str, first: bool = False) -> None:
        with self._lock:
            waiting = self._lanes.setdefault(lane, deque())
            if first:
                waiting.appendleft(job_id)
            else:
                waiting.append(job_id)

    def take(self, lane: str) -> str | None:
        with self._lock:
            waiting = self._lanes.get(lane)
            return waiting.popleft() if waiting else None

    def remove(self, lane: str, job_id: str) -> None:
        with self._lock:
            waiting = self._lanes.get(lane, deque())
            if job_id in waiting:
                waiting.remove(job_id)

    def __len__(self) -> int:
        with self._lock:
            return sum(len(waiting) for waiting in self._lanes.values())
