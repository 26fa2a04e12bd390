"""The endpoints of jobs: list, show, follow, fetch the result, cancel and remove; and how a main call becomes one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from gateway.answers import Responses, errors
from gateway.calls import logged_acceptance, prefers_job
from gateway.job_view import job_view
from gateway.jobs import Job, JobService
from gateway.work import Workers
from lipserve.api import JobList, JobState, JobView
from lipserve.errors import InvalidParameter, UrlNotAllowed

SECONDS_BETWEEN_HEARTBEATS = 15
SECONDS_TO_STOP = 5.0  # that a stream has to end by itself

router = APIRouter(tags=["jobs"])
JobId = Annotated[str, PathParameter(examples=["job_00065f0a1b2c3d4e5f60718293a4b5c6"])]
EVENTS: Responses = {
    200: {
        "content": {
            "text/event-stream": {"example": 'event: job\r\ndata: {"id": "job_…", "progress": 0.42, …}\r\n\r\n'}
        },
        "description": "Events `job`: JobView as JSON.",
    }
}
VIDEO: Responses = {
    code: {"content": {"video/mp4": {"example": "(H.264 and AAC)"}}, "description": what}
    for code, what in ((200, "The video."), (206, "The parts of it that Range asks for."))
}


def result_path(job_id: JobId) -> str:
    return f"/jobs/{job_id}/result"


def result_url(request: Request, job: Job) -> str | None:
    """A signed link to the job's video; None if it has none."""
    jobs: JobService = request.app.state.jobs
    if not jobs.has_result(job):
        return None
    url: str = request.app.state.links.result_url(request, result_path(job.id))
    return url


def owner_of(request: Request) -> str:
    """Whose key the request came with; "" where none is asked for."""
    return str(getattr(request.state, "owner", ""))


@router.get("/jobs", responses=errors(422))
def list_jobs(
    request: Request,
    state: JobState | None = None,
    kind: Annotated[str | None, Query(max_length=64, examples=["lip_sync"])] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[str | None, Query(max_length=64, description="`next` of the page before.")] = None,
) -> JobList:
    """Your jobs, newest first."""
    jobs: JobService = request.app.state.jobs
    kinds = None if kind is None else [kind]
    page = jobs.list(owner_of(request), kinds=kinds, state=state, limit=limit + 1, before=before)
    shown = page[:limit]
    return JobList(jobs=[_view(request, job) for job in shown], next=shown[-1].id if len(page) > limit else None)


@router.get("/jobs/{job_id}", responses=errors(404))
def show_job(request: Request, job_id: JobId) -> JobView:
    """One job."""
    jobs: JobService = request.app.state.jobs
    return _view(request, jobs.get(job_id, owner_of(request)))


@router.delete(
    "/jobs/{job_id}",
    responses={**errors(404, 409), 202: {"model": JobView, "description": "It is cancelled."}},
    status_code=204,
    response_model=None,
)
def delete_job(request: Request, job_id: JobId) -> Response:
    """Cancel a job that is queued or processing: 202, and it stays in the list. Remove one that has ended, with its
    files: 204."""
    jobs: JobService = request.app.state.jobs
    owner = owner_of(request)
    if jobs.get(job_id, owner).ended:
        jobs.delete(job_id, owner)
        return Response(status_code=204)
    return JSONResponse(_view(request, jobs.cancel(job_id, owner)).model_dump(mode="json"), 202)


@router.get(
    "/jobs/{job_id}/events",
    responses={**errors(404), **EVENTS},
    response_class=EventSourceResponse,
)
async def follow_job(request: Request, job_id: JobId) -> EventSourceResponse:
    """The job now and after every change, as server-sent events; ends when the job has ended."""
    jobs: JobService = request.app.state.jobs
    await anyio.to_thread.run_sync(jobs.get, job_id, owner_of(request))

    stopping = anyio.Event()

    async def let_go() -> None:
        await stopping.wait()
        jobs.let_followers_go()

    async def events() -> AsyncIterator[ServerSentEvent]:
        waiting = asyncio.create_task(let_go())
        try:
            async for job in jobs.follow(job_id):
                view = await anyio.to_thread.run_sync(_view, request, job)
                yield ServerSentEvent(view.model_dump_json(), event="job")
        finally:
            waiting.cancel()

    return EventSourceResponse(
        events(), ping=SECONDS_BETWEEN_HEARTBEATS, shutdown_event=stopping, shutdown_grace_period=SECONDS_TO_STOP
    )


@router.get(
    "/jobs/{job_id}/result",
    responses={**errors(400, 403, 404, 409, 416), **VIDEO},
    response_class=FileResponse,
)
def job_result(request: Request, job_id: JobId) -> FileResponse:
    """The video of a job that is done: with the key that made it, or by the signed link that the job shows."""
    jobs: JobService = request.app.state.jobs
    owner = None if request.state.signed_path else owner_of(request)
    job = jobs.get(job_id, owner)
    return JobFile(jobs, job, jobs.result_file(job.id), "video/mp4")


# What players ask first. Not described: FastAPI gives both methods one operation id.
router.add_api_route("/jobs/{job_id}/result", job_result, methods=["HEAD"], include_in_schema=False)


class JobFile(FileResponse):
    """A file of a job's folder, ranges included. Retention leaves it while it is sent."""

    def __init__(self, jobs: JobService, job: Job, file: Path, media_type: str) -> None:
        super().__init__(
            file,
            headers={"cache-control": "private"},  # a key that comes as X-API-Key says nothing to shared caches
            media_type=media_type,
            filename=f"{job.id}{file.suffix}",
        )
        self._jobs, self._job_id = jobs, job.id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._jobs.holding(self._job_id):
            await super().__call__(scope, receive, send)


async def accept_job(
    request: Request,
    kind: str,
    logged: dict[str, Any],
    workers: Workers,
    check: Callable[[], None],
    parameters: dict[str, Any],
    fill: Callable[[Path], object],
    webhook: str | None,
) -> JSONResponse:
    """202: the job, and where it is. Refused for the same reasons as the blocking form would be."""
    jobs: JobService = request.app.state.jobs

    def check_all() -> None:
        check()
        check_webhook(request, webhook)

    def submit() -> Job:
        return jobs.submit(kind, parameters, owner_of(request), fill=fill, webhook=webhook)

    accept = partial(anyio.to_thread.run_sync, submit)
    job = await logged_acceptance(request, kind, logged, workers, check_all, accept)
    headers = {"location": f"/jobs/{job.id}"}
    if prefers_job(request):
        headers["preference-applied"] = "respond-async"
    return JSONResponse(_view(request, job).model_dump(mode="json"), 202, headers)


def check_webhook(request: Request, url: str | None) -> None:
    """Raises UrlNotAllowed."""
    if url is None:
        return
    if request.app.state.webhooks is None:
        raise UrlNotAllowed("This server calls no webhooks.", "Ask for the job at /jobs/{id}, or follow its events.")
    request.app.state.webhooks.poster.check(url)


def require_no_webhook(url: str | None) -> None:
    """For calls that are answered when they are done."""
    if url is not None:
        raise InvalidParameter("webhook is for jobs.", "Give async=true with it.")


def _view(request: Request, job: Job) -> JobView:
    return job_view(job, result_url(request, job))
