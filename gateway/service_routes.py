"""The endpoints that self-hosted MuseTalk services have: a form in, an id to poll. The same talks as gateway.did's."""

from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile

from avatar_prep.source import is_picture
from gateway.answers import SENT, errors
from gateway.calls import refuse_unknown_fields
from gateway.did_routes import OrderRoute, TalkId, find
from gateway.job_routes import owner_of, result_url
from gateway.jobs import Job
from gateway.talks import TalkOrder, Talks
from gateway.uploads import Upload, Uploads, What
from lipserve.api import JobState
from lipserve.errors import InvalidParameter
from lipserve.talk_api import ServiceStatus, Submitted, TalkStatus, Uploaded

MAX_URL = 2048
AUDIO, FACE = "https://example.com/hello.mp3", "https://example.com/anna.jpg"  # examples

orders = APIRouter(tags=["MuseTalk services"], route_class=OrderRoute)
router = APIRouter(tags=["MuseTalk services"])

UPLOADED = errors(*SENT)
STATUSES: dict[JobState, ServiceStatus] = {
    "queued": "queued",
    "processing": "processing",
    "done": "done",
    "failed": "error",
    "cancelled": "error",
}


@orders.post("/generate-video", responses=errors(*SENT, 404, 409), dependencies=[Depends(refuse_unknown_fields)])
def generate_video(
    request: Request,
    audio_url: Annotated[
        str | None, Form(max_length=MAX_URL, description="http(s), or what /upload-audio gave.", examples=[AUDIO])
    ] = None,
    source_url: Annotated[
        str | None, Form(max_length=MAX_URL, description="http(s), or what /upload-source-image gave.", examples=[FACE])
    ] = None,
    audio_data: Annotated[UploadFile | None, File(description="The sound itself. It wins over audio_url.")] = None,
    source_image: Annotated[
        UploadFile | None, File(description="The picture or clip itself. It wins over source_url.")
    ] = None,
) -> Submitted:
    """Order a talk. It is made when its turn comes: ask /talk-status/{id}."""
    talks: Talks = request.app.state.talks
    audio_file, source_file = _sent(audio_data), _sent(source_image)
    _require("audio_url", audio_url, "audio_data", audio_file)
    _require("source_url", source_url, "source_image", source_file)
    uploads: Uploads = request.app.state.uploads
    with ExitStack() as stack:  # the job has its own links to what is kept here; nobody else knows its ids
        if source_file is not None:
            kept = _keep_source(request, source_file)
            stack.callback(uploads.remove, kept)
            source_url = kept.url
        if audio_file is not None:
            kept = _keep(request, "audio", audio_file)
            stack.callback(uploads.remove, kept)
            audio_url = kept.url
        job = talks.submit(TalkOrder(source_url=source_url or "", audio_url=audio_url), owner_of(request), None)
    return Submitted(id=job.id, status=STATUSES[job.state], created_at=job.created_at)


@router.get("/talk-status/{talk_id}", responses=errors(404))
def talk_status(request: Request, talk_id: TalkId) -> TalkStatus:
    """How far a talk is, and where its video is once it is done."""
    job = find(request, talk_id)
    return status(job, result_url(request, job))


@router.post("/upload-source-image", responses=UPLOADED)
def upload_source_image(request: Request, file: UploadFile) -> Uploaded:
    """Keep a picture (JPEG, PNG, WebP) or a clip (MP4, MOV, WebM) for talks."""
    return _answer(_keep_source(request, file))


@router.post("/upload-audio", responses=UPLOADED)
def upload_audio_file(request: Request, file: UploadFile) -> Uploaded:
    """Keep a sound for talks: WAV, MP3, M4A, OGG, FLAC, AAC or WebM."""
    return _answer(_keep(request, "audio", file))


def status(job: Job, url: str | None) -> TalkStatus:
    error = job.error or {}
    if job.state == "cancelled":
        error = {"kind": "cancelled", "message": "The talk was cancelled."}
    return TalkStatus(
        id=job.id,
        status=STATUSES[job.state],
        result_url=url,
        created_at=job.created_at,
        progress=job.progress,
        started_at=job.started_at,
        completed_at=job.completed_at,
        error=error.get("message"),
        error_kind=error.get("kind"),
    )


def _sent(file: UploadFile | None) -> UploadFile | None:
    """None also for what browsers send for a file field that was left empty; not every FastAPI does so itself."""
    return None if file is None or not (file.filename or file.size) else file


def _require(url_name: str, url: str | None, file_name: str, file: UploadFile | None) -> None:
    if not url and file is None:
        raise InvalidParameter(f"{url_name} and {file_name} are both missing.", f"Send {url_name}, or {file_name}.")


def _keep_source(request: Request, file: UploadFile) -> Upload:
    """A picture or a clip, as its first bytes say."""
    start = file.file.read(12)
    file.file.seek(0)
    return _keep(request, "image" if is_picture(start) else "video", file)


def _keep(request: Request, what: What, file: UploadFile) -> Upload:
    uploads: Uploads = request.app.state.uploads
    return uploads.keep(what, file.file, file.filename or "", owner_of(request))


def _answer(upload: Upload) -> Uploaded:
    return Uploaded(id=upload.id, url=upload.url, filename=upload.name, size=upload.size)
