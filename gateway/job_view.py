"""A job as clients see it."""

from gateway.jobs import Job
from lipserve.api import JobError, JobView


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
