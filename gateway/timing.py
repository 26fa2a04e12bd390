"""Seconds per stage of one request: the numbers in the logs and in the response headers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Wall seconds, by stage and in total, until it is stopped. One request, one thread at a time."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._end: float | None = None
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - start

    def lap(self, name: str) -> None:
        """All seconds since the last lap go to this stage."""
        now = time.monotonic()
        self.stages[name] = self.stages.get(name, 0.0) + now - self._last
        self._last = now

    def stop(self) -> None:
        """From here on the numbers stay as they are."""
        self._end = time.monotonic()

    @property
    def total(self) -> float:
        return (self._end or time.monotonic()) - self._start

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 3) for name, seconds in dict(self.stages).items()}
