"""Faults: real processes killed, clients that leave, a server that is full or not there."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from processes import Service, free_port, is_running, service, wait_for
from samples import facts, tone, write_sound

from gateway.app import create_app
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings


@pytest.fixture(scope="module")
def own_settings(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("faults")
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return Settings(
        **given | {"avatars_dir": root / "avatars", "work_dir": root / "work", "storage_dir": root / "storage"}
    )


@pytest.fixture(scope="module")
def running(own_settings: Settings, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A real `lipserve up` with the avatar `lisa`."""
    with service(own_settings, tmp_path_factory.mktemp("log") / "up.log") as up:
        response = up.http.post("/prepare_avatar", data={"avatar_id": "lisa"}, files={"video": clip.open("rb")})
        assert response.status_code == 201, response.text
        yield up


def post(up: Service, audio: Path) -> httpx.Response:
    with audio.open("rb") as handle:
        return up.http.post("/lip_sync", data={"avatar_id": "lisa"}, files={"audio": handle})


def submit(up: Service, audio: Path) -> str:
    """The id of a job."""
    with audio.open("rb") as handle:
        answer = up.http.post("/lip_sync", data={"avatar_id": "lisa", "async": "true"}, files={"audio": handle})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def job(up: Service, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = up.http.get(f"/jobs/{name}").json()
    return shown


def log_lines(up: Service, event: str) -> list[str]:
    return [line for line in up.log.read_text().splitlines() if f'"event": "{event}"' in line]


def metrics(up: Service) -> str:
    return up.http.get("/metrics").text


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return write_sound(tmp_path / "short.wav", tone(0.2), 16000)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Half a minute: many seconds of work."""
    return write_sound(tmp_path / "long.wav", tone(29), 16000)


def test_a_body_over_the_limit_is_refused_before_it_is_sent(running: Service) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as s:
        s.sendall(
            b"POST /lip_sync HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        assert s.recv(4096).startswith(b"HTTP/1.1 413 ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # nobody reads the rest
            for _ in range(1000):
                s.sendall(b"\0" * 100_000)


def test_a_body_of_unannounced_length_is_refused_when_it_grows_too_large(running: Service) -> None:
    chunk = b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as s:
        s.sendall(
            b"POST /lip_sync HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
            b'66\r\n--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n\r\n"
        )
        try:
            while sent < 100_000_000:
                s.sendall(chunk)
                sent += 0x10000
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert sent < 50_000_000  # the limit is 5 MB; the rest fits into buffers on the way


def test_triton_killed_in_the_middle_is_a_503_and_comes_back(
    running: Service, short: Path, long: Path, tmp_path: Path
) -> None:
    answers: list[httpx.Response] = []
    seen = len(log_lines(running, "lip_sync received"))
    request = threading.Thread(target=lambda: answers.append(post(running, long)))
    request.start()
    wait_for(lambda: len(log_lines(running, "lip_sync received")) > seen, 20)
    jobs = [submit(running, write_sound(tmp_path / "job.wav", tone(8), 16000))]
    wait_for(lambda: job(running, jobs[0])["progress"] > 0, 20)
    stubs = running.children()
    os.kill(running.triton_pid(), signal.SIGKILL)
    request.join(60)
    wait_for(lambda: not any(is_running(pid) for pid in stubs), 20)
    (answer,) = answers
    assert answer.status_code == 503
    assert answer.json()["kind"] == "triton_unavailable"
    assert int(answer.headers["retry-after"]) > 0
    assert running.http.get("/health/live").status_code == 200
    jobs += [submit(running, short) for _ in range(6)]  # accepted while there is no Triton
    wait_for(lambda: "lipserve_batches_in_flight 0.0" in metrics(running), 20)  # none is forgotten
    wait_for(running.is_ready, 60, lambda: running.log.read_text())
    assert post(running, short).status_code == 200
    wait_for(lambda: all(job(running, name)["state"] == "done" for name in jobs), 60, lambda: running.log.read_text())
    assert [job(running, name)["attempts"] for name in jobs] == [2] + [1] * 6


def test_a_client_that_goes_away_ends_its_work(running: Service, long: Path, short: Path) -> None:
    seen = len(log_lines(running, "lip_sync received"))
    with (
        httpx.Client(base_url=running.http.base_url, timeout=1.5) as impatient,
        long.open("rb") as handle,
        pytest.raises(httpx.ReadTimeout),
    ):
        impatient.post("/lip_sync", data={"avatar_id": "lisa"}, files={"audio": handle})
    wait_for(lambda: len(log_lines(running, "lip_sync received")) > seen, 20)
    wait_for(lambda: '"kind": "cancelled"' in "".join(log_lines(running, "lip_sync answered")), 20)
    wait_for(lambda: 'lipserve_requests_total{endpoint="lip_sync",outcome="cancelled"} 1.0' in metrics(running), 20)
    wait_for(lambda: "lipserve_batches_in_flight 0.0" in metrics(running), 20)
    assert post(running, short).status_code == 200


def test_a_client_that_leaves_a_preparation_leaves_no_avatar(
    running: Service, own_settings: Settings, tmp_path: Path
) -> None:
    from samples import LISA

    with httpx.Client(base_url=running.http.base_url, timeout=1.5) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/prepare_avatar", data={"avatar_id": "left"}, files={"video": LISA.open("rb")})
    wait_for(lambda: '"kind": "cancelled"' in "".join(log_lines(running, "prepare_avatar answered")), 20)
    assert running.http.get("/avatars/left").status_code == 404
    assert not list(own_settings.avatars_dir.glob(".draft*"))


def test_a_client_that_leaves_the_download_leaves_no_file(
    running: Service, own_settings: Settings, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, (2, 480_000))
    sound = write_sound(tmp_path / "noise.wav", noise.astype(np.float32), 48000)
    request = httpx.Request(
        "POST",
        f"{running.http.base_url}/lip_sync",
        data={"avatar_id": "lisa", "fps": "5"},
        files={"audio": sound.read_bytes()},
    )
    request.read()
    head = f"POST /lip_sync HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.sendall(f"{head}Content-Length: {len(request.content)}\r\n\r\n".encode() + request.content)
        assert s.recv(64).startswith(b"HTTP/1.1 200 OK")
    wait_for(lambda: not list(own_settings.work_dir.glob("requests-*/*/")), 10)


def test_ctrl_c_ends_everything_cleanly(own_settings: Settings, tmp_path: Path, running: Service) -> None:
    with service(own_settings, tmp_path / "up.log", work_dir=tmp_path / "work", storage_dir=tmp_path / "storage") as up:
        family = up.children()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(30) == 0
        wait_for(lambda: not any(is_running(pid) for pid in family), 5)
    assert not list((tmp_path / "work").glob("requests-*"))
    assert "Traceback" not in up.log.read_text()


def test_a_gateway_killed_while_it_prepares_loses_nothing(
    own_settings: Settings, tmp_path: Path, clip: Path, short: Path
) -> None:
    from samples import LISA

    settings = Settings(
        **{name: getattr(own_settings, name) for name in own_settings.model_fields_set}
        | {"avatars_dir": tmp_path / "avatars", "work_dir": tmp_path / "work", "storage_dir": tmp_path / "storage"}
    )
    with service(settings, tmp_path / "first.log") as up:
        form = {"avatar_id": "kept"}
        assert up.http.post("/prepare_avatar", data=form, files={"video": clip.open("rb")}).status_code == 201
        before = up.http.get("/avatars/kept").json()
        family = up.children()
        with httpx.Client(base_url=up.http.base_url, timeout=1.0) as other, pytest.raises(httpx.ReadTimeout):
            other.post("/prepare_avatar", data={**form, "force": "true"}, files={"video": LISA.open("rb")})
            raise AssertionError("finished too early to be killed")
        up.process.kill()
        up.process.wait(10)
        wait_for(lambda: not any(is_running(pid) for pid in family), 20)
    with service(settings, tmp_path / "second.log") as up:
        assert up.http.get("/avatars/kept").json() == before
        with short.open("rb") as handle:
            answer = up.http.post("/lip_sync", data={"avatar_id": "kept"}, files={"audio": handle})
        assert answer.status_code == 200


def test_without_triton_it_says_so_and_recovers_by_itself(
    own_settings: Settings, running: Service, exported: Path, tmp_path: Path, short: Path
) -> None:
    port = free_port()
    settings = Settings(
        **{name: getattr(own_settings, name) for name in own_settings.model_fields_set}
        | {"triton_url": f"127.0.0.1:{port}", "work_dir": tmp_path / "work", "storage_dir": tmp_path / "storage"}
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:

        def speak() -> httpx.Response:
            with short.open("rb") as handle:
                return client.post("/lip_sync", data={"avatar_id": "lisa"}, files={"audio": handle})

        answer = speak()
        assert (answer.status_code, answer.json()["kind"]) == (503, "triton_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        with short.open("rb") as handle:
            accepted = client.post("/lip_sync", data={"avatar_id": "lisa", "async": "true"}, files={"audio": handle})

        def stored() -> dict[str, Any]:
            shown: dict[str, Any] = client.get(accepted.headers["location"]).json()
            return shown

        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        assert stored()["state"] == "queued"
        from lipserve.embedded import Ports

        ports = Ports(grpc=port)
        with EmbeddedTriton(exported / "model_repository/cpu", exported / "models", tmp_path / "run", ports):
            wait_for(lambda: client.get("/health/ready").status_code == 200, 30)
            answer = speak()
            assert answer.status_code == 200
            wait_for(lambda: stored()["state"] == "done", 30)
            assert stored()["attempts"] == 1  # it was not even begun before
        assert client.get("/health/ready").status_code == 503
        assert speak().json()["kind"] == "triton_unavailable"


def test_a_full_service_says_no_at_once(
    own_settings: Settings, running: Service, triton: EmbeddedTriton, long: Path, short: Path, tmp_path: Path
) -> None:
    given = {name: getattr(own_settings, name) for name in own_settings.model_fields_set}
    more = {
        "max_concurrent_syncs": 1,
        "max_waiting": 1,
        "work_dir": tmp_path / "work",
        "storage_dir": tmp_path / "storage",
    }
    with service(Settings(**given | more), tmp_path / "up.log", triton_url=triton.grpc_url) as up:
        threads = [threading.Thread(target=post_and_leave, args=(up, long)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(log_lines(up, "lip_sync received")) == 2, 20)
        answer = post(up, short)
        assert (answer.status_code, answer.json()["kind"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) > 0
        for thread in threads:
            thread.join(60)
        wait_for(lambda: post(up, short).status_code == 200, 30)


def post_and_leave(up: Service, audio: Path) -> None:
    with httpx.Client(base_url=up.http.base_url, timeout=4) as client, audio.open("rb") as handle:
        try:
            client.post("/lip_sync", data={"avatar_id": "lisa"}, files={"audio": handle})
        except httpx.ReadTimeout:
            return


def test_several_speak_at_once_and_all_are_exact(running: Service, tmp_path: Path) -> None:
    lengths = [0.4, 0.8, 1.2, 0.6, 1.0, 0.2]
    sounds = [write_sound(tmp_path / f"{i}.wav", tone(s), 16000) for i, s in enumerate(lengths)]
    answers: dict[int, httpx.Response] = {}
    threads = [
        threading.Thread(target=lambda i=i, sound=sound: answers.update({i: post(running, sound)}))
        for i, sound in enumerate(sounds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for i, seconds in enumerate(lengths):
        assert answers[i].status_code == 200, answers[i].text
        file = tmp_path / f"{i}.mp4"
        file.write_bytes(answers[i].content)
        assert facts(file)["frames"] == int(np.floor(round(seconds * 16000) * 25 / 16000))
