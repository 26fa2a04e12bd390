"""What happens to jobs: accepted, queued, handed to workers, timed, cancelled, ended, followed, deleted.

The store says what is true. A job's state is changed under one lock, held for milliseconds and never while a handler
works, so that whoever follows a job is told every change in its order.
"""

import asyncio
import errno
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event, Lock, Timer
from typing import Any

import anyio.to_thread
import structlog

from gateway.jobs.folders import JobFolders, StorageLock, flush
from gateway.jobs.follow import Followers
from gateway.jobs.model import JOB_ID, TIME_DIGITS, Handler, Job, JobContext, Kind, Stages
from gateway.jobs.queue import JobQueue, LocalQueue
from gateway.jobs.store import EPOCH, JobStore, now, serial
from gateway.retention import Kept
from gateway.timing import Stopwatch
from gateway.work import Workers
from lipserve.api import JobState
from lipserve.errors import (
    Cancelled,
    Interrupted,
    InvalidParameter,
    JobNotDone,
    JobNotFound,
    JobTimedOut,
    LipserveError,
    QueueFull,
    ServiceBusy,
    StorageFull,
    TritonUnavailable,
)

MOST_ATTEMPTS = 2  # of a job whose gateway was killed meanwhile, or whose Triton went away
SECONDS_BETWEEN_REPORTS = 0.3
SECONDS_OF_PATIENCE = 5.0  # with a store that cannot be written to
ATTEMPTS_TO_END = 12
ONE_STAGE: Mapping[str, float] = {"render": 1.0}

log = structlog.stdlib.get_logger("gateway")


@dataclass
class _Running:
    cancelled: Event
    removed: bool = False  # its job is deleted; its folder goes when it has stopped


