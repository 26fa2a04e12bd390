"""Worker threads: turns, the bound on waiting, cancelling, folders removed."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.work import Scratch, Workers
from lipserve.errors import Cancelled, QueueFull


class FakeRequest:
    """Delivers a disconnect when told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


def wait_until_cancelled(cancelled: threading.Event) -> None:
    assert cancelled.wait(10)
    raise Cancelled("as asked")


def test_a_result_comes_back_and_its_folder_stays(tmp_path: Path) -> None:
    async def story() -> None:
        workers, request = Workers("t", 1, 1), FakeRequest()
        result = await workers.run(request, tmp_path, lambda cancelled: 7)  # type: ignore[arg-type]
        workers.close()
        assert result == 7
        assert tmp_path.is_dir()

    asyncio.run(story())


def test_an_error_removes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()

    def fail(cancelled: threading.Event) -> None:
        raise ZeroDivisionError

    async def story() -> None:
        workers = Workers("t", 1, 1)
        with pytest.raises(ZeroDivisionError):
            await workers.run(FakeRequest(), folder, fail)  # type: ignore[arg-type]
        workers.close()

    asyncio.run(story())
    assert not folder.exists()


def test_a_disconnect_cancels_the_running_job_and_one_that_waits(tmp_path: Path) -> None:
    async def story() -> None:
        workers = Workers("t", 1, 5)
        first, second = FakeRequest(), FakeRequest()
        ran: list[str] = []
        jobs: list[asyncio.Task[Any]] = [
            asyncio.create_task(workers.run(first, tmp_path / "1", wait_until_cancelled)),  # type: ignore[arg-type]
            asyncio.create_task(workers.run(second, tmp_path / "2", lambda _: ran.append("2"))),  # type: ignore[arg-type]
        ]
        (tmp_path / "2").mkdir()
        await asyncio.sleep(0.05)
        assert workers.waiting == 1
        second.gone.set()
        await asyncio.wait(jobs, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert (jobs[0].done(), jobs[1].done()) == (False, True)  # its place is free while the first still runs
        assert (workers.waiting, workers.running) == (0, 1)
        assert not (tmp_path / "2").exists()
        first.gone.set()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        workers.close()
        assert [type(r) for r in results] == [Cancelled, Cancelled]
        assert ran == []

    asyncio.run(story())


def test_more_than_may_wait_are_refused(tmp_path: Path) -> None:
    async def story() -> None:
        workers, request = Workers("t", 1, 1), FakeRequest()
        jobs = [
            asyncio.create_task(workers.run(request, tmp_path / str(i), wait_until_cancelled))  # type: ignore[arg-type]
            for i in range(2)
        ]
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull):
            await workers.run(FakeRequest(), tmp_path / "3", lambda _: None)  # type: ignore[arg-type]
        request.gone.set()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(r) for r in results] == [Cancelled, Cancelled]
        workers.close()

    asyncio.run(story())


def test_folders_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "requests-x/left").mkdir(parents=True)
    alive = Scratch(tmp_path)
    assert not (tmp_path / "requests-x").exists()
    folder = alive.folder()
    second = Scratch(tmp_path)
    assert folder.is_dir()
    assert second.root != alive.root
    for scratch in (alive, second):
        scratch.close()
        assert not scratch.root.exists()
