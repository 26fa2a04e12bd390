"""Worker threads that blocking calls and stored jobs share: a turn to wait for, a scratch folder, an end when nobody
waits.

The event loop only waits here. A client that goes away, or a server that shuts down, sets the work's `cancelled`.
"""

import asyncio
import fcntl
import math
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any, Literal, TypeVar

import structlog
from starlette.requests import Request

from lipserve.errors import Cancelled, LipserveError, QueueFull

T = TypeVar("T")
LOCK = ".lock"
MOST_RETRY_AFTER = 600  # seconds
Line = Literal["calls", "jobs"]


class Scratch:
    """A folder per request below `work_dir`. What an earlier, killed process left there is removed: a process that
    lives holds a lock on its own."""

    def __init__(self, work_dir: Path) -> None:
        work_dir.mkdir(parents=True, exist_ok=True)
        for old in work_dir.glob("requests-*"):
            with suppress(OSError), (old / LOCK).open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(dir=work_dir, prefix=".new-"))
        self._lock = (fresh / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.root = fresh.rename(work_dir / f"requests-{fresh.name.removeprefix('.new-')}")  # locked when seen

    def folder(self) -> Path:
        """Empty, a request's own."""
        return Path(tempfile.mkdtemp(dir=self.root))

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self._lock.close()


@dataclass(eq=False)
class _Turn:
    work: Callable[[Event], Any]
    cancelled: Event
    future: Future[Any] = field(default_factory=Future)


class Workers:
    """A fixed number of workers. Calls stand in one line and stored jobs in another, and their turns alternate, so that
    neither waits for the whole of the other. The line of calls is bounded here, that of jobs by who fills it."""

    def __init__(self, name: str, count: int, waiting: int) -> None:
        self.name, self.count = name, count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._may_wait = waiting
        self._lines: dict[Line, deque[_Turn]] = {"calls": deque(), "jobs": deque()}
        self._last: Line = "jobs"
        self._running: set[_Turn] = set()
        self._seconds: deque[float] = deque(maxlen=16)  # that the last turns took
        self._closed = False
        self._lock = Lock()

    @property
    def running(self) -> int:
        """Calls and jobs that have a worker now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Calls and jobs in line."""
        return sum(len(line) for line in self._lines.values())

    def retry_after(self) -> int:
        """Seconds, at least 1, until a place is free: as long as the last turns took, on average."""
        with self._lock:
            seconds = list(self._seconds)
        expected = sum(seconds) / len(seconds) / self.count if seconds else 1.0
        return max(1, min(math.ceil(expected), MOST_RETRY_AFTER))

    def close(self) -> None:
        """Everything is cancelled; waits until nothing runs."""
        with self._lock:
            self._closed = True
            waiting = [turn for line in self._lines.values() for turn in line]
            for line in self._lines.values():
                line.clear()
            for turn in self._running:
                turn.cancelled.set()
        for turn in waiting:
            turn.cancelled.set()
            turn.future.set_exception(Cancelled("The service is shutting down."))
        self._pool.shutdown(wait=True)

    def require_room(self) -> None:
        """Raise QueueFull if another call could not even wait."""
        waiting = len(self._lines["calls"])
        if waiting >= self._may_wait and len(self._running) >= self.count:
            raise QueueFull(f"{waiting} calls are waiting already.", "Try again later.", self.retry_after())

    def submit(self, work: Callable[[Event], T], cancelled: Event, line: Line) -> Future[T]:
        """Stands in line, for as long as it takes; `cancelled` is set when the service shuts down. Work that was
        cancelled before its turn came is not begun, and ends with Cancelled."""
        turn = _Turn(work, cancelled)
        turn.future.set_running_or_notify_cancel()  # it ends by `cancelled` alone
        with self._lock:
            if self._closed:
                raise Cancelled("The service is shutting down.")
            self._lines[line].append(turn)
            self._hand_out()
        return turn.future

    def _withdraw(self, cancelled: Event) -> None:
        """Nobody waits for this work any more: it gives its place in line up, or stops when it next looks."""
        cancelled.set()
        with self._lock:
            for line in self._lines.values():
                for turn in [turn for turn in line if turn.cancelled is cancelled]:
                    line.remove(turn)
                    turn.future.set_exception(Cancelled("The request was cancelled before its turn came."))

    def _hand_out(self) -> None:
        while len(self._running) < self.count:
            order: tuple[Line, Line] = ("calls", "jobs") if self._last == "jobs" else ("jobs", "calls")
            name = next((name for name in order if self._lines[name]), None)
            if name is None:
                return
            self._last = name
            turn = self._lines[name].popleft()
            self._running.add(turn)
            self._pool.submit(self._do, turn)

    def _do(self, turn: _Turn) -> None:
        start = time.monotonic()
        result, error = None, None
        try:
            if turn.cancelled.is_set():
                raise Cancelled("The request was cancelled before its turn came.")
            result = turn.work(turn.cancelled)
            self._seconds.append(time.monotonic() - start)
        except BaseException as exc:
            error = exc
        with self._lock:
            self._running.discard(turn)
            if not self._closed:
                self._hand_out()
        if error is not None:
            turn.future.set_exception(error)
        else:
            turn.future.set_result(result)

    async def run(self, request: Request, folder: Path, job: Callable[[Event], T]) -> T:
        """A call's result; `folder` is removed when it has ended in any other way. Raises QueueFull."""
        cancelled = Event()
        context = structlog.contextvars.get_contextvars()

        def work(cancelled: Event) -> T:
            with structlog.contextvars.bound_contextvars(**context):
                return job(cancelled)

        try:
            self.require_room()
            future = self.submit(work, cancelled, "calls")
        except LipserveError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        watcher: asyncio.Future[Any] = asyncio.create_task(_wait_for_disconnect(request))
        waiter: asyncio.Future[Any] = asyncio.wrap_future(future)
        try:
            await asyncio.wait([watcher, waiter], return_when=asyncio.FIRST_COMPLETED)
            if not waiter.done():
                self._withdraw(cancelled)
            result: T = await asyncio.shield(waiter)
            return result
        except BaseException:
            self._withdraw(cancelled)
            future.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
            raise
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
