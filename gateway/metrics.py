"""What the gateway counts and measures for Prometheus, a registry for each application.

Every label has a small, fixed set of values: endpoints, outcomes, stages and kinds of error; never an avatar's id, a
file's name or a message. Knows nothing of HTTP but the numbers of its statuses.
"""

from collections.abc import Mapping
from functools import partial

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from gateway.jobs import Job, JobService
from gateway.work import Workers
from lipserve.api import ENDED
from lipserve.errors import Cancelled, by_kind

OUTCOMES = ("ok", "refused", "failed", "cancelled")
TRANSPORTS = ("grpc", "shared_memory")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1200)
FRAMES_PER_SECOND = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500)

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST


class Metrics:
    """One application's numbers. Safe to use from several threads."""

    def __init__(self) -> None:
        # Else every series comes with its time of birth, which nothing asks for.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "lipserve_requests",
            "Requests answered; refused: at fault is the request, failed: the service.",
            ["endpoint", "outcome"],
            registry=registry,
        )
        self._errors = Counter("lipserve_errors", "Errors answered, by their kind.", ["kind"], registry=registry)
        self._request_seconds = Histogram(
            "lipserve_request_seconds",
            "Seconds from the complete upload to the answer, of successful calls.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "lipserve_stage_seconds",
            "Seconds of a stage in one call, of successful calls.",
            ["endpoint", "stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.frames = Counter("lipserve_frames_rendered", "Video frames rendered.", registry=registry)
        self.frame_rate = Histogram(
            "lipserve_render_frames_per_second",
            "Frames rendered per second, over one lip-sync call from its turn on.",
            buckets=FRAMES_PER_SECOND,
            registry=registry,
        )
        self.batches_in_flight = Gauge("lipserve_batches_in_flight", "Batches at Triton now.", registry=registry)
        self._batches = Counter(
            "lipserve_batches", "Batches sent to Triton, by the way they travel.", ["transport"], registry=registry
        )
        for transport in TRANSPORTS:
            self._batches.labels(transport)
        lookups = Counter("lipserve_avatar_cache_lookups", "Avatars asked of the cache.", ["result"], registry=registry)
        self.cache_hits, self.cache_misses = lookups.labels("hit"), lookups.labels("miss")
        self._segments = Counter(
            "lipserve_feature_cache_lookups", "30 s segments of sound to be encoded.", ["result"], registry=registry
        )
        self._pictures = Counter(
            "lipserve_picture_avatar_lookups",
            "Pictures and clips of talks; hit: had been prepared before.",
            ["result"],
            registry=registry,
        )
        for result in ("hit", "miss"):
            self._pictures.labels(result)
        self._running = Gauge("lipserve_jobs_running", "Calls in a worker now.", ["endpoint"], registry=registry)
        self._waiting = Gauge("lipserve_jobs_waiting", "Calls waiting for a worker.", ["endpoint"], registry=registry)
        self._stored = Gauge("lipserve_stored_jobs", "Jobs that have not ended.", ["state"], registry=registry)
        self._ended = Counter(
            "lipserve_jobs_ended", "Jobs that have ended, by how.", ["kind", "state"], registry=registry
        )
        self._job_seconds = Histogram(
            "lipserve_job_seconds",
            "Seconds from a job's turn to its end, of those that are done.",
            ["kind"],
            buckets=SECONDS,
            registry=registry,
        )
        for kind in by_kind():  # from the start, so that the first error is an increase too
            self._errors.labels(kind)

    def watch(self, endpoint: str, workers: Workers) -> None:
        """From here on the endpoint's jobs are counted, at the moment they are asked for."""
        self._running.labels(endpoint).set_function(lambda: workers.running)
        self._waiting.labels(endpoint).set_function(lambda: workers.waiting)
        for outcome in OUTCOMES:
            self._requests.labels(endpoint, outcome)

    def watch_jobs(self, jobs: JobService) -> None:
        """From here on jobs are counted, at the moment they are asked for and when they end."""
        for state in ("queued", "processing"):
            self._stored.labels(state).set_function(partial(_count, jobs, state))
        for kind in jobs.kinds:
            for ending in ENDED:
                self._ended.labels(kind, ending)
        jobs.on_end(self._job_ended)

    def _job_ended(self, job: Job) -> None:
        self._ended.labels(job.kind, job.state).inc()
        if job.state == "done" and job.started_at is not None and job.completed_at is not None:
            self._job_seconds.labels(job.kind).observe((job.completed_at - job.started_at).total_seconds())

    def answered(self, endpoint: str, status: int) -> None:
        """A request to an endpoint of ours has had its answer."""
        if status == Cancelled.status:
            outcome = "cancelled"
        else:
            outcome = "ok" if status < 400 else "refused" if status < 500 else "failed"
        self._requests.labels(endpoint, outcome).inc()

    def segment_looked_up(self, known: bool) -> None:
        self._segments.labels("hit" if known else "miss").inc()

    def picture_looked_up(self, known: bool) -> None:
        self._pictures.labels("hit" if known else "miss").inc()

    def batches(self, transport: str) -> None:
        """A batch is sent to Triton this way, one of TRANSPORTS."""
        self._batches.labels(transport).inc()

    def error(self, kind: str) -> None:
        self._errors.labels(kind).inc()

    def measured(self, endpoint: str, total: float, stages: Mapping[str, float]) -> None:
        """Seconds of a successful call, and of its stages."""
        self._request_seconds.labels(endpoint).observe(total)
        for stage, seconds in stages.items():
            self._stage_seconds.labels(endpoint, stage).observe(seconds)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)


def _count(jobs: JobService, state: str) -> float:
    return jobs.counts()[state]


def sums(exposition: str) -> dict[str, float]:
    """Of somebody's text format: each metric, summed over its labels. Raises ValueError."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
