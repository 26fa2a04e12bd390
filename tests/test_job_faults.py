"""Jobs of a real `lipserve up` that is killed, ended, and full."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
from processes import Service, environment, is_running, service, wait_for
from samples import facts, tone, write_sound

from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

JOBS = 20


@pytest.fixture(scope="module")
def own_settings(
    settings: Settings, triton: EmbeddedTriton, lisa: str, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """Two jobs at a time; the Triton and the avatars of all tests."""
    root = tmp_path_factory.mktemp("job-faults")
    own: dict[str, Any] = {"work_dir": root / "work", "storage_dir": root / "storage", "triton_url": triton.grpc_url}
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return Settings(**given | own | {"max_concurrent_syncs": 2, "video_preset": "ultrafast"})


def submit(up: Service, audio: Path) -> httpx.Response:
    with audio.open("rb") as handle:
        return up.http.post("/lip_sync", data={"avatar_id": "lisa", "async": "true"}, files={"audio": handle})


def shown(up: Service) -> dict[str, dict[str, Any]]:
    return {job["id"]: job for job in up.http.get("/jobs", params={"limit": 100}).json()["jobs"]}


def ended(jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: job for name, job in jobs.items() if job["state"] in ("done", "failed", "cancelled")}


class Fetching:
    """Asks for every job's result, all the time, and keeps what it gets."""

    def __init__(self, up: Service, ids: list[str]) -> None:
        self.bodies: dict[str, set[bytes]] = {name: set() for name in ids}
        self.others: set[tuple[int, str]] = set()
        self._url = up.http.base_url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as http:
            while not self._stop.is_set():
                for name, bodies in self.bodies.items():
                    try:
                        answer = http.get(f"/jobs/{name}/result")
                    except httpx.TransportError:  # killed
                        return
                    if answer.status_code == 200:
                        bodies.add(answer.content)
                    else:
                        self.others.add((answer.status_code, answer.json()["kind"]))
                time.sleep(0.5)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)


def test_a_gateway_killed_amid_20_jobs_loses_none_and_makes_none_twice(own_settings: Settings, tmp_path: Path) -> None:
    lengths = [0.24 + 0.08 * (i % 4) for i in range(JOBS)]
    sounds = [write_sound(tmp_path / f"{i}.wav", tone(s), 16000) for i, s in enumerate(lengths)]
    with service(own_settings, tmp_path / "first.log") as up:
        ids = [submit(up, sound).json()["id"] for sound in sounds]
        before = Fetching(up, ids)
        wait_for(lambda: len(ended(shown(up))) >= 3, 60)
        family = up.children()
        done_before = ended(shown(up))
        up.process.kill()
        up.process.wait(10)
        wait_for(lambda: not any(is_running(pid) for pid in family), 20)
        before.stop()
    assert len(done_before) < JOBS - 2  # it was killed amid them
    folders = own_settings.storage_dir / "jobs"
    with service(own_settings, tmp_path / "second.log") as up:
        after = Fetching(up, ids)
        wait_for(lambda: len(ended(shown(up))) == JOBS, 120, lambda: str(shown(up)))
        jobs = shown(up)
        time.sleep(0.5)
        after.stop()
        assert list(jobs) == ids[::-1]  # none is lost, none is there twice
        for name, length in zip(ids, lengths, strict=True):
            job = jobs[name]
            assert job["state"] == "done", job
            assert job["attempts"] in (1, 2)
            if name in done_before:
                assert job == done_before[name] | {"result_url": job["result_url"]}  # only the port is another
            video = tmp_path / f"{name}.mp4"
            video.write_bytes(up.http.get(f"/jobs/{name}/result").content)
            assert facts(video)["frames"] == job["result"]["frames"] == int(round(length * 16000) * 25 / 16000)
            # Whenever it was asked for, it was this one, or not done yet.
            assert before.bodies[name] | after.bodies[name] <= {video.read_bytes()}
            assert sorted(file.name for file in (folders / name).iterdir()) == ["audio", "result.mp4"]
        assert before.others | after.others <= {(409, "job_not_done")}
        assert sum(job["attempts"] == 2 for job in jobs.values()) <= 2  # those that two workers were at
        assert sorted(folder.name for folder in folders.iterdir()) == sorted(ids)