class JobService:
    """`start` makes it work, after the kinds were registered; `close` puts running jobs back into the queue."""

    def __init__(self, storage_dir: Path, max_waiting: int, timeout: float, queue: JobQueue | None = None) -> None:
        """Raises StorageInUse or StorageForeign."""
        self._storage = StorageLock(storage_dir)
        try:
            self.store = JobStore(storage_dir / "jobs.sqlite")
        except BaseException:
            self._storage.release()
            raise
        self.folders = JobFolders(storage_dir / "jobs")
        self._queue: JobQueue = queue if queue is not None else LocalQueue()
        self._max_waiting, self._timeout = max_waiting, timeout
        self._kinds: dict[str, Kind] = {}
        self._handed: Counter[str] = Counter()  # jobs with the workers of this name: as many as these have, at most
        self._running: dict[str, _Running] = {}
        self._arriving = 0  # jobs whose inputs are being written
        self._held: Counter[str] = Counter()  # jobs whose files are being sent; has its own lock, never held for long
        self._held_lock = Lock()
        self._followers = Followers()
        self._listeners: list[Callable[[Job], None]] = []
        self._last_serial = max(
            (int(serial(job.id)[:TIME_DIGITS], 16) for job in self.store.page(None, None, None, 1, None)), default=0
        )
        self._closing = False
        self._paused = False
        self._lock = Lock()

    def register(self, kind: str, handler: Handler, workers: Workers, stages: Mapping[str, float] = ONE_STAGE) -> None:
        """`stages`: those that the handler reports, in order, and the share of the time that each takes."""
        self._kinds[kind] = Kind(handler, workers, stages)

    @property
    def kinds(self) -> list[str]:
        return list(self._kinds)

    def on_end(self, listener: Callable[[Job], None]) -> None:
        """Called for every job that has ended, in some thread; must be quick."""
        self._listeners.append(listener)

    # -- start and end ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what an earlier process left: what it was killed at is worked on once more, then fails."""
        for name in self.folders.keep_only(self.store.ids()):
            log.info("removed the folder of a job that was never accepted", job_id=name)
        for job in self.store.in_state("processing"):
            if job.attempts < MOST_ATTEMPTS:
                self._move(job, "queued", progress=0.0, stage="", started_at=None)
            else:
                self._fail(job, Interrupted(f"It was begun {job.attempts} times, and each time something died.", ""))
        for job in self.store.in_state("queued"):
            if job.kind in self._kinds:
                self._queue.put(self._kinds[job.kind].workers.name, job.id)
            else:
                self._fail(job, Interrupted(f"This lipserve knows no jobs of the kind {job.kind!r}.", ""))
        self._hand_all_over()

    @property
    def paused(self) -> bool:
        """Whether jobs wait although workers are free: Triton is away."""
        return self._paused

    def pause(self) -> None:
        """No job is begun until `resume`; those that are being worked on go on."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._hand_all_over()

    def stop(self) -> None:
        """No job is begun any more; running ones are cancelled, and will be queued when the workers have ended."""
        with self._lock:
            self._closing = True
            for running in self._running.values():
                running.cancelled.set()
        self.let_followers_go()

    def let_followers_go(self) -> None:
        """The service is about to stop: nothing more is told."""
        self._followers.close()

    def close(self) -> None:
        """After `stop` and the end of the workers."""
        self.store.close()
        self._storage.release()

    # -- for callers --------------------------------------------------------------------------------------------------

    def require_room(self, workers: Workers) -> None:
        """Raises QueueFull. Quick: asks neither disk nor lock that is held for long."""
        waiting = len(self._queue) + self._arriving
        if waiting >= self._max_waiting:
            raise QueueFull(f"{waiting} jobs are waiting already.", "Submit it again later.", workers.retry_after())

    def submit(
        self,
        kind: str,
        request: dict[str, Any],
        owner: str,
        *,
        fill: Callable[[Path], object] | None = None,
        webhook: str | None = None,
        prefix: str = "job_",
    ) -> Job:
        """Accept a job. `fill` writes its inputs into its folder; what it raises refuses the job. Raises QueueFull."""
        workers = self._kinds[kind].workers
        with self._lock:
            self.require_room(workers)
            self._arriving += 1
            created, job_id = self._new_id(prefix)
        arriving = True
        try:
            folder = self.folders.create(job_id)
            if fill is not None:
                fill(folder)
            flush(folder)
            job = Job(job_id, kind, "queued", 0.0, "", created, None, None, 0, owner, request, None, None, webhook)
            with self._lock:
                self.store.insert(job)
                self._queue.put(workers.name, job_id)
                self._arriving -= 1
                arriving = False
        except BaseException:
            self.folders.remove(job_id)
            raise
        finally:
            if arriving:
                with self._lock:
                    self._arriving -= 1
        log.info("job queued", job_id=job_id, kind=kind)
        self._hand_over(workers)
        return job

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """A job of `owner`; None: of anybody. Raises JobNotFound."""
        job = self.store.get(job_id) if JOB_ID.fullmatch(job_id) else None
        if job is None or (owner is not None and job.owner != owner):
            raise JobNotFound("There is no such job.", "Jobs that ended long ago are removed. GET /jobs lists them.")
        return job

    def list(
        self,
        owner: str | None,
        *,
        kinds: Collection[str] | None = None,
        state: JobState | None = None,
        limit: int = 20,
        before: str | None = None,
    ) -> list[Job]:
        """Newest first. `before`: the id of the last job of the page before, which may be gone by now."""
        if before is not None and not JOB_ID.fullmatch(before):
            raise InvalidParameter("before is no job's id.", "Give the id of the last job of the page before.")
        return self.store.page(owner, kinds, state, limit, before)

    def cancel(self, job_id: str, owner: str | None = None, begun: bool = True) -> Job:
        """The job, cancelled at once; its worker stops when it next reports. One that had ended before stays as it is,
        and so does, without `begun`, one that is being worked on."""
        job = self.get(job_id, owner)
        cancelled = self._move(job, "cancelled", None if begun else ["queued"], completed_at=now())
        if cancelled is not None:
            self._queue.remove(self._lane(job), job_id)
        with self._lock:
            running = self._running.get(job_id)
        if cancelled is not None and running is not None:
            running.cancelled.set()
        return cancelled or self.get(job_id, owner)

    def delete(self, job_id: str, owner: str | None = None) -> None:
        """An ended job and its files. Raises JobNotFound, and JobNotDone while it waits or is worked on."""
        job = self.get(job_id, owner)
        if not job.ended:
            raise JobNotDone(f"The job is {job.state}.", "Cancel it first.")
        with self._lock:
            if not self.store.delete(job_id):
                return
            running = self._running.get(job_id)
            if running is not None:
                running.removed = True
        if running is None:
            self.folders.remove(job_id)

    def has_result(self, job: Job) -> bool:
        """Whether it has made a file."""
        return job.state == "done" and self.folders.result(job.id).is_file()

    def result_file(self, job_id: str) -> Path:
        """The video that the job has made. Raises JobNotFound or JobNotDone."""
        job = self.get(job_id)
        if job.state != "done":
            raise JobNotDone(f"The job is {job.state}.", "Follow it at /jobs/{id}, or /jobs/{id}/events.")
        if not self.has_result(job):
            raise JobNotFound("This job has made no file.", "What it found stands in its result.")
        return self.folders.result(job_id)

    @contextmanager
    def holding(self, job_id: str) -> Iterator[None]:
        """While its files are sent, so that retention leaves them."""
        with self._held_lock:
            self._held[job_id] += 1
        try:
            yield
        finally:
            with self._held_lock:
                self._held[job_id] -= 1
                if not self._held[job_id]:
                    del self._held[job_id]

    def kept(self) -> Iterator[Kept]:
        """For retention: ended jobs may go, unless a worker has not let go of them or their files are being sent."""
        for job in self.store.all():
            in_use = not job.ended or job.id in self._running or self._is_held(job.id)
            since = job.completed_at or job.created_at
            yield Kept(since, self.folders.size(job.id), None if in_use else partial(self._retire, job.id))

    def _retire(self, job_id: str) -> None:
        if self._is_held(job_id):  # since just now: next time
            return
        with suppress(JobNotFound):  # deleted meanwhile
            try:
                self.delete(job_id)
            except StorageFull:  # the row needs room to go, which its files have
                self.folders.remove(job_id)
                self.delete(job_id)

    def _is_held(self, job_id: str) -> bool:
        with self._held_lock:
            return self._held[job_id] > 0

    async def follow(self, job_id: str) -> AsyncIterator[Job]:
        """The job now, then every change until it has ended, or is deleted, or the service stops."""
        loop = asyncio.get_running_loop()
        changes: asyncio.Queue[Job | None] = asyncio.Queue()

        def begin() -> Job:
            with self._lock:  # no change falls between the two
                job = self.get(job_id)
                self._followers.add(job_id, loop, changes)
                return job

        try:
            job: Job | None = await anyio.to_thread.run_sync(begin)
            while job is not None:
                yield job
                if job.ended:
                    return
                job = await changes.get()
        finally:
            self._followers.remove(job_id, changes)

    def counts(self) -> dict[str, int]:
        """Jobs that are queued and processing. From memory: quick."""
        processing = len(self._running)
        handed = sum(self._handed.values())
        return {"queued": len(self._queue) + max(handed - processing, 0), "processing": processing}

    def active(self, owner: str) -> int:
        """Jobs of an owner that have not ended."""
        return self.store.active(owner)

    # -- a job's way --------------------------------------------------------------------------------------------------

    def _hand_all_over(self) -> None:
        for workers in {kind.workers.name: kind.workers for kind in self._kinds.values()}.values():
            self._hand_over(workers)

    def _hand_over(self, workers: Workers) -> None:
        """As many jobs as there are workers are theirs; the others stay in the queue."""
        while True:
            with self._lock:
                if self._closing or self._paused or self._handed[workers.name] >= workers.count:
                    return
                job_id = self._queue.take(workers.name)
                if job_id is None:
                    return
                self._handed[workers.name] += 1

            def work(cancelled: Event, job_id: str = job_id) -> None:
                first = True
                try:
                    again = self._paused or self._work(job_id, cancelled)
                except Exception:
                    log.exception("a job could not be begun; it is queued again", job_id=job_id)
                    cancelled.wait(SECONDS_OF_PATIENCE)
                    again, first = True, False  # others may fare better
                try:
                    if again:
                        self._put_back(workers, job_id, first)
                finally:
                    with self._lock:
                        self._handed[workers.name] -= 1
                    self._hand_over(workers)

            try:
                workers.submit(work, Event(), "jobs")
            except Cancelled:  # shutting down: it is queued in the store
                return

    def _put_back(self, workers: Workers, job_id: str, first: bool) -> None:
        """Unless it is cancelled or deleted by now."""
        with self._lock:
            try:
                job = self.store.get(job_id)
                wanted = job is not None and job.state == "queued"
            except Exception:
                log.exception("whether a job is still wanted could not be found out", job_id=job_id)
                wanted = True
            if wanted:
                self._queue.put(workers.name, job_id, first)

    def _work(self, job_id: str, cancelled: Event) -> bool:
        """Whether the job is to be worked on again."""
        with self._lock:
            if self._closing:
                return False
            waiting = self.store.get(job_id)
            if waiting is None:
                return False
            job = self.store.move(
                job_id, "processing", started_at=now(), attempts=waiting.attempts + 1, progress=0.0, stage=""
            )
            if job is None:  # cancelled meanwhile
                return False
            self._running[job_id] = _Running(cancelled)
            self._followers.tell(job)
        with structlog.contextvars.bound_contextvars(job_id=job_id):
            try:
                ended = self._handle(job, cancelled)
            finally:
                self._forget(job_id)
        return ended is not None and ended.state == "queued" and not self._closing

    def _forget(self, job_id: str) -> None:
        with self._lock:
            running = self._running.pop(job_id)
        if running.removed:
            self.folders.remove(job_id)

    def _handle(self, job: Job, cancelled: Event) -> Job | None:
        """The job as it is now; None if its end was another's doing."""
        kind, watch = self._kinds[job.kind], Stopwatch()
        context = JobContext(
            job, self.folders.folder(job.id), cancelled, watch, _Reporter(self, job).report, Stages(kind.stages)
        )
        log.info("job started", kind=job.kind, attempt=job.attempts)
        timer = Timer(self._timeout, self._time_out, [job, cancelled])
        timer.daemon = True
        ended: Job | None
        try:
            timer.start()
            self.folders.drop_results(job.id)
            result = kind.handler(context)
            flush(context.folder)
            ended = self._move(job, "done", result=result, progress=1.0, completed_at=now())
        except Exception as exc:
            self.folders.drop_results(job.id)
            ended = self._certainly(partial(self._unsuccessful, job, exc))
        finally:
            timer.cancel()
        watch.stop()
        if ended is None or ended.state != "done":  # too late: it has timed out, or was cancelled
            self.folders.drop_results(job.id)
        log.info(
            "job ended",
            kind=job.kind,
            state=self._state(job.id),
            seconds=round(watch.total, 3),
            stages=watch.rounded(),
        )
        return ended

    def _certainly(self, end: Callable[[], Job | None]) -> Job | None:
        """A job must not stay without an end because the disk is full at that moment."""
        for _ in range(ATTEMPTS_TO_END):
            try:
                return end()
            except Exception:
                log.exception("a job's end could not be written down; trying again")
                time.sleep(SECONDS_OF_PATIENCE)
        return None  # "processing" in the store: taken up at the next start

    def _unsuccessful(self, job: Job, exc: Exception) -> Job | None:
        if self._closing:  # whatever it was, it may come from that
            return self._move(job, "queued", attempts=job.attempts - 1, started_at=None, progress=0.0, stage="")
        if isinstance(exc, Cancelled):
            return self._move(job, "cancelled", completed_at=now())
        if isinstance(exc, TritonUnavailable | ServiceBusy):
            return self._without_triton(job, exc)
        if isinstance(exc, LipserveError):
            return self._fail(job, exc)
        if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
            return self._fail(job, StorageFull("The disk is full.", "Free some space where lipserve keeps its files."))
        log.error("unexpected error", exc_info=exc)
        hint = "This is a defect of lipserve; its log has the details under this job's id."
        return self._fail(job, LipserveError("An unexpected error happened.", hint))

    def _without_triton(self, job: Job, exc: TritonUnavailable | ServiceBusy) -> Job | None:
        """Queued once more: what Triton is needed for waits for it, unless it is this job that Triton does not bear."""
        if isinstance(exc, TritonUnavailable):
            self.pause()
        if job.attempts >= MOST_ATTEMPTS:
            return self._fail(job, exc)
        log.warning("the job is queued again: %s", exc)
        if isinstance(exc, ServiceBusy):
            time.sleep(SECONDS_OF_PATIENCE)
        return self._move(job, "queued", started_at=None, progress=0.0, stage="")

    def _time_out(self, job: Job, cancelled: Event) -> None:
        error = JobTimedOut(f"The job took longer than {self._timeout:g} s.", "Raise LIPSERVE_JOB_TIMEOUT_SECONDS.")
        try:
            self._certainly(partial(self._fail, job, error))
        finally:
            cancelled.set()  # also if another was faster: this attempt is over

    def _fail(self, job: Job, error: LipserveError) -> Job | None:
        body = {"kind": error.kind, "message": error.message, "hint": error.hint}
        return self._move(job, "failed", error=body, completed_at=now())

    def _move(
        self, job: Job, state: JobState, origins: Collection[JobState] | None = None, **values: Any
    ) -> Job | None:
        """The job in its new state; None if it is at another attempt, or in a state that cannot become this one."""
        attempt = None if state == "cancelled" else job.attempts
        with self._lock:
            moved = self.store.move(job.id, state, attempt, origins, **values)
            if moved is not None:
                self._followers.tell(moved)
        if moved is not None and moved.ended:
            for listener in self._listeners:
                try:
                    listener(moved)
                except Exception:  # the job has ended all the same
                    log.exception("who is told of ended jobs failed", job_id=moved.id)
        return moved

    def note(self, job: Job, stage: str, progress: float) -> None:
        """How far it is, unless it is not being worked on any more."""
        with self._lock:
            moved = self.store.progress(job.id, job.attempts, stage, progress)
            if moved is not None:
                self._followers.tell(moved)

    def _state(self, job_id: str) -> str:
        job = self.store.get(job_id)
        return job.state if job is not None else "deleted"

    def _lane(self, job: Job) -> str:
        return self._kinds[job.kind].workers.name

    def _new_id(self, prefix: str) -> tuple[Any, str]:
        """The time, and an id that sorts by it, later than every one before."""
        self._last_serial = max((now() - EPOCH) // timedelta(microseconds=1), self._last_serial + 1)
        created = EPOCH + timedelta(microseconds=self._last_serial)
        return created, f"{prefix}{self._last_serial:0{TIME_DIGITS}x}{secrets.token_hex(9)}"


class _Reporter:
    """Writes a job's progress down, not too often."""

    def __init__(self, service: JobService, job: Job) -> None:
        self._service, self._job = service, job
        self._stage, self._at = "", 0.0

    def report(self, stage: str, progress: float) -> None:
        at = time.monotonic()
        if stage != self._stage or at - self._at >= SECONDS_BETWEEN_REPORTS:
            self._stage, self._at = stage, at
            self._service.note(self._job, stage, progress)
