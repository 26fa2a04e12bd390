"""What goes, and what stays: by age, by size, never what is in use."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for

from gateway.jobs import Job, JobContext, JobService
from gateway.jobs.store import now
from gateway.retention import Kept, Retention
from gateway.work import Workers
from lipserve.errors import JobNotFound, StorageFull

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


def sweep(hours: float, max_bytes: float, items: list[tuple[float, int, bool]]) -> list[int]:
    """The places of the items (age in hours, bytes, in use) that go, in the order in which they go."""
    gone: list[int] = []
    retention = Retention(hours, max_bytes)
    retention.sources += [
        lambda place=place, item=item: [
            Kept(NOON - timedelta(hours=item[0]), item[1], None if item[2] else lambda: gone.append(place))
        ]
        for place, item in enumerate(items)
    ]
    assert retention.sweep(NOON) == len(gone)
    return gone


@pytest.mark.parametrize(
    ("items", "gone"),
    [
        ([], []),
        ([(1, 10, False), (9.9, 10, False), (10.1, 10, False)], [2]),
        ([(10.1, 10, True)], []),
        ([(1, 60, False), (3, 60, False), (2, 60, False)], [1, 2]),  # 180 bytes of 100: the oldest go, until it fits
        ([(1, 60, False), (3, 60, True), (2, 30, False)], [2, 0]),  # what is in use counts, and stays
        ([(1, 100, False)], []),
    ],
)
def test_what_is_old_goes_and_the_oldest_where_there_is_too_much(
    items: list[tuple[float, int, bool]], gone: list[int]
) -> None:
    assert sweep(10, 100, items) == gone


def test_what_cannot_be_removed_does_not_keep_the_rest() -> None:
    gone: list[int] = []

    def stuck() -> None:
        raise PermissionError

    retention = Retention(1, 1e9)
    old = NOON - timedelta(hours=3)
    retention.sources.append(
        lambda: [Kept(old, 1, stuck), Kept(old, 1, lambda: gone.append(1)), Kept(old, 1, lambda: gone.append(2))]
    )
    assert retention.sweep(NOON) == 2
    assert gone == [1, 2]


class Bench:
    def __init__(self, folder: Path) -> None:
        self.jobs = JobService(folder, 10, 60)
        self.workers = Workers("bench", 1, 10)
        self.jobs.register("work", self._work, self.workers)
        self.jobs.start()

    def _work(self, context: JobContext) -> dict[str, Any]:
        if context.job.request["wait"]:
            context.cancelled.wait(20)
        (context.folder / "result.mp4").write_bytes(b"x" * 100_000)
        return {}

    def submit(self, wait: bool = False) -> Job:
        return self.jobs.submit("work", {"wait": wait}, "")

    def done(self) -> Job:
        job = self.submit()
        wait_for(lambda: self.jobs.counts() == {"queued": 0, "processing": 0}, 20)
        return self.jobs.get(job.id)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.jobs.stop()
    bench.workers.close()
    bench.jobs.close()


def test_ended_jobs_go_with_their_files_and_others_stay(bench: Bench, tmp_path: Path) -> None:
    old, sent = bench.done(), bench.done()
    running, queued = bench.submit(wait=True), bench.submit()
    retention = Retention(1, 1e9)
    retention.sources.append(bench.jobs.kept)
    assert retention.sweep(now()) == 0
    with bench.jobs.holding(sent.id):
        assert retention.sweep(now() + timedelta(hours=2)) == 1
        assert bench.jobs.result_file(sent.id).stat().st_size == 100_000
    with pytest.raises(JobNotFound):
        bench.jobs.get(old.id)
    assert {folder.name for folder in (tmp_path / "jobs").iterdir()} == {sent.id, running.id, queued.id}
    assert retention.sweep(now() + timedelta(hours=2)) == 1
    assert {job.id for job in bench.jobs.list(None)} == {running.id, queued.id}


def test_a_full_disk_is_made_less_so(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite needs room to delete a row: the files go first, then."""
    job = bench.done()
    delete = bench.jobs.store.delete

    def full(job_id: str) -> bool:
        if (tmp_path / "jobs" / job_id).exists():
            raise StorageFull("The disk is full.", "")
        return delete(job_id)

    monkeypatch.setattr(bench.jobs.store, "delete", full)
    retention = Retention(1, 1e9)
    retention.sources.append(bench.jobs.kept)
    assert retention.sweep(now() + timedelta(hours=2)) == 1
    with pytest.raises(JobNotFound):
        bench.jobs.get(job.id)


def test_the_oldest_results_go_where_there_are_too_many(bench: Bench) -> None:
    jobs = [bench.done() for _ in range(4)]
    retention = Retention(1, 250_000)
    retention.sources.append(bench.jobs.kept)
    assert retention.sweep(now()) == 2
    assert [job.id for job in bench.jobs.list(None)] == [jobs[3].id, jobs[2].id]
