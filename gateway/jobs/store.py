"""Jobs in SQLite, through SQLAlchemy Core; nothing else imports it. Knows rows, not what happens to jobs.

A state is changed by one UPDATE that names the states it may change from, so two who try at once cannot both succeed.
Everything here blocks, for milliseconds; safe to use from several threads.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import JSON, Boolean, Column, Float, Integer, String, Table
from sqlalchemy.exc import DatabaseError, OperationalError

from gateway.jobs.model import STATES, TRANSITIONS, Job
from lipserve.api import ENDED, JobState
from lipserve.errors import StorageForeign, StorageFull

SCHEMA_VERSION = 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Time(sa.types.TypeDecorator[datetime]):
    """UTC, as microseconds since 1970."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else EPOCH + timedelta(microseconds=value)


metadata = sa.MetaData()
jobs = Table(
    "jobs",
    metadata,
    Column("serial", String, primary_key=True),  # the id without its prefix: sorts by the time of creation
    Column("id", String, nullable=False, unique=True),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("progress", Float, nullable=False),
    Column("stage", String, nullable=False),
    Column("created_at", _Time, nullable=False),
    Column("started_at", _Time),
    Column("completed_at", _Time, index=True),
    Column("attempts", Integer, nullable=False),
    Column("owner", String, nullable=False),
    Column("request", JSON, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("webhook", String),
    Column("webhook_pending", Boolean, nullable=False, index=True),  # its end is still to be told
    sa.Index("ix_jobs_owner_serial", "owner", "serial"),  # pages of an owner's
    sa.Index("ix_jobs_owner_state", "owner", "state"),  # an owner's that have not ended
)
ACTIVE: tuple[JobState, ...] = ("queued", "processing")
JOB_COLUMNS = [column for column in jobs.columns if column.name not in ("serial", "webhook_pending")]


class JobStore:
    def __init__(self, file: Path) -> None:
        """Raises StorageForeign if the file is not one of ours."""
        self._engine = sa.create_engine(f"sqlite:///{file}", pool_size=8, max_overflow=56)
        sa.event.listen(self._engine, "connect", _configure)
        try:
            with self._engine.begin() as connection:
                version = connection.exec_driver_sql("PRAGMA user_version").scalar()
                if version == 0 and not sa.inspect(connection).get_table_names():
                    metadata.create_all(connection)
                    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
                elif version != SCHEMA_VERSION:
                    raise StorageForeign(
                        f"{file} has the schema version {version}, this lipserve knows {SCHEMA_VERSION}.",
                        "Use the version of lipserve that wrote it, or another LIPSERVE_STORAGE_DIR.",
                    )
        except DatabaseError as exc:
            self._engine.dispose()
            hint = "Another program's file? Move it away, or use another LIPSERVE_STORAGE_DIR."
            raise StorageForeign(f"{file} cannot be read as a database of jobs: {exc.orig}.", hint) from exc
        except StorageForeign:
            self._engine.dispose()
            raise
        with suppress(OperationalError), self._engine.begin() as connection:  # a full disk; without them it is slower
            for index in jobs.indexes:
                index.create(connection, checkfirst=True)

    def close(self) -> None:
        self._engine.dispose()

    def check(self) -> None:
        """Whether jobs can be read. Raises what the database does."""
        with self._read() as connection:
            connection.execute(sa.select(jobs.c.id).limit(1)).first()

    def insert(self, job: Job) -> None:
        values = {column.name: getattr(job, column.name) for column in JOB_COLUMNS}
        with self._write() as connection:
            connection.execute(jobs.insert().values(**values, serial=serial(job.id), webhook_pending=False))

    def get(self, job_id: str) -> Job | None:
        with self._read() as connection:
            row = connection.execute(sa.select(*JOB_COLUMNS).where(jobs.c.id == job_id)).one_or_none()
        return None if row is None else _job(row)

    def page(
        self,
        owner: str | None,
        kinds: Collection[str] | None,
        state: JobState | None,
        limit: int,
        before: str | None,
    ) -> list[Job]:
        """Newest first; those created before the job `before`, which may be gone."""
        query = sa.select(*JOB_COLUMNS).order_by(jobs.c.serial.desc()).limit(limit)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if kinds is not None:
            query = query.where(jobs.c.kind.in_(kinds))
        if state is not None:
            query = query.where(jobs.c.state == state)
        if before is not None:
            query = query.where(jobs.c.serial < serial(before))
        with self._read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def in_state(self, state: JobState) -> list[Job]:
        """Oldest first."""
        query = sa.select(*JOB_COLUMNS).where(jobs.c.state == state).order_by(jobs.c.serial)
        with self._read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def all(self) -> list[Job]:
        with self._read() as connection:
            return [_job(row) for row in connection.execute(sa.select(*JOB_COLUMNS))]

    def ids(self) -> set[str]:
        with self._read() as connection:
            return set(connection.execute(sa.select(jobs.c.id)).scalars())

    def active(self, owner: str) -> int:
        """How many jobs of an owner have not ended."""
        query = sa.select(sa.func.count()).where(jobs.c.owner == owner, jobs.c.state.in_(ACTIVE))
        with self._read() as connection:
            return int(connection.execute(query).scalar_one())

    def move(
        self,
        job_id: str,
        state: JobState,
        attempt: int | None = None,
        origins: Collection[JobState] | None = None,
        **values: Any,
    ) -> Job | None:
        """The job in its new state; None if it is in none from which that can be reached, or in none of `origins`, or
        at another attempt."""
        values["state"] = state
        if state in ENDED:
            values["webhook_pending"] = jobs.c.webhook.is_not(None)
        return self._update(job_id, TRANSITIONS[state].intersection(origins or STATES), attempt, values)

    def progress(self, job_id: str, attempt: int, stage: str, progress: float) -> Job | None:
        """The job; None if it is not being worked on any more."""
        return self._update(job_id, {"processing"}, attempt, {"stage": stage, "progress": progress})

    def _update(self, job_id: str, states: Collection[str], attempt: int | None, values: dict[str, Any]) -> Job | None:
        change = jobs.update().where(jobs.c.id == job_id, jobs.c.state.in_(states))
        if attempt is not None:
            change = change.where(jobs.c.attempts == attempt)
        with self._write() as connection:
            row = connection.execute(change.values(**values).returning(*JOB_COLUMNS)).one_or_none()
        return None if row is None else _job(row)

    def delete(self, job_id: str) -> bool:
        """Whether it was there, and had ended."""
        with self._write() as connection:
            gone = connection.execute(jobs.delete().where(jobs.c.id == job_id, jobs.c.state.in_(ENDED)))
            return gone.rowcount == 1

    def webhooks_pending(self) -> list[str]:
        """The ids of ended jobs whose end is still to be told."""
        query = sa.select(jobs.c.id).where(jobs.c.webhook_pending).order_by(jobs.c.completed_at)
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def webhook_told(self, job_id: str) -> None:
        with self._write() as connection:
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(webhook_pending=False))

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """One transaction. Raises StorageFull."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as exc:
            if "full" not in str(exc.orig):
                raise
            raise StorageFull("The disk is full.", "Free some space where lipserve keeps its jobs.") from exc

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._engine.connect() as connection:
            yield connection


def serial(job_id: str) -> str:
    return job_id.rpartition("_")[2]


def now() -> datetime:
    return EPOCH + timedelta(microseconds=time.time_ns() // 1000)


def _job(row: sa.Row[Any]) -> Job:
    return Job(**row._asdict())


def _configure(connection: Any, record: object) -> None:
    """WAL: readers never wait. FULL: what was accepted is on the disk, even if the machine fails."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")
