"""Places for requests at Triton: a bounded number may be there at once, the rest wait here, live ones first.

Knows neither Triton nor what is sent.
"""

import heapq
import time
from itertools import count
from threading import Condition, Event

from lipserve.contract import Priority
from lipserve.errors import Cancelled

WAIT_STEP = 0.5  # seconds, after which whoever waits looks whether it is still wanted


class Places:
    """Safe to use from several threads."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._waiting: list[tuple[Priority, int]] = []  # a heap: of one priority, who came first
        self._numbers = count()
        self._changed = Condition()

    @property
    def taken(self) -> int:
        return self._total - self._free

    def take(self, priority: Priority, seconds: float, cancelled: Event | None = None) -> bool:
        """Wait for a place; False: there was none for so long. Raises Cancelled once `cancelled` is set."""
        until = time.monotonic() + seconds
        with self._changed:
            ticket = (priority, next(self._numbers))
            heapq.heappush(self._waiting, ticket)
            try:
                while not self._free or self._waiting[0] != ticket:
                    if cancelled is not None and cancelled.is_set():
                        raise Cancelled("The request was cancelled.")
                    left = until - time.monotonic()
                    if left <= 0:
                        return False
                    self._changed.wait(min(left, WAIT_STEP))
                self._free -= 1
                return True
            finally:
                self._waiting.remove(ticket)
                heapq.heapify(self._waiting)
                self._changed.notify_all()

    def give_back(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify_all()

    def wait_until_free(self, seconds: float) -> bool:
        """Whether all were given back before the time was over."""
        with self._changed:
            return self._changed.wait_for(lambda: self._free == self._total, seconds)
