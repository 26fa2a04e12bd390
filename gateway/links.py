"""The URLs that this service gives out."""

from starlette.requests import Request

from gateway.jobs import Job, JobService
from lipserve.settings import Settings


class Links:
    """Absolute URLs, below LIPSERVE_PUBLIC_URL if it is set."""

    def __init__(self, settings: Settings, jobs: JobService) -> None:
        self._public = settings.public_url
        self._own = f"http://{settings.host}:{settings.port}"
        self._jobs = jobs

    def result(self, job: Job, base: str | None = None) -> str | None:
        """Where the video of a job is; None if it has none. `base`: where the client has reached us."""
        if not self._jobs.has_result(job):
            return None
        return f"{(self._public or base or self._own).rstrip('/')}/jobs/{job.id}/result"


def result_url(request: Request, job: Job) -> str | None:
    links: Links = request.app.state.links
    return links.result(job, str(request.base_url))
