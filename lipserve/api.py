"""What the gateway answers, as types: written by the gateway, read by lipserve.client. Talks have lipserve.talk_api.

Times are UTC, RFC 3339.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lipserve import __version__
from lipserve.avatar import AvatarInfo
from lipserve.contract import AVATAR_FORMAT

JobState = Literal["queued", "processing", "done", "failed", "cancelled"]
ENDED: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})

_JOB_ID = "job_00065f0a1b2c3d4e5f60718293a4b5c6"
_JOB = {
    "id": _JOB_ID,
    "kind": "lip_sync",
    "state": "done",
    "progress": 1.0,
    "stage": "render",
    "created_at": "2026-01-31T12:00:00.000000Z",
    "started_at": "2026-01-31T12:00:00.100000Z",
    "completed_at": "2026-01-31T12:00:04.500000Z",
    "attempts": 1,
    "request": {"avatar_id": "lucy", "audio": "speech.flac", "fps": None},
    "result": {"frames": 151, "fps": 25, "seconds": 6.04},
    "result_url": f"http://127.0.0.1:8080/jobs/{_JOB_ID}/result",
    "error": None,
}
AVATAR_INFO = {
    "format": AVATAR_FORMAT,
    "avatar_id": "lucy",
    "prepared_at": "2026-01-31T12:00:00+00:00",
    "source": "lucy.mp4",
    "source_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "parameters": {"version": "v15", "extra_margin": 10, "parsing_mode": "jaw", "fps": 25},
    "weights_id": "demo",
    "fps": 25,
    "width": 512,
    "height": 512,
    "frames": 100,
    "frames_without_face": 0,
    "colour_space": 1,
    "colour_primaries": 1,
    "colour_transfer": 1,
}
_AVATAR = {"avatar_id": "lucy", "state": "ready", "info": AVATAR_INFO, "preview_url": "/avatars/lucy/preview"}


def shown(*examples: dict[str, Any]) -> ConfigDict:
    """A model whose description has examples."""
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class ErrorBody(BaseModel):
    """Every error's answer, but for D-ID's paths."""

    model_config = shown(
        {
            "kind": "no_face",
            "message": "No face in 6 of 10 frames: 4–9.",
            "hint": "Use a clip of one person, seen from the front.",
            "request_id": "d0c5",
        }
    )

    kind: str
    message: str
    hint: str
    request_id: str


class JobError(BaseModel):
    kind: str
    message: str
    hint: str


class JobView(BaseModel):
    """A job as clients see it."""

    model_config = shown(_JOB)

    id: str
    kind: str
    state: JobState
    progress: float = Field(description="0 to 1, never falling while the job is worked on.", ge=0, le=1)
    stage: str = Field(description="What is being done, or was last.")
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    attempts: int = Field(description="Times it was begun.")
    request: dict[str, Any]
    result: dict[str, Any] | None = Field(description="Of a job that is done.")
    result_url: str | None = Field(description="The video, of a job that is done and has made one.")
    error: JobError | None = Field(description="Of a job that has failed.")

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class JobList(BaseModel):
    model_config = shown({"jobs": [_JOB], "next": _JOB_ID})

    jobs: list[JobView] = Field(description="Newest first.")
    next: str | None = Field(description="`before` of the next page; null on the last one.")


class AvatarSummary(BaseModel):
    model_config = shown(_AVATAR)

    avatar_id: str
    state: Literal["ready", "damaged"]
    info: AvatarInfo | None
    preview_url: str


class AvatarList(BaseModel):
    model_config = shown({"avatars": [_AVATAR]})

    avatars: list[AvatarSummary]


class Health(BaseModel):
    """What GET /health/live and /health/ready answer."""

    model_config = shown({"status": "ready", "message": ""})

    status: Literal["live", "ready", "not_ready"]
    message: str = ""


class Report(BaseModel):
    """What GET /health answers."""

    model_config = shown(
        {
            "status": "healthy",
            "service": "lipserve",
            "version": __version__,
            "model_loaded": True,
            "device": "cuda",
            "vram_used_mb": 7120,
            "vram_total_mb": 24146,
            "jobs_queued": 3,
            "jobs_processing": 4,
        }
    )

    status: Literal["healthy", "starting", "unhealthy"] = Field(
        description="Serving; not yet; Triton or the jobs cannot be reached. 200 if healthy, else 503."
    )
    service: str = "lipserve"
    version: str = __version__
    model_loaded: bool = Field(description="With models loaded on demand, false until they are needed.")
    device: Literal["cuda", "cpu"] | None = Field(description="Where Triton runs; null if its metrics are not known.")
    vram_used_mb: int | None = Field(description="10^6 bytes, of all GPUs of Triton; null without one.")
    vram_total_mb: int | None
    jobs_queued: int | None = Field(description="Jobs whose turn has not come.")
    jobs_processing: int | None
