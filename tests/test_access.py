"""Who comes in: keys, links, limits and origins, on the real gateway; what the logs say of it."""

import asyncio
import io
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from processes import environment, free_port, service
from samples import tone, write_sound
from starlette.responses import JSONResponse
from starlette.types import Message

from gateway import keys
from gateway.access import Access
from gateway.app import create_app
from gateway.jobs import JobService
from gateway.key_limits import KeyLimits
from gateway.keys import Keys
from gateway.links import Links
from lipserve.embedded import EmbeddedTriton
from lipserve.errors import LipserveError
from lipserve.settings import Settings


def changed(settings: Settings, root: Path, **more: object) -> Settings:
    """With folders of its own."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = {"avatars_dir": root / "avatars", "work_dir": root / "work", "storage_dir": root / "storage"}
    return Settings(**given | own | more)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(file: Path) -> str:
    return keys.add(file, "me")


@pytest.fixture(scope="module")
def guarded(settings: Settings, file: Path, key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A gateway that asks for keys. There is no Triton: nobody gets that far."""
    own = changed(settings, tmp_path_factory.mktemp("guarded"), keys_file=file, cors_origins="https://app.example.org")
    with TestClient(create_app(own, f"127.0.0.1:{free_port()}"), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/avatars", "/avatars/x", "/jobs", "/nothing", "/health/", "/docsx", "/metrics/x", "//health"]
)
def test_without_a_key_nothing_is_answered_not_even_what_there_is(guarded: TestClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"):
        answer = guarded.request(method, path, follow_redirects=False)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    body = guarded.get(path).json()
    assert body.keys() == {"kind", "message", "hint", "request_id"}
    assert body["kind"] == "unauthorized"


def test_what_needs_no_key(guarded: TestClient) -> None:
    assert guarded.get("/health/live").status_code == 200
    assert guarded.get("/health/ready").status_code == 503  # no Triton: its own answer
    assert guarded.get("/health").json()["service"] == "lipserve"
    assert "lipserve_requests_total" in guarded.get("/metrics").text
    for path in ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
        assert guarded.get(path).status_code == 200, path
    assert guarded.get("/static-offline-docs/..%2f..%2f..%2fetc/passwd").status_code == 404


def test_a_key_lets_in_and_a_wrong_one_does_not(guarded: TestClient, key: str) -> None:
    for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"Authorization": f"Basic {key}"}):
        assert guarded.get("/avatars", headers=headers).json() == {"avatars": []}
    assert guarded.get("/avatars", auth=(key, "")).status_code == 200
    assert guarded.get("/avatars", auth=("me", key)).status_code == 200
    for headers in ({"Authorization": f"Bearer {key}x"}, {"X-API-Key": "me"}, {"Authorization": "Basic"}):
        assert guarded.get("/avatars", headers=headers).status_code == 401


def test_a_removed_key_is_refused_from_the_next_request_on(guarded: TestClient, file: Path) -> None:
    headers = {"X-API-Key": keys.add(file, "leaver")}
    assert guarded.get("/avatars", headers=headers).status_code == 200
    keys.remove(file, "leaver")
    assert guarded.get("/avatars", headers=headers).status_code == 401


def test_the_description_says_where_a_key_goes(guarded: TestClient, client: TestClient) -> None:
    described = guarded.get("/openapi.json").json()
    assert described["security"] == [{"bearer": []}, {"basic": []}, {"header": []}]
    assert set(described["components"]["securitySchemes"]) == {"bearer", "basic", "header"}
    assert described["paths"]["/health"]["get"]["security"] == []
    assert "security" not in described["paths"]["/avatars"]["get"]
    assert "security" not in client.get("/openapi.json").json()


