"""Jobs that are accepted now and worked on later: stored, queued, run, followed, kept for a while.

Knows no HTTP, and nothing of what a job does: a kind's handler does that.
"""

from gateway.jobs.model import Job, JobContext, Kind
from gateway.jobs.service import JobService

__all__ = ["Job", "JobContext", "JobService", "Kind"]
