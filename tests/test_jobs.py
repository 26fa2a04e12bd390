"""Jobs without HTTP or Triton: states, limits, cancelling, time-outs, restarts, followers."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for

from gateway.jobs import Job, JobContext, JobService
from gateway.jobs.model import TRANSITIONS, Stages
from gateway.jobs.store import JobStore
from gateway.work import Workers
from lipserve.errors import (
    AudioDamaged,
    Cancelled,
    InvalidParameter,
    JobNotDone,
    JobNotFound,
    LipserveError,
    QueueFull,
    ServiceBusy,
    StorageForeign,
    StorageFull,
    StorageInUse,
    TritonUnavailable,
)


class Bench:
    """A service with one worker, and a kind whose handler does what its job's request says."""

    def __init__(self, folder: Path, max_waiting: int = 10, timeout: float = 60, workers: int = 1) -> None:
        self.jobs = JobService(folder, max_waiting, timeout)
        self.workers = Workers("bench", workers, 10)
        self.go = threading.Event()
        self.worked: list[str] = []  # requests' names, in order
        self.away: list[LipserveError] = []  # what Triton's absence is, one for each attempt that meets it
        self.jobs.register("work", self._work, self.workers)
        self.jobs.start()

    def _work(self, context: JobContext) -> dict[str, Any]:
        request = context.job.request
        self.worked.append(request["name"])
        what = request.get("what", "")
        if what == "wait":
            wait_for(lambda: self.go.is_set() or context.cancelled.is_set(), 20)
            context.report("render", 1, 2)
        if what == "stubborn":
            assert self.go.wait(20)
        if what == "triton" and self.away:
            raise self.away.pop()
        if what == "fail":
            raise AudioDamaged("The sound is damaged.", "Send another.")
        if what == "crash":
            raise ZeroDivisionError
        (context.folder / "result.mp4").write_bytes(request["name"].encode())
        return {"name": request["name"]}

    def submit(self, name: str, what: str = "", owner: str = "", **more: Any) -> Job:
        return self.jobs.submit("work", {"name": name, "what": what}, owner, **more)

    def ended(self, job: Job, seconds: float = 20) -> Job:
        wait_for(lambda: self.jobs.get(job.id).ended, seconds)
        return self.jobs.get(job.id)

    def started(self, job: Job) -> None:
        wait_for(lambda: self.jobs.get(job.id).state == "processing", 20)

    def close(self) -> None:
        self.jobs.stop()
        self.workers.close()
        self.jobs.close()


@pytest.fixture
def open_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    opened: list[Bench] = []

    def start(**options: Any) -> Bench:
        opened.append(Bench(tmp_path / "storage", **options))
        return opened[-1]

    yield start
    for bench in opened:
        bench.go.set()
        bench.close()


