"""Talks, as both talk APIs answer them: D-ID's, and that of self-hosted MuseTalk services."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from lipserve.api import shown

DidStatus = Literal["created", "started", "done", "error", "rejected"]
ServiceStatus = Literal["queued", "processing", "done", "error"]

_ID = "tlk_00064412b5c5a1d2e3f405162738495a"
_RESULT_URL = f"http://127.0.0.1:8080/jobs/{_ID}/result"
_CREATED = {
    "id": _ID,
    "object": "talk",
    "created_at": "2026-01-31T12:00:00.000Z",
    "created_by": "alice",
    "status": "created",
}
_METADATA = {"num_frames": 75, "num_faces": 1, "processing_fps": 31.4, "resolution": [512, 512], "size_kib": 210.5}
_TALK = {
    **_CREATED,
    "status": "done",
    "user_id": "alice",
    "source_url": "lipserve://avatars/lucy",
    "result_url": _RESULT_URL,
    "started_at": "2026-01-31T12:00:00.100Z",
    "modified_at": "2026-01-31T12:00:04.500Z",
    "duration": 3.0,
    "metadata": _METADATA,
    "name": "greeting",
}
_IMAGE_ID = "img_8d0f4b1e2a3c4d5e6f708192a3b4c5d6"
_AUDIO_ID = "aud_51c2d3e4f5061728394a5b6c7d8e9f00"
_SUBMITTED = {"id": _ID, "status": "queued", "result_url": None, "created_at": "2026-01-31T12:00:00.000000Z"}

# -- D-ID's -----------------------------------------------------------------------------------------------------------


class Problem(BaseModel):
    """What is wrong with one part of a request."""

    message: str


class DidError(BaseModel):
    """Every error's answer below /talks, /images and /audios."""

    model_config = shown(
        {
            "kind": "NotFoundError",
            "description": "There is no such job. GET /jobs lists them.",
            "details": {"kind": "job_not_found", "request_id": "d0c5"},
        },
        {
            "kind": "ValidationError",
            "description": "validation failed",
            "details": {
                "kind": "invalid_parameter",
                "request_id": "d0c5",
                "body.script": {"message": "Field required"},
            },
        },
    )

    kind: str
    description: str
    details: dict[str, str | Problem] = Field(
        description="Our own kind, and the request_id; of a ValidationError also what is wrong, by where it is."
    )

    @property
    def our_kind(self) -> str:
        """Theirs, if there is none of ours."""
        found = self.details.get("kind")
        return found if isinstance(found, str) else self.kind

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong, by where it is."""
        return {where: told.message for where, told in self.details.items() if isinstance(told, Problem)}


class Created(BaseModel):
    model_config = shown(_CREATED)

    id: str
    object: Literal["talk"] = "talk"
    created_at: str
    created_by: str = Field(description="The name of the key; empty where none is asked for.")
    status: DidStatus


class Metadata(BaseModel):
    num_frames: int
    num_faces: int
    processing_fps: float = Field(description="Frames rendered a second.")
    resolution: tuple[int, int] = Field(description="Width, height.")
    size_kib: float


class Talk(Created):
    """What is not known yet is left out."""

    model_config = shown(_TALK)

    user_id: str
    source_url: str
    audio_url: str | None = Field(
        None, description="Of an audio script; of a text's speech, once it is spoken: signed, as result_url is."
    )
    result_url: str | None = Field(None, description="The mp4: signed, and good for a limited time.")
    started_at: str | None = None
    modified_at: str
    duration: float | None = Field(None, description="Seconds.")
    metadata: Metadata | None = None
    user_data: str | None = None
    name: str | None = None
    config: dict[str, Any] | None = Field(None, description="As it was read.")
    webhook: str | None = None
    ignored: list[str] | None = Field(
        None, description="Fields of the order that made no difference, such as script.provider.voice_config."
    )
    error: DidError | None = None


class TalkList(BaseModel):
    model_config = shown({"talks": [_TALK], "token": _ID})

    talks: list[Talk]
    token: str | None = Field(None, description="Of the next page; none after the last.")


class UploadedImage(BaseModel):
    model_config = shown({"id": _IMAGE_ID, "url": f"lipserve://images/{_IMAGE_ID}"})

    id: str
    url: str = Field(description="To be given as source_url.")


class UploadedAudio(BaseModel):
    model_config = shown({"id": _AUDIO_ID, "url": f"lipserve://audios/{_AUDIO_ID}", "duration": 3.25})

    id: str
    url: str = Field(description="To be given as audio_url.")
    duration: float = Field(description="Seconds.")


# -- of self-hosted MuseTalk services ---------------------------------------------------------------------------------


class Submitted(BaseModel):
    model_config = shown(_SUBMITTED)

    id: str
    status: ServiceStatus
    result_url: str | None = Field(None, description="Comes with /talk-status, when it is done.")
    created_at: datetime


class TalkStatus(Submitted):
    model_config = shown(
        {
            **_SUBMITTED,
            "status": "error",
            "progress": 0.42,
            "started_at": "2026-01-31T12:00:00.100000Z",
            "completed_at": "2026-01-31T12:00:01.200000Z",
            "error": "No face was found in any of the 1 frames.",
            "error_kind": "no_face",
        }
    )

    progress: float = Field(description="0 to 1.")
    started_at: datetime | None = None
    completed_at: datetime | None = None
    error: str | None = None
    error_kind: str | None = None


class Uploaded(BaseModel):
    model_config = shown(
        {"id": _IMAGE_ID, "url": f"lipserve://images/{_IMAGE_ID}", "filename": "anna.jpg", "size": 48213}
    )

    id: str
    url: str = Field(description="To be given as source_url or audio_url.")
    filename: str
    size: int = Field(description="Bytes.")
