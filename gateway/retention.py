"""Removes what was kept long enough: by age, and the oldest first where all of it has grown too large.

Knows nothing of what it removes: whoever keeps something names it, its age and its size.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import anyio.to_thread
import structlog

SECONDS_BETWEEN_SWEEPS = 60.0

log = structlog.stdlib.get_logger("gateway")


@dataclass(frozen=True)
class Kept:
    """Something on the disk. `remove` is None while it is in use: then it counts, and stays."""

    since: datetime  # UTC
    size: int  # bytes
    remove: Callable[[], None] | None


Source = Callable[[], Iterable[Kept]]


class Retention:
    def __init__(self, hours: float, max_bytes: float) -> None:
        self.sources: list[Source] = []
        self._age, self._max_bytes = timedelta(hours=hours), max_bytes

    def sweep(self, now: datetime) -> int:
        """How many were removed."""
        kept = sorted((item for source in self.sources for item in source()), key=lambda item: item.since)
        total, removed = sum(item.size for item in kept), 0
        failures: list[Exception] = []
        for item in kept:
            if item.remove is not None and (now - item.since > self._age or total > self._max_bytes):
                try:
                    item.remove()
                except Exception as exc:  # of one; the others can go
                    failures.append(exc)
                    continue
                total -= item.size
                removed += 1
        if failures:
            log.error("some of what was kept long enough stays", count=len(failures), exc_info=failures[0])
        return removed

    async def keep_sweeping(self, clock: Callable[[], datetime]) -> None:
        while True:
            try:
                removed = await anyio.to_thread.run_sync(self.sweep, clock())
            except Exception:
                log.exception("what is out of date could not be removed")
            else:
                if removed:
                    log.info("removed what was kept long enough", removed=removed)
            await asyncio.sleep(SECONDS_BETWEEN_SWEEPS)