def test_a_signed_link_opens_its_path_for_reading_and_no_other(guarded: TestClient, key: str) -> None:
    signer: Links = guarded.app.state.links  # type: ignore[attr-defined]
    path, query = signer.sign("/avatars").split("?")
    assert guarded.get(f"{path}?{query}").json() == {"avatars": []}
    assert guarded.head(f"{path}?{query}").status_code == 405  # let in: this endpoint has no HEAD
    assert guarded.post(f"{path}?{query}").status_code == 401
    assert guarded.delete(f"{path}?{query}").status_code == 401
    for other in ("/avatars/x", "/avatars/", "/avatars//"):
        assert guarded.get(f"{other}?{query}", follow_redirects=False).json()["kind"] == "link_expired"
    expired = Links(guarded.app.state.settings.storage_dir.joinpath("links.secret").read_bytes(), -1).sign(path)  # type: ignore[attr-defined]
    answer = guarded.get(expired)
    assert (answer.status_code, answer.json()["kind"]) == (403, "link_expired")
    assert "expired" in answer.json()["message"]
    assert guarded.get(expired, headers={"X-API-Key": key}).status_code == 200  # the key is enough


def test_one_key_sees_nothing_of_anothers_jobs(guarded: TestClient, file: Path, key: str) -> None:
    """There is no Triton, so that queued jobs stay queued."""
    jobs: JobService = guarded.app.state.jobs  # type: ignore[attr-defined]
    queued = jobs.submit("lip_sync", {}, "me")
    talk = jobs.submit("talk", {"shown": {}, "source_url": "lipserve://avatars/x"}, "me", prefix="tlk_")
    done = replace(queued, id="job_" + "1" * 32, state="done", progress=1.0, completed_at=queued.created_at)
    jobs.store.insert(done)
    jobs.folders.create(done.id).joinpath("result.mp4").write_bytes(b"video")
    mine, theirs = {"X-API-Key": key}, {"X-API-Key": keys.add(file, "stranger")}

    paths = [f"/jobs/{job.id}{rest}" for job in (queued, talk, done) for rest in ("", "/events", "/result")]
    for path in [*paths, f"/talks/{talk.id}", f"/talk-status/{talk.id}"]:
        assert guarded.get(path, headers=theirs).status_code == 404, path
    for path in [*(f"/jobs/{job.id}" for job in (queued, talk, done)), f"/talks/{talk.id}"]:
        assert guarded.delete(path, headers=theirs).status_code == 404, path
    assert guarded.get("/jobs", headers=theirs).json()["jobs"] == []
    assert guarded.get("/talks", headers=theirs).json()["talks"] == []

    shown = {job["id"]: job for job in guarded.get("/jobs", headers=mine).json()["jobs"]}
    assert {name: job["state"] for name, job in shown.items()} == {
        queued.id: "queued",
        talk.id: "queued",
        done.id: "done",
    }
    result = f"/jobs/{done.id}/result"
    assert guarded.get(result, headers=mine).content == b"video"
    link = urlsplit(shown[done.id]["result_url"])
    for method in ("GET", "HEAD"):
        answer = guarded.request(method, f"{link.path}?{link.query}", headers=theirs)  # whoever has the link
        assert (answer.status_code, answer.headers["content-length"]) == (200, "5")
        assert answer.headers["cache-control"] == "private"
    assert guarded.get(f"/jobs/{queued.id}/result?{link.query}", headers=theirs).status_code == 404
    assert guarded.get(f"/jobs/{queued.id}/result?{link.query}").json()["kind"] == "link_expired"
    for job in (queued, talk):
        assert guarded.delete(f"/jobs/{job.id}", headers=mine).status_code == 202
    keys.remove(file, "stranger")


