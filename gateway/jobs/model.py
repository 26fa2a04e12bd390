"""A job, the states it goes through, and what its handler is given."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any

from gateway.timing import Stopwatch
from gateway.work import Workers
from lipserve.api import ENDED, JobState
from lipserve.errors import Cancelled

# queued ──> processing ──> done
#   │  <──────── │  ├─────> failed
#   │            │  └─────> cancelled
#   └──> failed, cancelled
TRANSITIONS: dict[JobState, frozenset[JobState]] = {  # to a state, from these
    "queued": frozenset({"processing"}),
    "processing": frozenset({"queued"}),
    "done": frozenset({"processing"}),
    "failed": frozenset({"queued", "processing"}),
    "cancelled": frozenset({"queued", "processing"}),
}
STATES: tuple[JobState, ...] = ("queued", "processing", "done", "failed", "cancelled")

JOB_ID = re.compile(r"[a-z]{1,8}_[0-9a-f]{32}")  # prefix, microseconds since 1970, random
TIME_DIGITS = 14  # of the 32
RESULT = "result.mp4"


@dataclass(frozen=True)
class Job:
    id: str
    kind: str
    state: JobState
    progress: float  # 0 to 1, never falling
    stage: str
    created_at: datetime  # UTC
    started_at: datetime | None
    completed_at: datetime | None
    attempts: int
    owner: str  # of an API key; "" where none is asked for
    request: dict[str, Any]  # what the handler works by
    result: dict[str, Any] | None
    error: dict[str, str] | None  # kind, message, hint
    webhook: str | None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass
class JobContext:
    """What a handler works with. Its video, if it makes one, is `folder/"result.mp4"`, which appears whole or not at
    all; files whose names begin with a dot are scratch, and go before the next attempt."""

    job: Job
    folder: Path
    cancelled: Event
    watch: Stopwatch
    tell: Callable[[str, float], None]  # (stage, progress 0 to 1)
    stages: "Stages"

    def report(self, stage: str, done: int, total: int | None) -> None:
        """May be called for every frame. Raises Cancelled when nobody waits for the job any more."""
        if self.cancelled.is_set():
            raise Cancelled("The job was cancelled.")
        self.tell(stage, self.stages.progress(stage, done, total))


Handler = Callable[[JobContext], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    handler: Handler
    workers: Workers
    stages: Mapping[str, float]  # in order, with the share of the time that each takes


class Stages:
    """Progress within stages to one number that never falls. A stage that is not known does not move it."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        total, start = sum(shares.values()), 0.0
        self._spans: dict[str, tuple[float, float]] = {}  # start, length
        for name, share in shares.items():
            self._spans[name] = (start, share / total)
            start += share / total
        self._reached = 0.0

    def progress(self, stage: str, done: int, total: int | None) -> float:
        start, length = self._spans.get(stage, (self._reached, 0.0))
        part = min(done / total, 1.0) if total else 0.0
        self._reached = max(self._reached, min(start + length * part, 1.0))
        return self._reached
