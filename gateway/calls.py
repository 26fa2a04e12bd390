"""How a main call is run: logged on arrival and on its answer, checked, done in a worker, timed; its files removed."""

import errno
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import anyio.to_thread
import structlog
from fastapi import Request, Response
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from gateway.timing import Stopwatch
from gateway.work import Workers
from lipserve.errors import InvalidParameter, LipserveError, QueueFull, StorageFull

T = TypeVar("T")
WORKERS = {"lip_sync": "syncs", "prepare_avatar": "preparations"}  # of a main call, in app.state
log = structlog.stdlib.get_logger("gateway")


async def logged_job(
    request: Request,
    what: str,
    parameters: Mapping[str, Any],
    workers: Workers,
    check: Callable[[], None],
    job: Callable[[Path, Event, Stopwatch], T],
) -> tuple[T, Path]:
    """A blocking call: the job's result and its folder.

    `check` is quick and comes first: what is wrong with the request itself need not wait for a worker.
    """
    watch = Stopwatch()
    async with _logged(request, what, parameters, watch, 200):
        await refuse_unknown_fields(request)
        check()
        folder = request.app.state.scratch.folder()
        result = await workers.run(request, folder, lambda cancelled: job(folder, cancelled, watch))
    request.app.state.metrics.measured(what, watch.total, watch.stages)
    return result, folder


async def logged_acceptance(
    request: Request,
    what: str,
    parameters: Mapping[str, Any],
    workers: Workers,
    check: Callable[[], None],
    accept: Callable[[], Awaitable[T]],
) -> T:
    """A call that becomes a job: refused for the same reasons as the blocking form, and before its inputs are kept."""
    async with _logged(request, what, parameters, Stopwatch(), 202):
        await refuse_unknown_fields(request)
        check()
        request.app.state.jobs.require_room(workers)
        return await accept()


@asynccontextmanager
async def _logged(
    request: Request, what: str, parameters: Mapping[str, Any], watch: Stopwatch, answer: int
) -> AsyncIterator[None]:
    """Logs arrival and answer; sets the headers that have the same numbers."""
    log.info(f"{what} received", **{name: _short(value) for name, value in parameters.items()})
    status, kind = 500, "internal"
    try:
        yield
        status, kind = answer, "ok"
    except LipserveError as exc:
        status, kind = exc.status, exc.kind
        raise
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        status, kind = StorageFull.status, StorageFull.kind
        raise StorageFull("The disk is full.", "Free some space where lipserve keeps its files.") from exc
    finally:
        watch.stop()
        total, stages = round(watch.total, 3), watch.rounded()
        request.state.seconds_headers = {
            "x-seconds-total": f"{total:.3f}",
            "x-seconds-stages": ", ".join(f"{name}={seconds:.3f}" for name, seconds in stages.items()),
        }
        log.info(f"{what} answered", status=status, kind=kind, seconds=total, stages=stages)


class MainCall(APIRoute):
    """Where a call could in no case be taken, it is refused before its upload is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def refuse_or_handle(request: Request) -> Response:
            workers: Workers = getattr(request.app.state, WORKERS[request.scope["route"].name])
            try:
                request.app.state.jobs.require_room(workers)
            except QueueFull:
                if prefers_job(request):
                    raise
                workers.require_room()  # the form may still say which of the two it is to be
            return await handle(request)

        return refuse_or_handle


def log_refused_call(request: Request, fields: Mapping[str, str]) -> None:
    """The arrival of a main call whose form could not be read as parameters; its answer is logged with the error."""
    what = request.url.path.strip("/")
    if what in WORKERS:
        known = _field_names(request)
        log.info(f"{what} received", **{name: _short(value) for name, value in fields.items() if name in known})


def _short(value: Any) -> Any:
    return value[:200] if isinstance(value, str) else value


def _field_names(request: Request) -> set[str]:
    return {field.alias for field in request.scope["route"].dependant.body_params}


def prefers_job(request: Request) -> bool:
    """Whether it came with `Prefer: respond-async` (RFC 7240)."""
    return "respond-async" in [
        part.split(";")[0].strip().lower() for part in request.headers.get("prefer", "").split(",")
    ]


async def refuse_unknown_fields(request: Request) -> None:
    """A misspelt optional field would silently do nothing."""
    known = _field_names(request)
    unknown = sorted(set(await request.form()) - known)
    if unknown:
        raise InvalidParameter(f"There is no field {unknown[0][:100]!r}.", f"There are {', '.join(sorted(known))}.")


class ResultResponse(FileResponse):
    """A finished video; its folder is removed when it has been sent, or when nobody takes it any more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await remove(Path(self.path).parent)


async def remove(folder: Path) -> None:
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
