"""What one key may use: calls a minute, and work in progress at once. The only module that imports limits."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from lipserve.errors import RateLimited


class KeyLimits:
    """`rate`: calls in any 60 s, `concurrency`: in progress at once; 0 is no limit. Used by the event loop's thread."""

    def __init__(self, rate: int, concurrency: int) -> None:
        self._rate = RateLimitItemPerMinute(rate) if rate else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._concurrency = concurrency
        self._in_progress: Counter[str] = Counter()

    def count(self, owner: str) -> None:
        """A call is made. Raises RateLimited; a refused call does not count."""
        if self._rate is None or self._limiter.hit(self._rate, owner):
            return
        wait = math.ceil(self._limiter.get_window_stats(self._rate, owner).reset_time - time.time())
        raise RateLimited(
            f"This key has made {self._rate.amount} calls within a minute.",
            "Wait as Retry-After says; poll less often, or use a job's events or a webhook.",
            max(1, wait),
        )

    @contextmanager
    def working(self, owner: str, active: Callable[[str], int]) -> Iterator[None]:
        """A call that makes work, for as long as it lasts. `active`: the owner's jobs whose calls have been answered.

        Raises RateLimited.
        """
        if self._concurrency and self._in_progress[owner] + active(owner) >= self._concurrency:
            raise RateLimited(
                f"This key has {self._concurrency} jobs and calls in progress, which is its limit.",
                "Wait until one of them is done.",
            )
        self._in_progress[owner] += 1
        try:
            yield
        finally:
            self._in_progress[owner] -= 1
            if not self._in_progress[owner]:
                del self._in_progress[owner]
