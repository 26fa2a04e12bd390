"""The endpoints: what they take and what they answer. How a main call is run stands in gateway.calls."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel

from avatar_prep.masks import ParsingMode
from avatar_prep.prepare import checked_parameters
from gateway.calls import ResultResponse, logged_job, remove
from gateway.engine import DEFAULT_BATCH_SIZE, Engine, SyncRequest
from gateway.features import Padding
from gateway.inputs import display_name, take_input
from gateway.metrics import CONTENT_TYPE
from gateway.timing import Stopwatch
from lipserve.avatar import AvatarInfo
from lipserve.errors import AvatarDamaged, AvatarNotFound

router = APIRouter()
log = structlog.stdlib.get_logger("gateway")


class ErrorBody(BaseModel):
    """Every error's answer."""

    kind: str
    message: str
    hint: str
    request_id: str


class AvatarSummary(BaseModel):
    avatar_id: str
    state: Literal["ready", "damaged"]
    info: AvatarInfo | None
    preview_url: str


class AvatarList(BaseModel):
    avatars: list[AvatarSummary]


class Health(BaseModel):
    status: Literal["live", "ready", "not_ready"]
    message: str = ""


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (404, 409, 413, 422, 500, 502, 503, 507)
}


@router.post("/prepare_avatar", responses=ERRORS, status_code=201)
async def prepare_avatar(
    request: Request,
    response: Response,
    avatar_id: Annotated[str, Form(description="1 to 64 letters, digits, '-' and '_'.")],
    video: Annotated[UploadFile | None, "A video, or a still picture."] = None,
    video_path: Annotated[
        str | None,
        Form(description="Instead of an upload: a video, picture or folder of pictures in the media folder."),
    ] = None,
    version: Annotated[Literal["v1", "v15"], Form()] = "v15",
    bbox_shift: Annotated[int, Form(description="v1 only.")] = 0,
    extra_margin: Annotated[int, Form(description="v15 only.")] = 10,
    parsing_mode: Annotated[ParsingMode, Form(description="v15 only; v1 is always raw.")] = "jaw",
    left_cheek_width: Annotated[int, Form()] = 90,
    right_cheek_width: Annotated[int, Form()] = 90,
    batch_size: Annotated[int, Form()] = DEFAULT_BATCH_SIZE,
    fps: Annotated[int, Form()] = 25,
    force: Annotated[bool, Form(description="Replace an avatar that exists.")] = False,
) -> AvatarInfo:
    """Prepare an avatar, once. Answers when it is stored."""
    engine: Engine = request.app.state.engine
    given = {
        "version": version,
        "bbox_shift": bbox_shift,
        "extra_margin": extra_margin,
        "parsing_mode": parsing_mode,
        "left_cheek_width": left_cheek_width,
        "right_cheek_width": right_cheek_width,
        "batch_size": batch_size,
        "fps": fps,
    }
    name = display_name(video, video_path)

    def check() -> None:
        checked_parameters(given)
        engine.store.require_free(avatar_id, force)

    def job(folder: Path, cancelled: Event, watch: Stopwatch) -> AvatarInfo:
        parameters = checked_parameters(given)
        source = take_input("video", video, video_path, request.app.state.settings.media_dir, folder)
        return engine.prepare(source, avatar_id, parameters, force, cancelled=cancelled, source_name=name, watch=watch)

    logged = {"avatar_id": avatar_id, "video": name, **given, "force": force}
    workers = request.app.state.preparations
    info, folder = await logged_job(request, "prepare_avatar", logged, workers, check, job)
    await remove(folder)
    response.headers.update(request.state.seconds_headers)
    return info