def test_a_job_is_done_and_its_result_is_there(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    job = bench.submit("a", fill=lambda folder: (folder / "audio").write_bytes(b"x"), owner="anna")
    assert (job.state, job.attempts, job.progress, job.owner) == ("queued", 0, 0.0, "anna")
    done = bench.ended(job)
    assert (done.state, done.attempts, done.progress, done.result, done.error) == ("done", 1, 1.0, {"name": "a"}, None)
    assert done.started_at is not None
    assert done.completed_at is not None
    assert done.created_at <= done.started_at <= done.completed_at
    assert done.created_at.utcoffset() is not None
    assert bench.jobs.result_file(job.id).read_bytes() == b"a"


@pytest.mark.parametrize(("what", "kind"), [("fail", "audio_damaged"), ("crash", "internal")])
def test_what_a_handler_raises_is_the_jobs_error(open_bench: Callable[..., Bench], what: str, kind: str) -> None:
    bench = open_bench()
    failed = bench.ended(bench.submit("a", what))
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["kind"] == kind
    assert "ZeroDivisionError" not in str(failed.error)
    assert bench.ended(bench.submit("b")).state == "done"  # the worker goes on
    with pytest.raises(JobNotDone):
        bench.jobs.result_file(failed.id)


def test_jobs_are_worked_on_in_the_order_they_came(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    jobs = [bench.submit(name) for name in "abcdef"]
    for job in jobs:
        bench.ended(job)
    assert bench.worked == list("abcdef")


def test_a_full_queue_refuses_before_anything_is_written(open_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench = open_bench(max_waiting=2)
    first = bench.submit("a", "wait")
    bench.started(first)
    others = [bench.submit(name, "wait") for name in "bc"]
    with pytest.raises(QueueFull) as caught:
        bench.submit("d", fill=lambda folder: pytest.fail("written"))
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    assert len(list((tmp_path / "storage/jobs").iterdir())) == 3
    assert bench.jobs.counts() == {"queued": 2, "processing": 1}
    bench.go.set()
    for job in others:
        assert bench.ended(job).state == "done"
    assert bench.ended(bench.submit("d")).state == "done"


def test_inputs_that_are_refused_leave_nothing(open_bench: Callable[..., Bench], tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        (folder / "audio").write_bytes(b"x")
        raise InvalidParameter("No.", "")

    bench = open_bench(max_waiting=1)
    for _ in range(3):  # nor a place in the queue
        with pytest.raises(InvalidParameter):
            bench.submit("a", fill=refuse)
    assert list((tmp_path / "storage/jobs").iterdir()) == []
    assert bench.jobs.list(None) == []


def test_a_queued_job_is_cancelled_at_once_and_never_begun(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    bench.started(first := bench.submit("a", "wait"))
    second = bench.submit("b")
    assert bench.jobs.cancel(second.id).state == "cancelled"
    bench.go.set()
    bench.ended(first)
    assert bench.ended(bench.submit("c")).state == "done"
    assert bench.worked == ["a", "c"]
    assert bench.jobs.cancel(first.id).state == "done"  # too late


def test_a_running_job_that_is_cancelled_stops(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    bench.started(job := bench.submit("a", "wait"))
    cancelled = bench.jobs.cancel(job.id)
    assert (cancelled.state, cancelled.completed_at is None) == ("cancelled", False)
    assert bench.ended(bench.submit("b")).state == "done"  # the worker is free again
    assert bench.jobs.get(job.id) == cancelled


@pytest.mark.parametrize("how", ["cancelled", "timed out", "deleted"])
def test_a_result_that_comes_too_late_is_thrown_away(
    open_bench: Callable[..., Bench], tmp_path: Path, how: str
) -> None:
    bench = open_bench(timeout=0.3 if how == "timed out" else 60)
    bench.started(job := bench.submit("a", "stubborn"))
    folder = tmp_path / "storage/jobs" / job.id
    if how == "timed out":
        error = bench.ended(job).error
        assert error is not None
        assert error["kind"] == "job_timed_out"
    else:
        bench.jobs.cancel(job.id)
    if how == "deleted":
        bench.jobs.delete(job.id)
        assert folder.is_dir()  # somebody still writes there
    bench.go.set()
    bench.ended(bench.submit("b"))
    assert bench.worked == ["a", "b"]
    wait_for(lambda: not (folder / "result.mp4").exists(), 5)
    assert folder.is_dir() == (how != "deleted")
    with pytest.raises((JobNotDone, JobNotFound)):
        bench.jobs.result_file(job.id)


def test_deleting_takes_the_files_along_and_needs_an_end(open_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench = open_bench()
    bench.started(job := bench.submit("a", "wait", owner="anna"))
    with pytest.raises(JobNotDone):
        bench.jobs.delete(job.id, "anna")
    bench.go.set()
    bench.ended(job)
    with pytest.raises(JobNotFound):
        bench.jobs.delete(job.id, "bert")
    bench.jobs.delete(job.id, "anna")
    wait_for(lambda: list((tmp_path / "storage/jobs").iterdir()) == [], 5)
    with pytest.raises(JobNotFound):
        bench.jobs.get(job.id)


@pytest.mark.parametrize("job_id", ["", "job_", "../../etc/passwd", "job_" + "g" * 32, "job_" + "0" * 32, "x" * 10_000])
def test_ids_that_are_none_are_not_found(open_bench: Callable[..., Bench], job_id: str) -> None:
    bench = open_bench()
    for call in (bench.jobs.get, bench.jobs.cancel, bench.jobs.delete, bench.jobs.result_file):
        with pytest.raises(JobNotFound):
            call(job_id)


def test_pages_are_newest_first_and_stable(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    jobs = [bench.submit(str(i), owner="anna" if i % 2 else "") for i in range(7)]
    newest = [job.id for job in reversed(jobs)]
    assert sorted(newest, reverse=True) == newest
    page = bench.jobs.list(None, limit=3)
    assert [job.id for job in page] == newest[:3]
    bench.ended(jobs[-1])
    bench.jobs.delete(page[-1].id)
    bench.submit("later")
    assert [job.id for job in bench.jobs.list(None, limit=3, before=page[-1].id)] == newest[3:6]
    assert [job.id for job in bench.jobs.list("anna")] == [job.id for job in reversed(jobs[1::2])]
    assert bench.jobs.list(None, kinds=["other"]) == []
    assert bench.jobs.list(None, state="failed") == []
    with pytest.raises(InvalidParameter):
        bench.jobs.list(None, before="'; drop table jobs")


def test_a_clean_end_puts_running_jobs_back_and_counts_no_attempt(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    bench.started(first := bench.submit("a", "wait"))
    second = bench.submit("b")
    bench.close()
    bench = open_bench()
    bench.go.set()
    assert (bench.ended(first).state, bench.ended(first).attempts) == ("done", 1)
    assert bench.ended(second).state == "done"


def test_an_interrupted_job_is_worked_on_once_more_then_fails(tmp_path: Path, open_bench: Callable[..., Bench]) -> None:
    """As a killed process leaves it: processing."""
    bench = open_bench()
    jobs = [bench.submit(name) for name in "ab"]
    for job in jobs:
        bench.ended(job)
    bench.close()
    with sqlite3.connect(tmp_path / "storage/jobs.sqlite") as connection:
        for attempts, job in enumerate(jobs, 1):
            change = "update jobs set state = 'processing', attempts = ?, completed_at = null where id = ?"
            connection.execute(change, (attempts, job.id))
    orphan = tmp_path / "storage/jobs" / ("job_" + "1" * 32)
    orphan.mkdir()
    (tmp_path / "storage/jobs/somebody's").mkdir()
    bench = open_bench()
    again, gave_up = (bench.ended(job) for job in jobs)
    assert (again.state, again.attempts) == ("done", 2)
    assert (gave_up.state, gave_up.attempts) == ("failed", 2)
    assert gave_up.error is not None
    assert gave_up.error["kind"] == "interrupted"
    assert bench.worked == ["a"]
    assert not orphan.exists()
    assert (tmp_path / "storage/jobs/somebody's").is_dir()


def test_jobs_wait_for_triton_and_lose_nothing(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    bench.away.append(TritonUnavailable("Triton is away."))
    first, second = bench.submit("a", "triton"), bench.submit("b")
    wait_for(lambda: bench.jobs.paused and bench.jobs.counts() == {"queued": 2, "processing": 0}, 20)
    assert (bench.jobs.get(first.id).state, bench.jobs.get(first.id).progress) == ("queued", 0.0)
    third = bench.submit("c")  # accepted all the same
    time.sleep(0.1)
    assert bench.worked == ["a"]
    bench.jobs.resume()
    assert [bench.ended(job).state for job in (first, second, third)] == ["done"] * 3
    assert [bench.jobs.get(job.id).attempts for job in (first, second, third)] == [2, 1, 1]
    assert bench.worked == ["a", "a", "b", "c"]  # who was first is first again


def test_what_is_cancelled_while_all_wait_does_not_come_back(open_bench: Callable[..., Bench]) -> None:
    bench, go = open_bench(), threading.Event()
    call = bench.workers.submit(lambda cancelled: go.wait(20), threading.Event(), "calls")
    job = bench.submit("a")  # handed over, behind the call
    bench.jobs.pause()
    bench.jobs.cancel(job.id)
    go.set()
    assert call.result(20)
    wait_for(lambda: bench.workers.running == bench.workers.waiting == 0, 20)
    assert bench.jobs.counts() == {"queued": 0, "processing": 0}


@pytest.mark.parametrize("absence", [TritonUnavailable, ServiceBusy])
def test_a_job_that_triton_does_not_bear_fails_in_the_end(
    open_bench: Callable[..., Bench], absence: type[LipserveError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.service.SECONDS_OF_PATIENCE", 0.02)
    bench = open_bench()
    bench.away += [absence("Not now.", "Later.")] * 2
    job = bench.submit("a", "triton")
    if absence is TritonUnavailable:
        wait_for(lambda: bench.jobs.paused, 20)
        bench.jobs.resume()
    ended = bench.ended(job)
    assert (ended.state, ended.attempts) == ("failed", 2)
    assert ended.error == {"kind": absence.kind, "message": "Not now.", "hint": "Later."}


def test_what_was_begun_goes_on_while_the_others_wait(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    bench.started(first := bench.submit("a", "wait"))
    second = bench.submit("b")
    bench.jobs.pause()
    bench.go.set()
    assert bench.ended(first).state == "done"  # what was begun goes on
    wait_for(lambda: bench.jobs.counts() == {"queued": 1, "processing": 0}, 20)
    time.sleep(0.1)
    assert (bench.jobs.get(second.id).state, bench.worked) == ("queued", ["a"])
    bench.close()
    bench = open_bench()
    assert bench.ended(second).state == "done"


def test_a_cancelled_job_that_could_not_be_written_down_is_still_in_line(
    open_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench()
    bench.started(bench.submit("a", "wait"))
    job = bench.submit("b")
    with monkeypatch.context() as patch:
        patch.setattr(bench.jobs.store, "_write", full_disk)
        with pytest.raises(StorageFull):
            bench.jobs.cancel(job.id)
    bench.go.set()
    assert bench.ended(job).state == "done"


def full_disk() -> None:
    raise StorageFull("The disk is full.", "")


def test_what_is_being_worked_on_can_be_left_alone(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    bench.started(first := bench.submit("a", "wait"))
    second = bench.submit("b")
    assert bench.jobs.cancel(first.id, begun=False).state == "processing"
    assert bench.jobs.cancel(second.id, begun=False).state == "cancelled"
    bench.go.set()
    assert bench.ended(first).state == "done"
    assert bench.worked == ["a"]


def test_a_time_out_outlasts_a_full_disk(open_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.service.SECONDS_OF_PATIENCE", 0.02)
    bench = open_bench(timeout=0.2)
    refused = ["failed", "failed"]
    monkeypatch.setattr(bench.jobs.store, "move", full_for(bench, refused))
    ended = bench.ended(bench.submit("a", "wait"))
    assert (ended.state, ended.error and ended.error["kind"], refused) == ("failed", "job_timed_out", [])


def test_a_thread_that_cannot_be_had_fails_the_job_and_keeps_nothing(
    open_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench()
    with monkeypatch.context() as patch:
        patch.setattr("gateway.jobs.service.Timer.start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread")))
        assert bench.ended(bench.submit("a")).state == "failed"
    assert bench.ended(bench.submit("b")).state == "done"
    wait_for(lambda: bench.jobs.counts() == {"queued": 0, "processing": 0}, 20)


def test_who_is_told_cannot_undo_an_end(open_bench: Callable[..., Bench]) -> None:
    bench, told = open_bench(), []

    def broken(job: Job) -> None:
        raise AttributeError("call_soon_threadsafe")

    bench.jobs.on_end(broken)
    bench.jobs.on_end(told.append)
    job = bench.ended(bench.submit("a"))
    wait_for(lambda: bool(told), 20)
    assert (job.state, bench.jobs.has_result(job)) == ("done", True)


def test_sending_a_result_waits_for_no_write(open_bench: Callable[..., Bench]) -> None:
    """It is the event loop that holds."""
    bench = open_bench()
    job = bench.ended(bench.submit("a"))
    with bench.jobs._lock, bench.jobs.holding(job.id):
        assert bench.jobs._is_held(job.id)
    assert not bench.jobs._is_held(job.id)


def test_jobs_of_an_earlier_lipserve_get_the_indexes_of_this_one(
    open_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = open_bench()
    bench.ended(bench.submit("a"))
    bench.close()

    def indexes() -> set[str]:
        with sqlite3.connect(tmp_path / "storage/jobs.sqlite") as connection:
            return {name for (name,) in connection.execute("select name from sqlite_master where type = 'index'")}

    made = indexes()
    with sqlite3.connect(tmp_path / "storage/jobs.sqlite") as connection:
        connection.execute("drop index ix_jobs_owner_state")
    assert indexes() == made - {"ix_jobs_owner_state"}
    open_bench()
    assert indexes() == made


def test_finished_results_survive_a_restart(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    job = bench.ended(bench.submit("a"))
    bench.close()
    bench = open_bench()
    assert bench.jobs.get(job.id) == job
    assert bench.jobs.result_file(job.id).read_bytes() == b"a"
    assert bench.submit("b").id > job.id


def test_jobs_of_a_kind_that_is_gone_fail(tmp_path: Path, open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    bench.started(bench.submit("a", "wait"))
    job = bench.submit("b")
    bench.close()
    with sqlite3.connect(tmp_path / "storage/jobs.sqlite") as connection:
        connection.execute("update jobs set kind = 'old' where id = ?", (job.id,))
    bench = open_bench()
    error = bench.ended(job).error
    assert error is not None
    assert error["kind"] == "interrupted"


def full_for(bench: Bench, refused: list[str]) -> Callable[..., Job | None]:
    """The store's `move` on a disk that is full, once for each of these states."""
    move = bench.jobs.store.move

    def full(job_id: str, state: Any, *arguments: Any, **values: Any) -> Job | None:
        if state in refused:
            refused.remove(state)
            raise StorageFull("The disk is full.", "")
        return move(job_id, state, *arguments, **values)

    return full


def test_a_store_that_is_full_for_a_while_costs_no_job(
    open_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its beginning nor its end."""
    monkeypatch.setattr("gateway.jobs.service.SECONDS_OF_PATIENCE", 0.02)
    bench = open_bench()
    refused = ["processing", "done", "failed", "failed"]
    monkeypatch.setattr(bench.jobs.store, "move", full_for(bench, refused))
    job = bench.ended(bench.submit("a"))
    assert (job.state, job.error and job.error["kind"], refused) == ("failed", "storage_full", [])
    assert bench.ended(bench.submit("b")).state == "done"


def test_a_full_disk_is_an_error_with_a_name(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    with bench.jobs.store._engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # of this connection, which the pool hands out again
    with pytest.raises(StorageFull):
        bench.submit("a", owner="x" * 100_000)
    assert bench.jobs.list(None) == []
    assert list(bench.jobs.folders._root.iterdir()) == []


def test_one_gateway_owns_the_storage(open_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench = open_bench()
    with pytest.raises(StorageInUse, match="LIPSERVE_STORAGE_DIR"):
        JobService(tmp_path / "storage", 1, 1)
    bench.close()
    JobService(tmp_path / "storage", 1, 1).close()


def test_foreign_databases_are_refused_untouched(tmp_path: Path) -> None:
    file = tmp_path / "jobs.sqlite"
    for content in (b"not a database at all" * 100, None):
        if content is not None:
            file.write_bytes(content)
        else:
            file.unlink()
            with sqlite3.connect(file) as connection:
                connection.execute("create table other (x)")
                connection.execute("pragma user_version = 7")
        before = file.read_bytes()
        with pytest.raises(StorageForeign):
            JobService(tmp_path, 1, 1)
        if content is not None:
            assert file.read_bytes() == before
    with sqlite3.connect(file) as connection:
        assert [row[0] for row in connection.execute("select name from sqlite_master")] == ["other"]


def test_only_legal_transitions_succeed_and_only_once(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    store: JobStore = bench.jobs.store
    done = bench.ended(bench.submit("a"))
    for state in TRANSITIONS:
        assert store.move(done.id, state) is None
    bench.started(bench.submit("blocker", "wait"))
    job = bench.submit("b")
    assert store.move(job.id, "done") is None  # never from queued
    won: list[Job | None] = []
    threads = [
        threading.Thread(target=lambda: won.append(store.move(job.id, "processing", 0, attempts=1))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(moved is not None for moved in won) == 1
    assert store.move(job.id, "done", 2) is None  # another attempt's result
    assert store.move(job.id, "cancelled") is not None
    assert store.move(job.id, "done", 1) is None


def test_a_follower_is_told_every_change_and_the_end(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    bench.started(first := bench.submit("a", "wait"))
    job = bench.submit("b", "wait")

    async def story() -> list[Job]:
        told = []
        async for change in bench.jobs.follow(job.id):
            told.append(change)
            bench.go.set()
        return told

    told = asyncio.run(asyncio.wait_for(story(), 20))
    bench.ended(first)
    assert [change.state for change in told] == ["queued", "processing", "processing", "done"]
    assert [change.progress for change in told] == [0.0, 0.0, 0.5, 1.0]

    async def after() -> list[Job]:
        return [change async for change in bench.jobs.follow(job.id)]

    assert [change.state for change in asyncio.run(after())] == ["done"]


def test_followers_are_let_go_when_the_service_stops(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench()
    bench.started(job := bench.submit("a", "stubborn"))

    async def story() -> int:
        told = 0
        async for _ in bench.jobs.follow(job.id):
            told += 1
            bench.jobs.stop()
        return told

    assert asyncio.run(asyncio.wait_for(story(), 20)) == 1
    bench.go.set()


def test_calls_and_jobs_take_turns(open_bench: Callable[..., Bench]) -> None:
    """With one worker: a call that comes after many jobs waits for two of them at most."""
    bench = open_bench(max_waiting=64)
    bench.started(bench.submit("0", "wait"))
    jobs = [bench.submit(str(i)) for i in range(1, 8)]
    calls = [
        bench.workers.submit(lambda _, i=i: bench.worked.append(f"call {i}"), threading.Event(), "calls")
        for i in range(3)
    ]
    bench.go.set()
    for call in calls:
        call.result(20)
    bench.ended(jobs[-1])
    assert bench.worked.index("call 0") <= 2
    assert bench.worked.index("call 2") - bench.worked.index("call 0") <= 4  # and no call waits for calls alone
    assert bench.worked != [*(str(i) for i in range(8)), "call 0", "call 1", "call 2"]
    assert [name for name in bench.worked if not name.startswith("call")] == [str(i) for i in range(8)]


def test_refusing_takes_no_time_while_work_goes_on(open_bench: Callable[..., Bench]) -> None:
    bench = open_bench(max_waiting=1)
    bench.started(bench.submit("a", "stubborn"))
    bench.submit("b")
    start = time.monotonic()
    for _ in range(50):
        with pytest.raises(QueueFull):
            bench.submit("c")
    assert time.monotonic() - start < 5


def test_progress_over_stages_never_falls() -> None:
    stages = Stages({"decode": 1, "faces": 1, "encode": 2})
    reports = [("decode", 1, 2), ("decode", 5, None), ("faces", 3, 3), ("decode", 1, 2), ("unknown", 9, 9)]
    assert [stages.progress(*report) for report in reports] == [0.125, 0.125, 0.5, 0.5, 0.5]
    assert stages.progress("encode", 7, 7) == 1.0
    assert stages.progress("encode", 9, 7) == 1.0


def test_a_report_ends_a_job_that_nobody_waits_for(tmp_path: Path) -> None:
    cancelled = threading.Event()
    context = JobContext(None, tmp_path, cancelled, None, lambda stage, progress: None, Stages({"x": 1}))  # type: ignore[arg-type]
    context.report("x", 1, 2)
    cancelled.set()
    with pytest.raises(Cancelled):
        context.report("x", 2, 2)