def test_a_clean_end_lets_go_of_followers_and_the_job_goes_on_later(own_settings: Settings, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav", tone(6), 16000)
    told: list[str] = []
    with service(own_settings, tmp_path / "first.log") as up:
        job = submit(up, sound).json()

        def follow() -> None:
            with httpx.stream("GET", f"{up.http.base_url}/jobs/{job['id']}/events", timeout=60) as events:
                told.extend(line for line in events.iter_lines() if line.startswith("data: "))

        follower = threading.Thread(target=follow)
        follower.start()
        wait_for(lambda: up.http.get(f"/jobs/{job['id']}").json()["progress"] > 0, 60)
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(30) == -signal.SIGTERM  # uvicorn passes the signal on after its own clean end
        follower.join(20)
        assert not follower.is_alive()
    assert told
    assert "Traceback" not in (tmp_path / "first.log").read_text()
    with service(own_settings, tmp_path / "second.log") as up:
        wait_for(lambda: up.http.get(f"/jobs/{job['id']}").json()["state"] == "done", 120)
        again = up.http.get(f"/jobs/{job['id']}").json()
        assert (again["attempts"], again["result"]["frames"]) == (1, 150)


@pytest.fixture(scope="module")
def full_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full") / "storage"


@pytest.fixture(scope="module")
def full(own_settings: Settings, full_storage: Path) -> Iterator[Service]:
    """Two jobs at work, two in the queue, and no room for more."""
    root = full_storage.parent
    sound = write_sound(root / "long.wav", tone(120), 16000)
    with service(own_settings, root / "up.log", max_waiting=2, storage_dir=full_storage) as up:
        for _ in range(4):
            assert submit(up, sound).status_code == 202
        wait_for(lambda: sorted(job["state"] for job in shown(up).values()) == ["processing"] * 2 + ["queued"] * 2, 20)
        yield up
        for name in shown(up):
            up.http.delete(f"/jobs/{name}")


def test_a_full_queue_says_no_at_once_while_work_goes_on(full: Service, tmp_path: Path) -> None:
    def progress() -> float:
        return float(sum(job["progress"] for job in shown(full).values()))

    wait_for(lambda: progress() > 0, 60)
    short = write_sound(tmp_path / "short.wav", tone(0.2), 16000)
    before, seconds = progress(), []
    for _ in range(20):
        start = time.monotonic()
        answer = submit(full, short)
        seconds.append(time.monotonic() - start)
        assert (answer.status_code, answer.json()["kind"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        time.sleep(0.05)
    print(f"429 after {median(seconds) * 1000:.1f} ms, at most {max(seconds) * 1000:.1f} ms")
    assert median(seconds) < 0.5
    wait_for(lambda: progress() > before, 20)
    assert len(shown(full)) == 4
    metrics = full.http.get("/metrics").text
    assert 'lipserve_stored_jobs{state="queued"} 2.0' in metrics
    assert 'lipserve_stored_jobs{state="processing"} 2.0' in metrics


def test_a_second_gateway_on_the_same_storage_says_so_and_ends(
    full: Service, own_settings: Settings, full_storage: Path
) -> None:
    command = [sys.executable, "-m", "lipserve", "up", "--port", "0"]
    env = environment(own_settings, storage_dir=full_storage)
    second = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-2].startswith("storage_in_use: Another gateway works in")
    assert "LIPSERVE_STORAGE_DIR" in second.stderr.splitlines()[-1]
    assert full.is_ready()


def test_an_upload_that_has_no_chance_is_not_read(full: Service) -> None:
    """Its body never comes, and still there is an answer."""
    head = (
        "POST /lip_sync HTTP/1.1\r\nHost: x\r\nPrefer: respond-async\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", full.port), timeout=20) as s:
        s.sendall(head.encode())
        assert s.recv(64).startswith(b"HTTP/1.1 429 ")
