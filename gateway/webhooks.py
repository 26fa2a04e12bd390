"""Tells a job's end to the URL that its caller named: signed as Standard Webhooks say, tried several times.

Which jobs are still to be told stands in the store, so a restart forgets none; each then has all its attempts again. A
receiver that has already got one knows it by its `webhook-id`, the job's own.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import anyio
import structlog
from standardwebhooks import Webhook
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from gateway.jobs import Job, JobService
from gateway.jobs.store import now
from gateway.secret_file import kept_secret
from lipserve.errors import FetchFailed, InvalidParameter, JobNotFound, LipserveError

ATTEMPTS = 5
FIRST_WAIT = 5.0  # seconds; each wait is three times the one before: the last attempt comes after 200 s
AT_ONCE = 8  # deliveries
GONE = 410  # the receiver wants no more

SECRET_FILE = "webhook_secret"

log = structlog.stdlib.get_logger("gateway")


class Poster(Protocol):
    """What sends a request to a URL that a stranger has named. Blocks for a bounded time."""

    def check(self, url: str) -> None:
        """What can be said of it without the network. Raises UrlNotAllowed."""

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The answer's status. Raises UrlNotAllowed or FetchFailed."""


class Webhooks:
    """`start` and `close` belong to an event loop; `tell` may be called from any thread."""

    def __init__(
        self,
        poster: Poster,
        secret: str,
        jobs: JobService,
        body: Callable[[Job], dict[str, Any]],
        first_wait: float = FIRST_WAIT,
    ) -> None:
        """`body`: a job as JSON. Raises InvalidParameter for a secret that is none."""
        self.poster = poster
        self.bodies: dict[str, Callable[[Job], dict[str, Any]]] = {}  # of kinds that have their own
        self._body, self._jobs, self._first_wait = body, jobs, first_wait
        try:
            self._signer = Webhook(secret)
        except Exception as exc:  # of base64, or of the library
            hint = "Give whsec_ and 24 to 64 random bytes in base64, or leave it empty: one is made."
            raise InvalidParameter("LIPSERVE_WEBHOOK_SECRET is no Standard Webhooks secret.", hint) from exc
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter = anyio.CapacityLimiter(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by the job's id

    def start(self) -> None:
        """What an earlier process has not told is told now. In the event loop."""
        self._loop = asyncio.get_running_loop()
        for job_id in self._jobs.store.webhooks_pending():
            self._begin(job_id)

    async def close(self) -> None:
        """What is not told yet stays to be told."""
        self._loop = None
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def tell(self, job: Job) -> None:
        """A job has ended."""
        loop = self._loop
        if job.webhook is not None and loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._begin, job.id)

    def _begin(self, job_id: str) -> None:
        if self._loop is not None and job_id not in self._tasks:
            task = self._tasks[job_id] = self._loop.create_task(self._deliver(job_id))
            task.add_done_callback(lambda _: self._tasks.pop(job_id))

    async def _deliver(self, job_id: str) -> None:
        try:
            job = await anyio.to_thread.run_sync(self._jobs.get, job_id)
            outcome = await self._outcome(job)
            await anyio.to_thread.run_sync(self._jobs.store.webhook_told, job_id)
        except JobNotFound:
            log.info("webhook dropped: its job was deleted", job_id=job_id)
        except Exception:  # it stays to be told, at the next start
            log.exception("webhook failed unexpectedly", job_id=job_id)
        else:
            log.info("webhook ended", job_id=job_id, outcome=outcome)

    async def _outcome(self, job: Job) -> str:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(self._first_wait, exp_base=3) + wait_random(0, self._first_wait),
            retry=retry_if_exception_type(FetchFailed),
        )
        try:
            return await attempts(self._attempt, job)
        except RetryError as exc:
            return f"given up: {exc.last_attempt.exception()}"
        except LipserveError as exc:
            return f"refused: {exc}"

    async def _attempt(self, job: Job) -> str:
        """Raises FetchFailed where another attempt may help."""

        def post() -> int:
            assert job.webhook is not None
            body = json.dumps(self.bodies.get(job.kind, self._body)(job))
            return self.poster.post(job.webhook, body.encode(), self._headers(job.id, body))

        status = await anyio.to_thread.run_sync(post, abandon_on_cancel=True, limiter=self._limiter)
        if 200 <= status < 300:
            return "delivered"
        if status == GONE:
            return "not wanted any more"
        raise FetchFailed(f"The webhook answered {status}.", "It must answer 2xx.")

    def _headers(self, message_id: str, body: str) -> dict[str, str]:
        time = now()
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(time.timestamp())),
            "webhook-signature": self._signer.sign(message_id, time, body),
        }


def own_secret(storage_dir: Path) -> str:
    """The secret that was made at the first start."""

    def make() -> bytes:
        return b"whsec_" + base64.b64encode(secrets.token_bytes(32)) + b"\n"

    return kept_secret(storage_dir / SECRET_FILE, make).decode().strip()
