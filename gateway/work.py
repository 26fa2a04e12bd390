"""Runs one request's blocking job in a worker thread: a turn to wait for, a scratch folder, an end when nobody waits.

The event loop only waits here. A client that goes away, or a server that shuts down, sets the job's `cancelled`.
"""

import asyncio
import os
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


class Scratch:
    """A folder per request below `work_dir`; what an earlier, killed process left there is removed."""

    def __init__(self, work_dir: Path) -> None:
        self._root = work_dir / f"requests-{os.getpid()}"
        for old in work_dir.glob("requests-*"):
            pid = old.name.removeprefix("requests-")
            if not pid.isdigit() or int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists():
                shutil.rmtree(old, ignore_errors=True)
        self._root.mkdir(parents=True)

    def folder(self, request_id: str) -> Path:
        """Empty and the request's own, even if two requests come with the same id."""
        return Path(tempfile.mkdtemp(dir=self._root, prefix=f"{request_id}-"))

    def close(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)


class Workers:
    """A fixed number of jobs at once; a bounded number more wait for their turn."""

    def __init__(self, name: str, count: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._count, self._limit = count, count + waiting
        self._running: dict[Future[Any], Event] = {}

    def close(self) -> None:
        for cancelled in self._running.values():
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