def test_origins_that_are_named_may_read_answers_and_ask_without_a_key_whether(guarded: TestClient, key: str) -> None:
    asking = {"Origin": "https://app.example.org", "Access-Control-Request-Method": "POST"}
    asked = guarded.options("/lip_sync", headers=asking | {"Access-Control-Request-Headers": "authorization,prefer"})
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://app.example.org"
    stranger = asking | {"Origin": "https://evil.example.org"}
    assert "access-control-allow-origin" not in guarded.options("/lip_sync", headers=stranger).headers
    for headers, status in (({"X-API-Key": key}, 200), ({}, 401)):
        answer = guarded.get("/avatars", headers=headers | {"Origin": "https://app.example.org"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
            status,
            "https://app.example.org",
        )
        assert answer.headers["access-control-expose-headers"] == "Location, Retry-After, X-Request-Id"
        assert "access-control-allow-credentials" not in answer.headers


def test_no_origin_is_allowed_unless_it_is_named(client: TestClient) -> None:
    answer = client.get("/avatars", headers={"Origin": "https://app.example.org"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_no_key_is_ever_logged(guarded: TestClient, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    (handler,) = (h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler)
    monkeypatch.setattr(handler, "stream", written)
    signature = guarded.app.state.links.sign("/avatars").split("signature=")[1]  # type: ignore[attr-defined]
    for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"Authorization": f"Basic user:{key}"}):
        assert guarded.get("/avatars/none", headers=headers).status_code == 404
        assert guarded.post("/lip_sync", headers=headers, data={"avatar_id": "none"}).status_code == 404
    assert guarded.get("/avatars", headers={"X-API-Key": key + "0"}).status_code == 401
    assert guarded.get(f"/avatars?expires=1&signature={signature}").status_code == 403
    # Without what the test's own client says of itself.
    text = "".join(line for line in written.getvalue().splitlines(True) if "http://testserver" not in line)
    assert '"owner": "me"' in text and "401 unauthorized" in text and "403 link_expired" in text
    for secret in (key, keys._hash(key), signature):
        assert secret not in text


# -- what the application is told, and limits, on a small application --------------------------------------------------


def answer(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, LipserveError)
    return JSONResponse({"kind": exc.kind, "retry_after": exc.retry_after}, exc.status)


def small(known: Keys | None, limits: KeyLimits) -> FastAPI:
    app = FastAPI()
    app.state.links = Links(b"secret", 60)
    app.state.gate = asyncio.Event()

    @app.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
    async def show(request: Request, path: str) -> dict[str, str]:
        if path == "slow":
            await request.app.state.gate.wait()
        return {"owner": request.state.owner, "signed_path": request.state.signed_path}

    app.add_middleware(Access, known, limits, answer)
    return app


def test_the_application_learns_whose_request_it_is(file: Path, key: str) -> None:
    app = small(Keys(file), KeyLimits(0, 0))
    client = TestClient(app)
    signed = app.state.links.sign("/jobs/1/result")
    assert client.get("/x", headers={"X-API-Key": key}).json() == {"owner": "me", "signed_path": ""}
    assert client.get(signed).json() == {"owner": "", "signed_path": "/jobs/1/result"}
    assert client.get(signed, headers={"X-API-Key": key}).json() == {"owner": "me", "signed_path": "/jobs/1/result"}
    assert client.get("/health", headers={"X-API-Key": key}).json() == {"owner": "", "signed_path": ""}


def test_without_keys_everybody_is_nobody_and_links_still_expire() -> None:
    app = small(None, KeyLimits(0, 0))
    client = TestClient(app)
    assert client.get("/x", headers={"X-API-Key": "whatever"}).json() == {"owner": "", "signed_path": ""}
    signed = app.state.links.sign("/x")
    assert client.get(signed).json() == {"owner": "", "signed_path": "/x"}
    assert client.get(signed + "x").json()["kind"] == "link_expired"
    assert client.post(signed + "x").status_code == 200  # no link: links are for reading


def test_every_call_counts_but_downloads_and_health(file: Path, key: str) -> None:
    app = small(Keys(file), KeyLimits(3, 0))
    client = TestClient(app, headers={"X-API-Key": key})
    signed = app.state.links.sign("/x")
    for _ in range(5):
        assert client.get("/jobs/1/result").status_code == 200
        assert client.get("/health").status_code == 200
    for method in ("GET", "POST", "DELETE"):
        assert client.request(method, "/jobs/1").status_code == 200
    refused = client.get("/jobs/1")
    assert (refused.status_code, refused.json()["kind"]) == (429, "rate_limited")
    assert 1 <= refused.json()["retry_after"] <= 60
    assert client.get("/jobs/1/result").status_code == 200
    assert TestClient(app).get(signed).status_code == 200
    other = keys.add(file, "other")
    assert client.get("/jobs/1", headers={"X-API-Key": other}).status_code == 200
    keys.remove(file, "other")


def test_posts_in_progress_count_until_they_are_answered_and_jobs_with_them(file: Path, key: str) -> None:
    app = small(Keys(file), KeyLimits(0, 2))
    active = {"me": 0}
    app.state.active_jobs = lambda owner: active[owner]

    async def story() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers={"X-API-Key": key}) as client:
            async with asyncio.timeout(20), anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(client.post, "/slow")
                while (await client.post("/quick")).status_code != 429:
                    await asyncio.sleep(0.01)
                assert (await client.get("/quick")).status_code == 200  # only what makes work
                app.state.gate.set()
            assert (await client.post("/quick")).status_code == 200
            active["me"] = 2
            refused = await client.post("/quick")
            assert (refused.status_code, refused.json()["kind"]) == (429, "rate_limited")
            active["me"] = 1
            assert (await client.post("/quick")).status_code == 200

    asyncio.run(story())


def test_a_refused_body_is_not_read_and_a_websocket_is_closed(file: Path) -> None:
    app = small(Keys(file), KeyLimits(0, 0))
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("it was read")

    async def send(message: Message) -> None:
        sent.append(message)

    base = {"path": "/lip_sync", "raw_path": b"/lip_sync", "query_string": b"", "headers": [(b"content-length", b"9")]}
    asyncio.run(app({"type": "http", "method": "POST", "scheme": "http", **base}, receive, send))
    assert sent[0]["status"] == 401
    sent.clear()
    asyncio.run(app({"type": "websocket", "scheme": "ws", **base}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


# -- a real process ----------------------------------------------------------------------------------------------------


def test_with_a_real_server_keys_come_and_go_and_limits_hold(
    settings: Settings, triton: EmbeddedTriton, clip: Path, tmp_path: Path
) -> None:
    file, log = tmp_path / "keys.json", tmp_path / "up.log"
    own = changed(settings, tmp_path, keys_file=file, rate_limit=6, key_concurrency=1)
    with service(own, log, triton_url=triton.grpc_url, triton_metrics_url=triton.metrics_url) as up:
        assert "nobody is let in" in log.read_text()
        command = [sys.executable, "-m", "lipserve", "keys", "add", "me"]
        added = subprocess.run(command, env=environment(own), capture_output=True, text=True, check=True)
        key = added.stdout.strip()
        with socket.create_connection(("127.0.0.1", up.port), timeout=20) as s:  # answered before the body is sent
            s.sendall(b"POST /lip_sync HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n")
            s.sendall(b"Content-Length: 4000000\r\n\r\n")
            assert s.recv(4096).startswith(b"HTTP/1.1 401 ")
        files = {"video": ("me.mp4", clip.read_bytes())}
        prepared = up.http.post("/prepare_avatar", data={"avatar_id": "me"}, files=files, auth=(key, ""))
        assert prepared.status_code == 201
        sound = write_sound(tmp_path / "a.wav", tone(0.4), 16000).read_bytes()
        said = up.http.post("/lip_sync", data={"avatar_id": "me"}, files={"audio": sound}, headers={"X-API-Key": key})
        assert said.status_code == 200
        assert b"moov" in said.content
        statuses = [up.http.get("/avatars", headers={"X-API-Key": key}).status_code for _ in range(5)]
        assert statuses == [200] * 4 + [429]
        refused = up.http.get("/avatars", headers={"Authorization": f"Bearer {key}"})
        assert refused.json()["kind"] == "rate_limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        health = up.http.get("/health").json()
        assert (health["status"], health["device"]) == ("healthy", "cpu")
    written = log.read_text()
    assert '"owner": "me"' in written
    assert key not in written
