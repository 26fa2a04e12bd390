"""Runs one request's blocking job in a worker thread: a turn to wait for, a scratch folder, an end when nobody waits.

The event loop only waits here. A client that goes away, or a server that shuts down, sets the job's `cancelled`.
"""

import asyncio
import fcntl
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import structlog
from starlette.requests import Request

from lipserve.errors import Cancelled, ServiceBusy

T = TypeVar("T")
LOCK = ".lock"


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


class Workers:
    """A fixed number of jobs at once; a bounded number more wait for their turn."""

    def __init__(self, name: str, count: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._limit = count + waiting
        self._running: dict[Future[Any], Event] = {}

    @property
    def running(self) -> int:
        """Jobs that have a worker now."""
        return sum(future.running() for future in list(self._running))

    @property
    def waiting(self) -> int:
        """Jobs whose turn has not come."""
        return sum(not future.running() and not future.done() for future in list(self._running))

    def close(self) -> None:
        for cancelled in list(self._running.values()):
            cancelled.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def run(self, request: Request, folder: Path, job: Callable[[Event], T]) -> T:
        """The job's result; `folder` is removed when the job has ended in any other way. Raises ServiceBusy."""
        if len(self._running) >= self._limit:
            shutil.rmtree(folder, ignore_errors=True)
            raise ServiceBusy(
                f"{len(self._running)} requests are in progress or waiting.", "Try again in a few seconds."
            )
        cancelled = Event()
        context = structlog.contextvars.get_contextvars()

        def work() -> T:
            with structlog.contextvars.bound_contextvars(**context):
                if cancelled.is_set():
                    raise Cancelled("The request was cancelled before its turn came.")
                return job(cancelled)

        future = self._pool.submit(work)
        self._running[future] = cancelled
        future.add_done_callback(lambda done: self._running.pop(done, None))
        watcher: asyncio.Future[Any] = asyncio.create_task(_wait_for_disconnect(request))
        waiter: asyncio.Future[Any] = asyncio.wrap_future(future)
        try:
            await asyncio.wait([watcher, waiter], return_when=asyncio.FIRST_COMPLETED)
            if not waiter.done():
                cancelled.set()
            result: T = await asyncio.shield(waiter)
            return result
        except BaseException:
            cancelled.set()
            future.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
            raise
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