@router.post(
    "/lip_sync",
    responses={**ERRORS, 200: {"content": {"video/mp4": {}}, "description": "The finished video."}},
    response_class=FileResponse,
)
async def lip_sync(
    request: Request,
    avatar_id: Annotated[str, Form()],
    audio: Annotated[UploadFile | None, "Speech: WAV, MP3, M4A, OGG, FLAC, or a video with sound."] = None,
    audio_path: Annotated[str | None, Form(description="Instead of an upload: a file in the media folder.")] = None,
    fps: Annotated[int | None, Form(description="The avatar's own if not given.")] = None,
    batch_size: Annotated[int, Form()] = DEFAULT_BATCH_SIZE,
    audio_padding_length_left: Annotated[int, Form()] = 2,
    audio_padding_length_right: Annotated[int, Form()] = 2,
) -> FileResponse:
    """Make a prepared avatar say it. Answers the finished mp4: H.264, AAC, index in front."""
    engine: Engine = request.app.state.engine

    def sync_request() -> SyncRequest:
        padding = Padding(audio_padding_length_left, audio_padding_length_right)
        return SyncRequest(avatar_id, fps, batch_size, padding)

    def check() -> None:
        sync_request()
        engine.store.version(avatar_id)

    def job(folder: Path, cancelled: Event, watch: Stopwatch) -> Path:
        source = take_input("audio", audio, audio_path, request.app.state.settings.media_dir, folder)
        output = folder / "result.mp4"
        engine.lip_sync(sync_request(), source, output, cancelled=cancelled, watch=watch)
        return output

    logged = {
        "avatar_id": avatar_id,
        "audio": display_name(audio, audio_path),
        "fps": fps,
        "batch_size": batch_size,
        "audio_padding_length_left": audio_padding_length_left,
        "audio_padding_length_right": audio_padding_length_right,
    }
    output, _ = await logged_job(request, "lip_sync", logged, request.app.state.syncs, check, job)
    headers = request.state.seconds_headers
    return ResultResponse(output, media_type="video/mp4", filename=f"{avatar_id}.mp4", headers=headers)


def _summary(avatar_id: str, look: Callable[[str], AvatarInfo]) -> AvatarSummary:
    """Raises AvatarNotFound."""
    try:
        info = look(avatar_id)
    except AvatarDamaged:
        info = None
    return AvatarSummary(
        avatar_id=avatar_id,
        state="ready" if info else "damaged",
        info=info,
        preview_url=f"/avatars/{avatar_id}/preview",
    )


@router.get("/avatars", responses=ERRORS)
def list_avatars(request: Request) -> AvatarList:
    """All avatars, as their avatar.json describes them; their other files are looked at when one is asked for."""
    store = request.app.state.engine.store
    summaries = []
    for avatar_id in store.list():
        with suppress(AvatarNotFound):  # deleted meanwhile
            summaries.append(_summary(avatar_id, store.info))
    return AvatarList(avatars=summaries)


@router.get("/avatars/{avatar_id}", responses=ERRORS)
def show_avatar(request: Request, avatar_id: str) -> AvatarSummary:
    """One avatar, every file checked."""
    store = request.app.state.engine.store
    return _summary(avatar_id, lambda name: store.open(name).info)


@router.get("/avatars/{avatar_id}/preview", responses={**ERRORS, 200: {"content": {"image/jpeg": {}}}})
def show_preview(request: Request, avatar_id: str) -> Response:
    """A JPEG of the avatar."""
    engine: Engine = request.app.state.engine
    engine.store.version(avatar_id)
    try:
        data = (engine.store.folder(avatar_id) / "preview.jpg").read_bytes()
    except OSError as exc:
        raise AvatarDamaged(f"The avatar {avatar_id!r} has no preview.", "Prepare it again with force=true.") from exc
    return Response(data, media_type="image/jpeg")


@router.delete("/avatars/{avatar_id}", responses=ERRORS, status_code=204)
def delete_avatar(request: Request, avatar_id: str) -> None:
    engine: Engine = request.app.state.engine
    engine.store.delete(avatar_id)
    engine.avatars.forget(avatar_id)
    log.info("avatar deleted", avatar_id=avatar_id)


@router.get("/health/live")
def live() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get("/health/ready", responses={503: {"model": Health}})
def ready(request: Request) -> Response:
    """Every model is warm, and Triton is there now."""
    engine: Engine = request.app.state.engine
    if not request.app.state.warm:
        health = Health(status="not_ready", message="The models are being warmed up.")
    elif not engine.triton.is_ready():
        health = Health(status="not_ready", message=f"Triton at {engine.triton.url} does not answer.")
    else:
        health = Health(status="ready")
    return JSONResponse(health.model_dump(), 200 if health.status == "ready" else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """Counts and durations for Prometheus."""
    return Response(request.app.state.metrics.exposition(), headers={"content-type": CONTENT_TYPE})


def endpoint_names() -> set[str]:
    """Of all endpoints above."""
    return {route.name for route in router.routes if isinstance(route, APIRoute)}
