"""What machines ask about this service: health, readiness, metrics.

GET /health has the form of other self-hosted MuseTalk services: whether it serves, on what, and how busy it is.

Asked often and by simple machines: Triton is asked at most once a second, and never waited for longer than LIMIT.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.answers import Responses
from gateway.engine import Engine
from gateway.jobs import JobService
from gateway.metrics import CONTENT_TYPE, sums
from lipserve.api import Health, Report

FRESH = 1.0  # seconds that an answer of Triton's is good for
LIMIT = 2.0  # seconds, then Triton counts as away
ASK_TIMEOUT = 1.0  # seconds, each of two questions

router = APIRouter(tags=["operation"])
log = structlog.stdlib.get_logger("gateway")

METRICS: Responses = {
    200: {
        "content": {"text/plain": {"example": 'lipserve_requests_total{endpoint="lip_sync",outcome="ok"} 42.0\n'}},
        "description": "In Prometheus' text format.",
    }
}


@dataclass(frozen=True)
class TritonState:
    serves: bool = False
    loaded: bool = False
    metrics: Mapping[str, float] | None = None  # None: not known


class TritonWatch:
    """What Triton says of itself, however many ask. Used by the event loop's thread."""

    def __init__(self, engine: Engine, metrics_url: str | None) -> None:
        self._engine, self._metrics_url = engine, metrics_url
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[TritonState] | None = None

    async def look(self) -> TritonState:
        if self._asking is None or (self._asking.done() and time.monotonic() - self._asked_at > FRESH):
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask))
        try:
            return await asyncio.wait_for(asyncio.shield(self._asking), LIMIT)
        except TimeoutError:
            return TritonState()

    def _ask(self) -> TritonState:
        if not self._engine.is_ready(ASK_TIMEOUT):
            return TritonState()
        loaded = self._engine.on_demand is None or self._engine.triton.is_ready(ASK_TIMEOUT)
        return TritonState(True, loaded, self._read_metrics())

    def _read_metrics(self) -> Mapping[str, float] | None:
        if self._metrics_url is None:
            return None
        try:
            return sums(httpx.get(self._metrics_url, timeout=ASK_TIMEOUT).raise_for_status().text)
        except (httpx.HTTPError, ValueError) as exc:
            log.warning("Triton's metrics cannot be read", url=self._metrics_url, reason=str(exc))
            return None


@router.get("/health/live")
def live() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get(
    "/health/ready", responses={503: {"model": Health, "description": "Not yet, or not now."}}, response_model=Health
)
def ready(request: Request) -> Response:
    """Every model is warm, and Triton is there now; with models loaded on demand: Triton is there now."""
    engine: Engine = request.app.state.engine
    if not request.app.state.warm:
        health = Health(status="not_ready", message="The models are being warmed up.")
    elif not engine.is_ready():
        health = Health(status="not_ready", message=f"Triton at {engine.triton.url} does not answer.")
    else:
        health = Health(status="ready")
    return JSONResponse(health.model_dump(), 200 if health.status == "ready" else 503)


@router.get("/metrics", response_class=Response, responses=METRICS)
def metrics(request: Request) -> Response:
    """Counts and durations for Prometheus."""
    return Response(request.app.state.metrics.exposition(), headers={"content-type": CONTENT_TYPE})


@router.get("/health", responses={503: {"model": Report, "description": "It does not serve."}}, response_model=Report)
async def health(request: Request) -> Response:
    """Whether it serves: 200, else 503 with the same fields. For people and simple probes; see /health/ready, too."""
    state = request.app.state
    triton = await state.triton_watch.look()
    counts = await _counts(state)
    healthy = state.warm and triton.serves and counts is not None
    used, total = memory(triton.metrics)
    report = Report(
        status="healthy" if healthy else "unhealthy" if state.warm else "starting",
        model_loaded=state.warm and triton.loaded,
        device=None if triton.metrics is None else "cpu" if total is None else "cuda",
        vram_used_mb=used,
        vram_total_mb=total,
        jobs_queued=None if counts is None else counts.get("queued", 0),
        jobs_processing=None if counts is None else counts.get("processing", 0),
    )
    return JSONResponse(report.model_dump(), 200 if healthy else 503)


def memory(metrics: Mapping[str, float] | None) -> tuple[int | None, int | None]:
    """GPU memory used and in all, 10^6 bytes, by Triton's metrics."""
    used, total = ((metrics or {}).get(f"nv_gpu_memory_{name}_bytes") for name in ("used", "total"))
    if used is None or total is None:
        return None, None
    return round(used / 1e6), round(total / 1e6)


async def _counts(state: Any) -> Mapping[str, int] | None:
    """Jobs `queued` and `processing`. None: what they are kept in cannot be read."""
    jobs: JobService = state.jobs
    try:
        await asyncio.wait_for(asyncio.to_thread(jobs.store.check), LIMIT)
    except Exception:  # of whatever it is: /health is there to say so
        log.exception("jobs cannot be read")
        return None
    return jobs.counts()
