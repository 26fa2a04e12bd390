"""The HTTP application: `create_app(settings)` builds everything, importing builds nothing.

Knows requests and responses; the work itself is in gateway.engine.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import lipserve
from avatar_prep.source import Limits
from gateway import did, did_routes, health, links, logs, service_routes
from gateway.access import CHALLENGE, Access, describe_keys
from gateway.body_limit import BodyLimit, BodyRefused
from gateway.calls import log_refused_call
from gateway.description import describe_errors
from gateway.engine import Engine
from gateway.fetching import UrlFetcher
from gateway.job_handlers import register_main_calls
from gateway.job_routes import result_path
from gateway.job_routes import router as job_router
from gateway.job_view import job_view
from gateway.jobs import Job, JobService
from gateway.jobs.store import now
from gateway.key_limits import KeyLimits
from gateway.keys import Keys
from gateway.metrics import Metrics
from gateway.pictures import PictureAvatars
from gateway.request_count import RequestCount
from gateway.request_id import RequestId
from gateway.retention import Kept, Retention
from gateway.routes import endpoint_names, main_calls, router
from gateway.talks import KIND, Talks
from gateway.uploads import Uploads
from gateway.webhooks import Poster, Webhooks, own_secret
from gateway.work import Scratch, Workers
from lipserve.errors import InvalidParameter, LipserveError, PayloadTooLarge, Unauthorized, UploadStalled
from lipserve.media import choose_encoder
from lipserve.settings import Settings

DEFAULT_TRITON_URL = "127.0.0.1:8001"
WARM_UP_RETRY = 1.0  # seconds
READY_CHECK = 0.5  # seconds
ROUTERS = (
    main_calls,
    router,
    job_router,
    did_routes.orders,
    did_routes.router,
    service_routes.orders,
    service_routes.router,
    health.router,
)

log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    triton_url: str | None = None,
    triton_metrics_url: str | None = None,
    poster: Poster | None = None,
) -> FastAPI:
    """The gateway in front of `triton_url`, or of the one in the settings; `poster` sends webhooks, if not
    what fetches URLs does. Raises EncoderUnavailable."""
    logs.configure(settings.log_format)
    choose_encoder(settings.video_encoder)  # one that does not work ends the start here, in one line
    app = FastAPIOffline(title="lipserve", version=lipserve.__version__, lifespan=_lifespan)
    app.state.settings = settings
    app.state.triton_url = triton_url or settings.triton_url or DEFAULT_TRITON_URL
    app.state.triton_metrics_url = triton_metrics_url or settings.triton_metrics_url
    app.state.poster = poster
    app.state.warm = False
    app.state.failure = None
    metrics = app.state.metrics = Metrics()
    for part in ROUTERS:
        app.include_router(part)
    describe_errors(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_mb * 1_000_000)
    _guard(app, settings)
    app.add_middleware(RequestId)
    app.add_middleware(RequestCount, metrics, frozenset(endpoint_names(*ROUTERS)))
    app.add_exception_handler(LipserveError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(Exception, _answer_unexpected)
    return app


def _guard(app: FastAPI, settings: Settings) -> None:
    """Keys and limits; outside of them what browsers ask, without a key, before they send one."""
    keys = Keys(settings.keys_file) if settings.keys_file is not None else None
    limits = KeyLimits(settings.rate_limit, settings.key_concurrency)
    app.add_middleware(Access, keys, limits, _answer_error)
    if keys is not None:
        describe_keys(app)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "Prefer", "X-API-Key", "X-Request-Id"],
            expose_headers=["Location", "Retry-After", "X-Request-Id"],
        )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    try:
        async with _working(app):
            yield
    except LipserveError as exc:
        app.state.failure = exc  # for `lipserve up`: uvicorn only has its traceback
        raise


@asynccontextmanager
async def _working(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    with ExitStack() as stack:
        jobs = JobService(settings.storage_dir, settings.max_waiting, settings.job_timeout_seconds)
        stack.callback(jobs.close)
        engine = app.state.engine = Engine(settings, app.state.triton_url, app.state.metrics)
        stack.callback(engine.close)
        engine.store.recover()
        app.state.scratch = Scratch(settings.work_dir)
        stack.callback(app.state.scratch.close)
        app.state.jobs = jobs
        app.state.active_jobs = jobs.active
        secret = links.secret(settings.storage_dir)
        app.state.links = links.Links(secret, settings.result_url_seconds, settings.public_url)
        app.state.triton_watch = health.TritonWatch(engine, app.state.triton_metrics_url)
        app.state.webhooks = webhooks = _webhooks(app, settings, jobs)
        app.state.syncs = Workers("sync", settings.max_concurrent_syncs, settings.max_waiting)
        app.state.preparations = Workers("prepare", 1, settings.max_waiting)
        app.state.metrics.watch("lip_sync", app.state.syncs)
        app.state.metrics.watch("prepare_avatar", app.state.preparations)
        register_main_calls(jobs, engine, settings, app.state.syncs, app.state.preparations)
        app.state.metrics.watch_jobs(jobs)
        retention = app.state.retention = Retention(settings.job_retention_hours, settings.storage_max_gb * 1e9)
        retention.sources.append(jobs.kept)
        uploads = app.state.uploads = Uploads(
            settings.storage_dir / "uploads",
            settings.job_retention_hours,
            settings.max_upload_mb * 1_000_000,
            Limits(settings.max_video_seconds, settings.max_frame_pixels),
            settings.max_audio_seconds,
        )
        pictures = PictureAvatars(settings, engine, app.state.metrics)
        app.state.talks = Talks(settings, jobs, app.state.syncs, engine, pictures, uploads)
        retention.sources += [pictures.kept, partial(_kept_uploads, uploads)]
        jobs.pause()
        jobs.start()
        if webhooks is not None:
            webhooks.start()
        tasks = [
            asyncio.create_task(_warm_up(app, engine, jobs)),
            asyncio.create_task(_resume_jobs(app, engine, jobs)),
            asyncio.create_task(retention.keep_sweeping(now)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            jobs.stop()
            if webhooks is not None:
                await webhooks.close()
            await asyncio.to_thread(app.state.syncs.close)
            await asyncio.to_thread(app.state.preparations.close)


def _kept_uploads(uploads: Uploads) -> list[Kept]:
    return [Kept(upload.created_at, upload.size, partial(uploads.remove, upload)) for upload in uploads.list()]


def _webhooks(app: FastAPI, settings: Settings, jobs: JobService) -> Webhooks | None:
    """None where nothing sends them."""
    poster = app.state.poster or (UrlFetcher(settings) if settings.fetch_urls else None)
    if poster is None:
        return None
    given, own = settings.webhook_secret, f"http://{settings.host}:{settings.port}"
    secret = (given and given.get_secret_value()) or own_secret(settings.storage_dir)

    def url(job: Job) -> str | None:
        return app.state.links.sign(result_path(job.id), own) if jobs.has_result(job) else None

    def body(job: Job) -> dict[str, Any]:
        return job_view(job, url(job)).model_dump(mode="json")

    def talk_body(job: Job) -> dict[str, Any]:
        speech = did_routes.speech_path(job) if did_routes.has_speech(jobs, job) else None
        speech_url = speech and app.state.links.sign(speech, own)
        return did.talk(job, url(job), speech_url).model_dump(mode="json", exclude_none=True)

    webhooks = Webhooks(poster, secret, jobs, body)
    webhooks.bodies[KIND] = talk_body
    jobs.on_end(webhooks.tell)
    return webhooks


async def _warm_up(app: FastAPI, engine: Engine, jobs: JobService) -> None:
    """Until it has worked once; until then /health/ready says no, and stored jobs wait."""
    last = ""
    while True:
        try:
            await asyncio.to_thread(engine.warm_up)
        except LipserveError as exc:
            if str(exc) != last:
                log.warning("not ready: %s", exc)
            last = str(exc)
            await asyncio.sleep(WARM_UP_RETRY)
        except Exception:
            log.exception("warming up failed unexpectedly")
            await asyncio.sleep(WARM_UP_RETRY)
        else:
            await asyncio.to_thread(jobs.resume)
            app.state.warm = True
            log.info("ready, Triton at %s", engine.triton.url)
            return


async def _resume_jobs(app: FastAPI, engine: Engine, jobs: JobService) -> None:
    """Once a job has found that Triton is away the others wait for it; calls are told so at once."""
    while True:
        try:
            if jobs.paused and app.state.warm and await asyncio.to_thread(engine.is_ready):
                await asyncio.to_thread(jobs.resume)
        except Exception:
            log.exception("whether Triton is back could not be found out")
        await asyncio.sleep(READY_CHECK)


def _answer_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, LipserveError)
    return _error(request, exc.status, exc.kind, exc.message, exc.hint, exc.retry_after)


def _error(
    request: Request,
    status: int,
    kind: str,
    message: str,
    hint: str,
    retry_after: int | None = None,
    problems: Sequence[Any] = (),
) -> JSONResponse:
    """Logged here too, unless the job that failed has logged its answer. `problems`: what pydantic found in a form."""
    state = request.state
    request.app.state.metrics.error(kind)
    headers = {"x-request-id": state.request_id, **getattr(state, "seconds_headers", {})}
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    if status == Unauthorized.status:
        headers["www-authenticate"] = CHALLENGE
    if status in (UploadStalled.status, PayloadTooLarge.status):
        headers["connection"] = "close"  # or the rest of the body would still be read
    if not hasattr(state, "seconds_headers"):
        log.info("%s %s refused: %s %s: %s", request.method, request.url.path[:200], status, kind, message[:500])
    message, hint = (text.encode(errors="replace").decode() for text in (message, hint))  # lone surrogates out of JSON
    if did.speaks(request.url.path):
        own = {"request_id": state.request_id}
        answer = did.invalid(kind, problems, own) if problems else did.error(status, kind, message, hint, own)
        return JSONResponse(answer.model_dump(), did.status(status), headers)
    return JSONResponse(
        {"kind": kind, "message": message, "hint": hint, "request_id": state.request_id}, status, headers
    )


def _answer_http_error(request: Request, exc: Exception) -> JSONResponse:
    """Unknown paths and methods, and forms that cannot be parsed."""
    assert isinstance(exc, HTTPException)
    if isinstance(exc, BodyRefused):
        return _answer_error(request, exc.error)
    kind = {404: "not_found", 405: "method_not_allowed"}.get(exc.status_code, "bad_request")
    answer = _error(request, exc.status_code, kind, str(exc.detail), "See /docs for the API.")
    answer.headers.update(exc.headers or {})  # 405 says what is allowed
    return answer


def _answer_invalid(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    given = exc.body if isinstance(exc.body, Mapping) else {}
    log_refused_call(request, {name: value for name, value in given.items() if isinstance(value, str)})
    message, hint = f"{where}: {first['msg']}.", "See /docs for the parameters."
    return _error(request, InvalidParameter.status, InvalidParameter.kind, message, hint, problems=exc.errors())


def _answer_unexpected(request: Request, exc: Exception) -> JSONResponse:
    log.error("unexpected error", exc_info=exc)
    hint = "This is a defect of lipserve; its log has the details under this request_id."
    return _answer_error(request, LipserveError("An unexpected error happened.", hint))
