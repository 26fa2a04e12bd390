"""A job as clients see it."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from gateway.jobs import Job, JobState


class JobError(BaseModel):
    kind: str
    message: str
    hint: str


class JobView(BaseModel):
    """Times are UTC, RFC 3339."""

    id: str = Field(examples=["job_00065f0a1b2c3d4e5f60718293a4b5c6"])
    kind: str = Field(examples=["lip_sync"])
    state: JobState
    progress: float = Field(description="0 to 1, never falling while the job is worked on.", ge=0, le=1)
    stage: str = Field(description="What is being done, or was last.", examples=["render"])
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    attempts: int = Field(description="Times it was begun.")
    request: dict[str, Any]
    result: dict[str, Any] | None = Field(description="Of a job that is done.")
    result_url: str | None = Field(description="The video, of a job that is done and has made one.")
    error: JobError | None = Field(description="Of a job that has failed.")


class JobList(BaseModel):
    jobs: list[JobView] = Field(description="Newest first.")
    next: str | None = Field(description="`before` of the next page; null on the last one.")


def job_view(job: Job, result_url: str | None) -> JobView:
    return JobView(
        id=job.id,
        kind=job.kind,
        state=job.state,
        progress=round(job.progress, 4),
        stage=job.stage,
        created_at=job.created_at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        attempts=job.attempts,
        request=job.request,
        result=job.result,
        result_url=result_url,
        error=None if job.error is None else JobError(**job.error),
    )
