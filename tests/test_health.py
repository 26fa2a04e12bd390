"""GET /health: what it says, and that it says it at once whatever Triton does."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from processes import free_port, wait_for

import lipserve
from gateway.app import create_app
from gateway.health import memory
from gateway.jobs import JobService
from gateway.metrics import sums
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

TWO_GPUS = """\
# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 25757220864.000000
nv_gpu_memory_total_bytes{gpu_uuid="GPU-2"} 25757220864.000000
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 5000000000.000000
nv_gpu_memory_used_bytes{gpu_uuid="GPU-2"} 1000000.000000
# HELP nv_energy_consumption GPU energy consumption in joules since the Triton Server started
# TYPE nv_energy_consumption counter
nv_energy_consumption{gpu_uuid="GPU-1"} 1.5
"""


@contextmanager
def metrics_server(text: str, delay: float = 0.0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def gateway(settings: Settings, root: Path, triton_url: str, metrics_url: str | None = None) -> Iterator[TestClient]:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = {"avatars_dir": root / "avatars", "work_dir": root / "work", "storage_dir": root / "storage"}
    app = create_app(Settings(**given | own), triton_url, metrics_url)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_gpu_memory_is_that_of_all_gpus() -> None:
    assert memory(sums(TWO_GPUS)) == (5001, 51514)
    assert memory(sums("nv_inference_count 1\n")) == (None, None)
    assert memory(None) == (None, None)


@pytest.mark.parametrize("text", ["nv_gpu_memory_total_bytes{", "<html>not found</html>", "a b c d"])
def test_what_is_no_exposition_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        sums(text)


def test_it_says_what_serves_and_how_busy_it_is(settings: Settings, triton: EmbeddedTriton, tmp_path: Path) -> None:
    with gateway(settings, tmp_path, triton.grpc_url, triton.metrics_url) as client:
        wait_for(lambda: client.get("/health").status_code == 200, 60)
        assert client.get("/health").json() == {
            "status": "healthy",
            "service": "lipserve",
            "version": lipserve.__version__,
            "model_loaded": True,
            "device": "cpu",
            "vram_used_mb": None,
            "vram_total_mb": None,
            "jobs_queued": 0,
            "jobs_processing": 0,
        }
        assert "/health" not in client.get("/metrics").text  # nor counted


def test_a_gpu_is_known_by_tritons_metrics(settings: Settings, triton: EmbeddedTriton, tmp_path: Path) -> None:
    with metrics_server(TWO_GPUS) as url, gateway(settings, tmp_path, triton.grpc_url, url) as client:
        wait_for(lambda: client.get("/health").status_code == 200, 60)
        body = client.get("/health").json()
        assert (body["device"], body["vram_used_mb"], body["vram_total_mb"]) == ("cuda", 5001, 51514)


@pytest.mark.parametrize(("text", "delay"), [("not metrics", 0.0), (TWO_GPUS, 3.0)])
def test_metrics_that_cannot_be_had_leave_the_rest_as_it_is(
    settings: Settings, triton: EmbeddedTriton, tmp_path: Path, text: str, delay: float
) -> None:
    with metrics_server(text, delay) as url, gateway(settings, tmp_path, triton.grpc_url, url) as client:
        wait_for(lambda: client.get("/health").status_code == 200, 60)
        started = time.monotonic()
        answer = client.get("/health")
        assert time.monotonic() - started < 2.5
        assert (answer.status_code, answer.json()["device"]) == (200, None)


def test_without_a_triton_it_is_503_at_once(settings: Settings, tmp_path: Path) -> None:
    with gateway(settings, tmp_path, f"127.0.0.1:{free_port()}") as client:
        started = time.monotonic()
        answers = [client.get("/health") for _ in range(5)]
        assert time.monotonic() - started < 3
        assert {answer.status_code for answer in answers} == {503}
        body = answers[0].json()
        assert (body["status"], body["model_loaded"], body["device"]) == ("starting", False, None)


def test_a_triton_that_hangs_is_not_waited_for(settings: Settings, exported: Path, tmp_path: Path) -> None:
    with (
        EmbeddedTriton(exported / "model_repository/cpu", exported / "models", tmp_path) as own,
        gateway(settings, tmp_path, own.grpc_url, own.metrics_url) as client,
    ):
        wait_for(lambda: client.get("/health").status_code == 200, 60)
        assert own.pid is not None
        os.kill(own.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: client.get("/health").json()["status"] == "unhealthy", 10)
            started = time.monotonic()
            assert client.get("/health").status_code == 503
            assert time.monotonic() - started < 2.5
        finally:
            os.kill(own.pid, signal.SIGCONT)
        wait_for(lambda: client.get("/health").status_code == 200, 20)


def test_jobs_are_counted_while_they_can_be_read(settings: Settings, triton: EmbeddedTriton, tmp_path: Path) -> None:
    with gateway(settings, tmp_path, triton.grpc_url) as client:
        wait_for(lambda: client.get("/health").status_code == 200, 60)
        jobs: JobService = client.app.state.jobs  # type: ignore[attr-defined]
        jobs.pause()
        for _ in range(4):
            jobs.submit("lip_sync", {}, "")
        body = client.get("/health").json()
        assert (body["jobs_queued"], body["jobs_processing"]) == (4, 0)
        with sqlite3.connect(tmp_path / "storage/jobs.sqlite") as connection:
            connection.execute("alter table jobs rename to gone")
        answer = client.get("/health")
        assert answer.status_code == 503
        assert (answer.json()["jobs_queued"], answer.json()["jobs_processing"]) == (None, None)
