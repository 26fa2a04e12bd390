"""The endpoints: what they take and what they answer. How a main call is run stands in gateway.calls."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute

from avatar_prep.masks import ParsingMode
from avatar_prep.prepare import checked_parameters
from gateway.answers import SENT, Responses, errors
from gateway.calls import MainCall, ResultResponse, logged_job, prefers_job, remove
from gateway.engine import DEFAULT_BATCH_SIZE, Engine
from gateway.inputs import display_name, take_input
from gateway.job_handlers import sync_request
from gateway.job_routes import accept_job, require_no_webhook
from gateway.timing import Stopwatch
from lipserve.api import AVATAR_INFO, AvatarList, AvatarSummary, JobView
from lipserve.avatar import AvatarInfo
from lipserve.errors import AvatarDamaged, AvatarNotFound

TAG = "avatars and lip-sync"

main_calls = APIRouter(tags=[TAG], route_class=MainCall)
router = APIRouter(tags=[TAG])
log = structlog.stdlib.get_logger("gateway")


AS_JOB: Responses = {202: {"model": JobView, "description": "With `async`: the job, followed at its Location."}}
PREPARED: Responses = {
    201: {"content": {"application/json": {"example": AVATAR_INFO}}, "description": "The avatar is stored."}
}
MP4: Responses = {200: {"content": {"video/mp4": {"example": "(H.264 and AAC)"}}, "description": "The finished video."}}
JPEG: Responses = {200: {"content": {"image/jpeg": {"example": "(a picture)"}}, "description": "A picture."}}
AvatarId = Annotated[str, PathParameter(examples=["lucy"])]
AsJob = Annotated[
    bool,
    Form(
        alias="async",
        examples=[False],
        description="Answer 202 with a job at once. `Prefer: respond-async` does the same.",
    ),
]
Webhook = Annotated[
    str | None, Form(max_length=2000, description="With `async`: where the job is posted to when it has ended.")
]


@main_calls.post(
    "/prepare_avatar",
    responses={**errors(*SENT, 409, 499, 502), **AS_JOB, **PREPARED},
    status_code=201,
    response_model=AvatarInfo,
)
async def prepare_avatar(
    request: Request,
    response: Response,
    avatar_id: Annotated[str, Form(description="1 to 64 letters, digits, '-' and '_'.", examples=["lucy"])],
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
    as_job: AsJob = False,
    webhook: Webhook = None,
) -> AvatarInfo | Response:
    """Prepare an avatar, once. Answers when it is stored, or with a job."""
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
    if as_job or prefers_job(request):
        fill = partial(take_input, "video", video, video_path, request.app.state.settings.media_dir)
        parameters = {**logged, "video_path": video_path}
        return await accept_job(request, "prepare_avatar", logged, workers, check, parameters, fill, webhook)
    require_no_webhook(webhook)
    info, folder = await logged_job(request, "prepare_avatar", logged, workers, check, job)
    await remove(folder)
    response.headers.update(request.state.seconds_headers)
    return info


@main_calls.post(
    "/lip_sync",
    responses={**errors(*SENT, 404, 409, 499, 502), **AS_JOB, **MP4},
    response_class=FileResponse,
)
async def lip_sync(
    request: Request,
    avatar_id: Annotated[str, Form(description="Of a prepared avatar.", examples=["lucy"])],
    audio: Annotated[UploadFile | None, "Speech: WAV, MP3, M4A, OGG, FLAC, AAC, WebM, or a video with sound."] = None,
    audio_path: Annotated[str | None, Form(description="Instead of an upload: a file in the media folder.")] = None,
    fps: Annotated[int | None, Form(description="LIPSERVE_OUTPUT_FPS, or the avatar's own, if not given.")] = None,
    batch_size: Annotated[int, Form()] = DEFAULT_BATCH_SIZE,
    audio_padding_length_left: Annotated[int, Form()] = 2,
    audio_padding_length_right: Annotated[int, Form()] = 2,
    as_job: AsJob = False,
    webhook: Webhook = None,
) -> Response:
    """Make a prepared avatar say it. Answers the finished mp4 (H.264, AAC, index in front), or a job."""
    engine: Engine = request.app.state.engine
    logged = {
        "avatar_id": avatar_id,
        "audio": display_name(audio, audio_path),
        "fps": fps,
        "batch_size": batch_size,
        "audio_padding_length_left": audio_padding_length_left,
        "audio_padding_length_right": audio_padding_length_right,
    }

    def check() -> None:
        sync_request(logged)
        engine.store.version(avatar_id)

    def job(folder: Path, cancelled: Event, watch: Stopwatch) -> Path:
        source = take_input("audio", audio, audio_path, request.app.state.settings.media_dir, folder)
        output = folder / "result.mp4"
        engine.lip_sync(sync_request(logged), source, output, cancelled=cancelled, watch=watch)
        return output

    workers = request.app.state.syncs
    if as_job or prefers_job(request):
        fill = partial(take_input, "audio", audio, audio_path, request.app.state.settings.media_dir)
        parameters = {**logged, "audio_path": audio_path}
        return await accept_job(request, "lip_sync", logged, workers, check, parameters, fill, webhook)
    require_no_webhook(webhook)
    output, _ = await logged_job(request, "lip_sync", logged, workers, check, job)
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


@router.get("/avatars", responses=errors())
def list_avatars(request: Request) -> AvatarList:
    """All avatars, as their avatar.json describes them; their other files are looked at when one is asked for."""
    store = request.app.state.engine.store
    summaries = []
    for avatar_id in store.list():
        with suppress(AvatarNotFound):  # deleted meanwhile
            summaries.append(_summary(avatar_id, store.info))
    return AvatarList(avatars=summaries)


@router.get("/avatars/{avatar_id}", responses=errors(404, 422))
def show_avatar(request: Request, avatar_id: AvatarId) -> AvatarSummary:
    """One avatar, every file checked."""
    store = request.app.state.engine.store
    return _summary(avatar_id, lambda name: store.open(name).info)


@router.get("/avatars/{avatar_id}/preview", response_class=Response, responses={**errors(404, 409, 422), **JPEG})
def show_preview(request: Request, avatar_id: AvatarId) -> Response:
    """A JPEG of the avatar."""
    engine: Engine = request.app.state.engine
    engine.store.version(avatar_id)
    try:
        data = (engine.store.folder(avatar_id) / "preview.jpg").read_bytes()
    except OSError as exc:
        raise AvatarDamaged(f"The avatar {avatar_id!r} has no preview.", "Prepare it again with force=true.") from exc
    return Response(data, media_type="image/jpeg")


@router.delete("/avatars/{avatar_id}", responses=errors(404, 409, 422), status_code=204)
def delete_avatar(request: Request, avatar_id: AvatarId) -> None:
    """Delete an avatar. Calls under way keep it until they are done."""
    engine: Engine = request.app.state.engine
    engine.store.delete(avatar_id)
    engine.avatars.forget(avatar_id)
    log.info("avatar deleted", avatar_id=avatar_id)


def endpoint_names(*routers: APIRouter) -> set[str]:
    """Of all their endpoints."""
    return {route.name for router in routers for route in router.routes if isinstance(route, APIRoute)}
