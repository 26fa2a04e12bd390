"""GET /metrics: what a call adds to it and what never stands in it; and a real Prometheus that scrapes the service."""

import io
import logging
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from dashboards import expressions
from fastapi.testclient import TestClient
from processes import Service, free_port, service, wait_for
from prometheus_client.parser import text_string_to_metric_families
from samples import tone, write_sound

from gateway.app import create_app
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "deploy/prometheus"

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs prometheus and promtool (Debian's package prometheus)",
)


class Samples:
    """What /metrics says at one moment."""

    def __init__(self, client: TestClient | httpx.Client) -> None:
        response = client.get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain")
        self.text = response.text
        self.families = list(text_string_to_metric_families(self.text))

    def value(self, name: str, **labels: str) -> float:
        """0 for a series that is not there."""
        found = [s.value for f in self.families for s in f.samples if s.name == name and s.labels == labels]
        assert len(found) <= 1
        return found[0] if found else 0.0


def say(client: TestClient | httpx.Client, sound: Path) -> None:
    with sound.open("rb") as handle:
        response = client.post("/lip_sync", data={"avatar_id": "lisa"}, files={"audio": handle})
    assert response.status_code == 200, response.text


def test_a_lip_sync_is_counted_and_measured(client: TestClient, lisa: str, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav", tone(0.8), 16000)
    say(client, sound)  # so that the avatar is open
    before = Samples(client)
    say(client, sound)
    after = Samples(client)

    def added(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert added("lipserve_requests_total", endpoint="lip_sync", outcome="ok") == 1
    assert added("lipserve_frames_rendered_total") == 20
    assert added("lipserve_avatar_cache_lookups_total", result="hit") == 1
    assert added("lipserve_avatar_cache_lookups_total", result="miss") == 0
    seconds = added("lipserve_request_seconds_sum", endpoint="lip_sync")
    assert added("lipserve_request_seconds_count", endpoint="lip_sync") == 1
    in_stages = 0.0
    for stage in ("queue", "audio", "features", "faces", "blend", "encode", "finish"):
        assert added("lipserve_stage_seconds_count", endpoint="lip_sync", stage=stage) == 1
        in_stages += added("lipserve_stage_seconds_sum", endpoint="lip_sync", stage=stage)
    assert 0.5 * seconds < in_stages < seconds
    assert added("lipserve_render_frames_per_second_count") == 1
    queue = added("lipserve_stage_seconds_sum", endpoint="lip_sync", stage="queue")
    rate = added("lipserve_render_frames_per_second_sum")
    assert 20 / seconds < rate < 1.5 * 20 / (seconds - queue)


def test_a_preparation_is_measured_by_stage(client: TestClient, clip: Path) -> None:
    before = Samples(client)
    response = client.post("/prepare_avatar", data={"avatar_id": "measured"}, files={"video": clip.open("rb")})
    assert response.status_code == 201
    after = Samples(client)
    stages = re.findall(r"(\w+)=", response.headers["x-seconds-stages"])
    assert len(stages) > 3
    for stage in stages:
        name, labels = "lipserve_stage_seconds_count", {"endpoint": "prepare_avatar", "stage": stage}
        assert after.value(name, **labels) - before.value(name, **labels) == 1
    client.delete("/avatars/measured")


def test_running_waiting_and_batches_in_flight_are_seen_while_they_last(
    client: TestClient, lisa: str, settings: Settings, tmp_path: Path
) -> None:
    sound = write_sound(tmp_path / "a.wav", tone(1.5), 16000)
    callers = [threading.Thread(target=say, args=(client, sound)) for _ in range(settings.max_concurrent_syncs + 1)]
    for caller in callers:
        caller.start()
    seen: list[Samples] = []

    def full() -> bool:
        seen.append(Samples(client))
        now = {name: seen[-1].value(f"lipserve_jobs_{name}", endpoint="lip_sync") for name in ("running", "waiting")}
        return now == {"running": settings.max_concurrent_syncs, "waiting": 1}

    try:
        wait_for(full, 30, lambda: seen[-1].text)
        wait_for(lambda: Samples(client).value("lipserve_batches_in_flight") > 0, 30)
    finally:
        for caller in callers:
            caller.join(120)
    wait_for(lambda: Samples(client).value("lipserve_batches_in_flight") == 0, 10)
    for name in ("lipserve_jobs_running", "lipserve_jobs_waiting"):
        assert Samples(client).value(name, endpoint="lip_sync") == 0
    assert max(s.value("lipserve_batches_in_flight") for s in seen) <= (
        settings.max_concurrent_syncs * settings.batches_in_flight
    )


@pytest.fixture
def alone(settings: Settings, tmp_path: Path) -> Iterator[TestClient]:
    """A gateway of its own, without a Triton."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    folders = {name: tmp_path / name for name in ("avatars_dir", "work_dir", "storage_dir")}
    own = Settings(**given | folders)
    with TestClient(create_app(own, f"127.0.0.1:{free_port()}"), raise_server_exceptions=False) as client:
        yield client


def requests(samples: Samples) -> dict[tuple[str, str], float]:
    """{(endpoint, outcome): how often}, without those that never happened."""
    return {
        (s.labels["endpoint"], s.labels["outcome"]): s.value
        for family in samples.families
        for s in family.samples
        if s.name == "lipserve_requests_total" and s.value
    }


def test_errors_are_counted_by_kind_and_requests_by_outcome(
    alone: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.post("/lip_sync", data={"avatar_id": "nobody"}, files={"audio": b"x"})
    alone.post("/lip_sync", data={"avatar_id": "nobody", "fps": "many"}, files={"audio": b"x"})
    alone.post("/prepare_avatar", data={"avatar_id": "a"}, files={"video": b"x"})  # Triton is not there
    alone.post("/prepare_avatar", data={"avatar_id": "a"}, files={"video": b"x" * 6_000_000})
    alone.get("/avatars")
    alone.get("/avatars/nobody")
    alone.get("/lip_sync")
    alone.get("/docs")
    store = alone.app.state.engine.store  # type: ignore[attr-defined]
    monkeypatch.setattr(store, "list", lambda: 1 / 0)
    assert alone.get("/avatars").status_code == 500
    now = Samples(alone)
    errors = {
        s.labels["kind"]: s.value
        for family in now.families
        for s in family.samples
        if s.name == "lipserve_errors_total" and s.value
    }
    assert errors == {
        "avatar_not_found": 2,
        "invalid_parameter": 1,
        "triton_unavailable": 1,
        "payload_too_large": 1,
        "method_not_allowed": 1,
        "internal": 1,
    }
    assert requests(now) == {
        ("lip_sync", "refused"): 3,
        ("prepare_avatar", "failed"): 1,
        ("prepare_avatar", "refused"): 1,
        ("list_avatars", "ok"): 1,
        ("list_avatars", "failed"): 1,
        ("show_avatar", "refused"): 1,
        ("other", "ok"): 1,
    }


def test_the_errors_that_can_happen_are_there_before_they_do(alone: TestClient) -> None:
    text = Samples(alone).text
    for kind in ("triton_unavailable", "no_face", "storage_full", "internal"):
        assert f'lipserve_errors_total{{kind="{kind}"}} 0.0' in text
    assert 'lipserve_requests_total{endpoint="lip_sync",outcome="failed"} 0.0' in text


def test_nothing_that_callers_send_becomes_a_label(alone: TestClient) -> None:
    before = len(Samples(alone).text.splitlines())
    for n in range(20):
        alone.get(f"/private-{n}")
        alone.get(f"/avatars/private-{n}", headers={"x-request-id": f"private-{n}"})
        alone.request(f"PRIVATE{n}", "/lip_sync")
        alone.post("/lip_sync", data={"avatar_id": f"private-{n}"}, files={"audio": (f"private-{n}.wav", b"x")})
    text = Samples(alone).text
    assert "private" not in text.lower()
    assert len(text.splitlines()) < before + 10


def test_scrapes_and_probes_are_neither_counted_nor_logged(alone: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    (handler,) = (h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler)
    monkeypatch.setattr(handler, "stream", written)
    for path in ("/metrics", "/health/live", "/health/ready"):
        alone.get(path)
    assert [
        line for line in written.getvalue().splitlines() if "testserver" not in line and "not ready" not in line
    ] == []
    assert requests(Samples(alone)) == {}


def test_two_applications_in_one_process_count_for_themselves(alone: TestClient, client: TestClient) -> None:
    before = Samples(client).value("lipserve_errors_total", kind="not_found")
    alone.get("/nowhere")
    assert Samples(alone).value("lipserve_errors_total", kind="not_found") == 1
    assert Samples(client).value("lipserve_errors_total", kind="not_found") == before


# -- Prometheus --------------------------------------------------------------------------------------------------------


class Prometheus:
    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=10)

    def is_ready(self) -> bool:
        try:
            return self.http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = self.http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expression: str) -> float:
        """Of the one series that it gives; 0 for none."""
        results = self.query(expression)
        assert len(results) <= 1, results
        return float(results[0]["value"][1]) if results else 0.0


@contextmanager
def prometheus(folder: Path, gateway: int, triton: int) -> Iterator[Prometheus]:
    """The repository's configuration, with its targets on these ports of this machine."""
    config = (PROMETHEUS / "prometheus.yml").read_text()
    for target, port in (("gateway:8080", gateway), ("triton:8002", triton)):
        assert config.count(f'"{target}"') == 1
        config = config.replace(target, f"127.0.0.1:{port}")
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(PROMETHEUS / "alerts.yml", folder)
    port, log = free_port(), folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=out,
            stderr=out,
        )
    running = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_for(running.is_ready, 30, log.read_text)
        yield running
    finally:
        running.http.close()
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def up(
    settings: Settings, triton: EmbeddedTriton, clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A gateway as a process, in front of the Triton of all tests, as in Compose; with the avatar `lisa`."""
    root = tmp_path_factory.mktemp("metrics")
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = Settings(
        **given
        | {name: root / name for name in ("avatars_dir", "work_dir", "storage_dir")}
        | {"triton_url": triton.grpc_url}
    )
    with service(own, root / "up.log") as running:
        response = running.http.post("/prepare_avatar", data={"avatar_id": "lisa"}, files={"video": clip.open("rb")})
        assert response.status_code == 201, response.text
        yield running


@needs_prometheus
def test_prometheus_scrapes_the_gateway_and_triton(up: Service, triton: EmbeddedTriton, tmp_path: Path) -> None:
    with prometheus(tmp_path, up.port, triton.ports.metrics) as server:
        say(up.http, write_sound(tmp_path / "a.wav", tone(0.8), 16000))
        wait_for(lambda: server.value('up{job="gateway"}') == 1, 30)
        wait_for(lambda: server.value('up{job="triton"}') == 1, 30)
        wait_for(lambda: server.value("lipserve_frames_rendered_total") == 20, 30)
        assert server.value('lipserve_requests_total{endpoint="lip_sync", outcome="ok"}') == 1
        wait_for(lambda: server.value('nv_inference_count{model="lipsync"}') >= 20, 30)
        groups = server.http.get("/api/v1/rules").json()["data"]["groups"]
        written = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
        assert [rule["name"] for rule in groups[0]["rules"]] == [rule["alert"] for rule in written[0]["rules"]]
        for expression in expressions():  # that they are PromQL
            server.query(expression)


@needs_prometheus
def test_promtool_finds_nothing_wrong() -> None:
    done = subprocess.run(
        ["promtool", "check", "config", PROMETHEUS / "prometheus.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "rules found" in done.stdout


@needs_prometheus
def test_promtool_finds_no_fault_in_what_is_exported(client: TestClient) -> None:
    text = Samples(client).text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_prometheus
def test_every_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    story = ROOT / "tests/alerts.yml"
    tested = {
        case["alertname"] for test in yaml.safe_load(story.read_text())["tests"] for case in test["alert_rule_test"]
    }
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    assert tested == {rule["alert"] for rule in rules}
    done = subprocess.run(["promtool", "test", "rules", story], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
