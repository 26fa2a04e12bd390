"""Models that Triton loads when they are first needed, and lets go when they have not been for a while.

Triton is asked each time whether a model is there: it may have been started anew, without any. Knows a model by its
name only.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from lipserve.errors import LipserveError

log = logging.getLogger(__name__)


class ModelControl(Protocol):
    """What gateway.triton.TritonClient can do with a model's name."""

    def is_loaded(self, name: str) -> bool: ...
    def load(self, name: str) -> None: ...
    def unload(self, name: str) -> None: ...


@dataclass
class _Use:
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while the model is loaded or let go
    users: int = 0
    idle_since: float | None = None  # None: in use, or not loaded by us


class OnDemand:
    """Safe to use from several threads."""

    def __init__(self, triton: ModelControl, idle_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`idle_seconds` 0: what is loaded stays."""
        self._triton, self._idle_seconds, self._clock = triton, idle_seconds, clock
        self._uses: dict[str, _Use] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="unload-idle", daemon=True)
        if idle_seconds:
            self._watcher.start()

    def close(self) -> None:
        self._closed.set()
        if self._watcher.is_alive():
            self._watcher.join()

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """The model is there as long as the block lasts. Whoever comes while it is being loaded waits for it.

        Raises TritonUnavailable or TritonFailed.
        """
        with self._lock:
            use = self._uses.setdefault(name, _Use())
        with use.lock:
            if not self._triton.is_loaded(name):
                started = time.monotonic()
                self._triton.load(name)
                log.info("Triton has loaded %s in %.1f s", name, time.monotonic() - started)
            use.users += 1
            use.idle_since = None
        try:
            yield
        finally:
            with use.lock:
                use.users -= 1
                if not use.users:
                    use.idle_since = self._clock()

    def unload_idle(self) -> None:
        """Let go what nobody has used for long enough."""
        with self._lock:
            uses = dict(self._uses)
        for name, use in uses.items():
            with use.lock:
                if use.idle_since is None or self._clock() - use.idle_since < self._idle_seconds:
                    continue
                try:
                    self._triton.unload(name)
                except LipserveError as exc:
                    use.idle_since = self._clock()  # once more, after the same time
                    log.warning("%s stays loaded: %s", name, exc)
                else:
                    use.idle_since = None
                    log.info("Triton has let go %s, unused for %s s", name, self._idle_seconds)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._idle_seconds / 4)):
            self.unload_idle()
