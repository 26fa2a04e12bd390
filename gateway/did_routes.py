"""The D-ID compatible endpoints: paths and statuses. What they mean stands in gateway.did; the work, gateway.talks."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request, Response, UploadFile
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute

from gateway import did
from gateway.answers import Responses, did_errors
from gateway.job_routes import JobFile, owner_of, result_url
from gateway.jobs import Job, JobService
from gateway.talks import KIND, SPEECH, Talks
from gateway.uploads import Uploads
from lipserve.errors import InvalidParameter, JobNotDone, JobNotFound, LipserveError
from lipserve.media import SoundReader, media_type
from lipserve.talk_api import Created, Talk, TalkList, UploadedAudio, UploadedImage


class OrderRoute(APIRoute):
    """Where no talk could be taken, it is refused before its body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def refuse_or_handle(request: Request) -> Response:
            request.app.state.talks.require_room()
            self.check(request)
            return await handle(request)

        return refuse_or_handle

    def check(self, request: Request) -> None:
        """What can be said of a request before its body is read."""


class JsonOrderRoute(OrderRoute):
    def check(self, request: Request) -> None:
        """A form may be large since it goes to the disk; here it would be read into memory, and then refused."""
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            raise InvalidParameter("A talk is ordered as JSON.", "Send it as application/json.")


orders = APIRouter(tags=["D-ID compatible"], route_class=JsonOrderRoute)
router = APIRouter(tags=["D-ID compatible"])
log = structlog.stdlib.get_logger("gateway")

TalkId = Annotated[str, PathParameter(examples=["tlk_00064412b5c5a1d2e3f405162738495a"])]
UPLOADED = did_errors(408, 413, 507)
SOUND: Responses = {
    code: {"content": {"audio/wav": {"example": "(16 bits)"}}, "description": what}
    for code, what in ((200, "The speech."), (206, "The parts of it that Range asks for."))
}


@orders.post("/talks", responses=did_errors(404, 408, 409, 413, 507), status_code=201)
def create_talk(request: Request, talk: did.CreateTalk) -> Created:
    """Order a talk. It is made when its turn comes: ask GET /talks/{id}, or give a webhook."""
    talks: Talks = request.app.state.talks
    return did.created(talks.submit(talk.order(), owner_of(request), talk.webhook))


@router.get("/talks/{talk_id}", responses=did_errors(404), response_model_exclude_none=True)
def show_talk(request: Request, talk_id: TalkId) -> Talk:
    """One talk: its status, and its result_url once that is `done`."""
    return _shown(request, find(request, talk_id))


@router.get("/talks/{talk_id}/audio", responses={**did_errors(403, 404, 416), **SOUND}, response_class=FileResponse)
def talk_audio(request: Request, talk_id: TalkId) -> FileResponse:
    """What a talk's text became: with the key that ordered it, or by the signed link that the talk shows."""
    jobs: JobService = request.app.state.jobs
    job = jobs.get(talk_id, None if request.state.signed_path else owner_of(request))
    if not has_speech(jobs, job):
        raise JobNotFound("There is no speech of this talk.", "Only a text has one, once it is spoken.")
    speech = _speech(jobs, job)
    return JobFile(jobs, job, speech, media_type(speech, "audio"))


# What players ask first. Not described: FastAPI gives both methods one operation id.
router.add_api_route("/talks/{talk_id}/audio", talk_audio, methods=["HEAD"], include_in_schema=False)


def speech_url(request: Request, job: Job) -> str | None:
    """A signed link to what the talk's text became; None if it has none, or none yet."""
    if not has_speech(request.app.state.jobs, job):
        return None
    url: str = request.app.state.links.result_url(request, speech_path(job))
    return url


def speech_path(job: Job) -> str:
    return f"/talks/{job.id}/audio"


def has_speech(jobs: JobService, job: Job) -> bool:
    """Whether it has a text that was spoken."""
    return _speech(jobs, job).is_file()


def _speech(jobs: JobService, job: Job) -> Path:
    return jobs.folders.folder(job.id) / SPEECH


@router.get("/talks", responses=did_errors(), response_model_exclude_none=True)
def list_talks(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=did.MAX_LIMIT)] = did.DEFAULT_LIMIT,
    token: Annotated[str | None, Query(max_length=64, description="As the page before gave it.")] = None,
) -> TalkList:
    """Talks, the newest first."""
    jobs: JobService = request.app.state.jobs
    found = jobs.list(owner_of(request), kinds=(KIND,), limit=limit + 1, before=token or None)
    shown = [_shown(request, job) for job in found[:limit]]
    return TalkList(talks=shown, token=shown[-1].id if len(found) > limit else None)


@router.delete("/talks/{talk_id}", responses=did_errors(404, 409), response_model_exclude_none=True)
def delete_talk(request: Request, talk_id: TalkId) -> Talk:
    """Delete a talk and its video; answers what it was. One that is being made is 409."""
    jobs: JobService = request.app.state.jobs
    job = jobs.cancel(find(request, talk_id).id, owner_of(request), begun=False)
    if not job.ended:
        raise JobNotDone("The talk is being made.", "Wait until it is done, or cancel it: DELETE /jobs/{id}.")
    jobs.delete(job.id, job.owner)
    log.info("talk deleted", job_id=job.id)
    return did.talk(job, None)


@router.post("/images", responses=UPLOADED, status_code=201)
def upload_image(request: Request, image: UploadFile) -> UploadedImage:
    """Keep a picture for talks: JPEG, PNG or WebP."""
    kept = _uploads(request).keep("image", image.file, image.filename or "", owner_of(request))
    return UploadedImage(id=kept.id, url=kept.url)


@router.post("/audios", responses=UPLOADED, status_code=201)
def upload_audio(request: Request, audio: UploadFile) -> UploadedAudio:
    """Keep a sound for talks: WAV, MP3, M4A, OGG, FLAC, AAC or WebM."""
    uploads, owner = _uploads(request), owner_of(request)
    kept = uploads.keep("audio", audio.file, audio.filename or "", owner)
    try:
        duration = _seconds(uploads.open(kept.id, owner), request.app.state.settings.max_audio_seconds)
    except LipserveError:
        uploads.remove(kept)
        raise
    return UploadedAudio(id=kept.id, url=kept.url, duration=round(duration, 3))


def find(request: Request, talk_id: str) -> Job:
    """The caller's talk of this id, whichever API ordered it. Raises JobNotFound."""
    jobs: JobService = request.app.state.jobs
    job = jobs.get(talk_id, owner_of(request))
    if job.kind != KIND:
        raise JobNotFound("There is no such talk.", "GET /jobs has the other jobs.")
    return job


def _seconds(file: Path, most: float) -> float:
    """Of a sound, decoded: what a file says of itself may be wrong. Raises NotAudio, AudioDamaged or AudioTooLong."""
    with SoundReader(file, most) as reader:
        samples: int = sum(block.shape[1] for block in reader)
        return samples / reader.rate


def _shown(request: Request, job: Job) -> Talk:
    return did.talk(job, result_url(request, job), speech_url(request, job))


def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads
