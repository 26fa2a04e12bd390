"""Talks over both APIs, on the real Triton: pictures, clips and avatars that say sounds and texts."""

import json
import threading
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from processes import wait_for
from samples import facts, pictures, tone, write_sound

from gateway.app import create_app
from gateway.speech import Text
from gateway.speech.espeak import ESpeak
from lipserve.embedded import EmbeddedTriton
from lipserve.media import read_sound
from lipserve.settings import Settings


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and where its files are served."""

    class Quiet(SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            """What is posted to /x is kept in the file x."""
            body = self.rfile.read(int(self.headers["content-length"]))
            Path(self.translate_path(self.path)).write_bytes(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path_factory.mktemp("web")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield folder, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def talking(
    settings: Settings, triton: EmbeddedTriton, web: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """A gateway of its own, which may fetch from `web`."""
    root = tmp_path_factory.mktemp("talks")
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = {"avatars_dir": root / "avatars", "work_dir": root / "work", "storage_dir": root / "storage"}
    app = create_app(Settings(**given | own | {"fetch_allow": web[1]}), triton.grpc_url)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def save_picture(file: Path, shade: int = 0) -> Path:
    """The bundled person in a still picture; another `shade`, another content."""
    bgr = cv2.cvtColor(pictures(1)[0], cv2.COLOR_YUV2BGR_I420)
    bgr[:4, :4] = shade
    assert cv2.imwrite(str(file), bgr)
    return file


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_picture(tmp_path_factory.mktemp("face") / "anna.jpg")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 frames of it at 25 a second."""
    return write_sound(tmp_path_factory.mktemp("sound") / "a.wav", tone(0.4), 16000)


def send(client: TestClient, path: str, status: int = 201, **files: Path) -> dict[str, Any]:
    response = client.post(path, files={name: (file.name, file.read_bytes()) for name, file in files.items()})
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def order(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/talks", json=body)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    assert list(answer) == ["id", "object", "created_at", "created_by", "status"]
    assert answer["id"].startswith("tlk_") and (answer["object"], answer["status"]) == ("talk", "created")
    return answer


def ended(client: TestClient, talk_id: str, seconds: float = 60) -> dict[str, Any]:
    def now() -> dict[str, Any]:
        shown: dict[str, Any] = client.get(f"/talks/{talk_id}").json()
        return shown

    wait_for(lambda: now()["status"] not in ("created", "started"), seconds)
    return now()


def video(client: TestClient, url: str, tmp_path: Path) -> dict[str, object]:
    answer = client.get(url)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    file = tmp_path / "result.mp4"
    file.write_bytes(answer.content)
    return facts(file) | {"kib": len(answer.content) / 1024}


def lookups(client: TestClient) -> tuple[int, int]:
    """Hits and misses."""
    text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("lipserve_picture_avatar"))
    found = [float(lines[f'lipserve_picture_avatar_lookups_total{{result="{result}"}}']) for result in ("hit", "miss")]
    return int(found[0]), int(found[1])


def test_a_talk_as_did_clients_order_it(talking: TestClient, face: Path, sound: Path, tmp_path: Path) -> None:
    image, audio = send(talking, "/images", image=face), send(talking, "/audios", audio=sound)
    assert audio["duration"] == 0.4
    script = {"type": "audio", "audio_url": audio["url"], "subtitles": "false"}
    config = {"fluent": "false", "stitch": "true", "pad_audio": "0.2"}
    ordered = order(talking, source_url=image["url"], script=script, config=config, user_data="17", name="hi")
    talk = ended(talking, ordered["id"])
    assert (talk["status"], talk["user_data"], talk["name"]) == ("done", "17", "hi")
    assert (talk["source_url"], talk["audio_url"]) == (image["url"], audio["url"])
    assert ordered["created_at"] <= talk["started_at"] <= talk["modified_at"]
    assert talk["duration"] == 0.6
    found = video(talking, talk["result_url"], tmp_path)
    assert (found["frames"], found["size"], found["rate"]) == (15, (512, 512), Fraction(25))
    assert found["video_seconds"] == pytest.approx(0.6)
    metadata = talk["metadata"]
    assert (metadata["num_frames"], metadata["num_faces"], metadata["resolution"]) == (15, 1, [512, 512])
    assert metadata["size_kib"] == pytest.approx(found["kib"], abs=0.01)
    assert 0 < metadata["processing_fps"] < 1000
    assert set(metadata) == {"num_frames", "num_faces", "processing_fps", "resolution", "size_kib"}

    deleted = talking.delete(f"/talks/{ordered['id']}")
    assert (deleted.status_code, deleted.json()["id"]) == (200, ordered["id"])
    assert talking.get(talk["result_url"]).status_code == 404
    missing = talking.get(f"/talks/{ordered['id']}")
    assert (missing.status_code, missing.json()["kind"]) == (404, "NotFoundError")
    assert missing.json()["details"]["kind"] == "job_not_found"


def test_a_text_is_spoken(talking: TestClient, face: Path, tmp_path: Path) -> None:
    said = Text("Hi Anna.", "de-DE-KatjaNeural")
    ESpeak("", 60).say(said, tmp_path / "said.wav", Event())
    speech = read_sound(tmp_path / "said.wav", 60)
    image = send(talking, "/images", image=face)
    provider = {"type": "microsoft", "voice_id": said.voice}
    script = {"type": "text", "input": said.text, "ssml": "false", "provider": provider}
    talk = ended(talking, order(talking, source_url=image["url"], script=script)["id"])
    assert talk["status"] == "done", talk
    samples = -(-speech.length * 16000 // speech.rate)
    assert talk["metadata"]["num_frames"] == samples * 25 // 16000
    assert video(talking, talk["result_url"], tmp_path)["frames"] == talk["metadata"]["num_frames"]
    assert "audio_url" not in talk


def test_silence(talking: TestClient, face: Path) -> None:
    image = send(talking, "/images", image=face)
    talk = ended(talking, order(talking, source_url=image["url"], script={"type": "silence", "duration": 0.4})["id"])
    assert (talk["status"], talk["metadata"]["num_frames"], talk["duration"]) == ("done", 10, 0.4)


def test_a_video_as_self_hosted_services_make_it(
    talking: TestClient, sound: Path, clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files in the form; then the same clip again, by its upload's URL: it is not prepared again."""
    hits, misses = lookups(talking)
    submitted = send(talking, "/generate-video", 200, audio_data=sound, source_image=clip)
    assert list(submitted) == ["id", "status", "result_url", "created_at"]
    assert (submitted["status"], submitted["result_url"]) == ("queued", None)
    first = finished(talking, submitted["id"])
    assert (first["status"], first["progress"], first["error"]) == ("done", 1.0, None)
    assert submitted["created_at"] == first["created_at"] <= first["started_at"] <= first["completed_at"]
    assert video(talking, first["result_url"], tmp_path)["frames"] == 10
    assert lookups(talking) == (hits, misses + 1)

    source = send(talking, "/upload-source-image", 200, file=clip)
    audio = send(talking, "/upload-audio", 200, file=sound)
    assert (source["filename"], source["size"]) == ("clip.mp4", clip.stat().st_size)
    form = {"source_url": source["url"], "audio_url": audio["url"]}
    response = talking.post("/generate-video", data=form)
    second = finished(talking, response.json()["id"])
    assert second["status"] == "done"
    assert lookups(talking) == (hits + 1, misses + 1)
    assert stages(caplog, first["id"]) >= {"fetch", "speech", "decode", "store", "blend"}
    assert not stages(caplog, second["id"]) & {"decode", "store"}

    assert talking.get(f"/talks/{second['id']}").json()["status"] == "done"
    assert talking.get(f"/jobs/{second['id']}").json()["kind"] == "talk"
    assert talking.get("/avatars").json()["avatars"] == []  # whose face it was stays with them


def finished(client: TestClient, talk_id: str) -> dict[str, Any]:
    seen: list[float] = []

    def now() -> dict[str, Any]:
        shown: dict[str, Any] = client.get(f"/talk-status/{talk_id}").json()
        seen.append(shown["progress"])
        return shown

    wait_for(lambda: now()["status"] in ("done", "error"), 60)
    assert seen == sorted(seen) and seen[-1] <= 1
    return now()


def stages(caplog: pytest.LogCaptureFixture, talk_id: str) -> set[str]:
    """Those that the job's log line names."""
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    (line,) = (line for line in lines if line.get("event") == "job ended" and line["job_id"] == talk_id)
    return set(line["stages"])


def test_a_prepared_avatar_speaks(talking: TestClient, clip: Path, sound: Path) -> None:
    response = talking.post("/prepare_avatar", data={"avatar_id": "lisa"}, files={"video": clip.open("rb")})
    assert response.status_code == 201, response.text
    before = lookups(talking)
    audio = send(talking, "/audios", audio=sound)
    script = {"type": "audio", "audio_url": audio["url"]}
    talk = ended(talking, order(talking, source_url="lipserve://avatars/lisa", script=script)["id"])
    assert (talk["status"], talk["metadata"]["num_frames"]) == ("done", 10)
    assert lookups(talking) == before
    assert talking.delete("/avatars/lisa").status_code == 204
    missing = talking.post("/talks", json={"source_url": "lipserve://avatars/lisa", "script": script})
    assert (missing.status_code, missing.json()["details"]["kind"]) == (404, "avatar_not_found")


def test_urls_are_fetched(talking: TestClient, web: tuple[Path, str], sound: Path) -> None:
    folder, address = web
    save_picture(folder / "anna.png", shade=9)
    (folder / "a.wav").write_bytes(sound.read_bytes())
    script = {"type": "audio", "audio_url": f"http://{address}/a.wav"}
    hook = f"http://{address}/hook"
    ordered = order(talking, source_url=f"http://{address}/anna.png", script=script, webhook=hook, user_data="17")
    talk = ended(talking, ordered["id"])
    assert (talk["status"], talk["metadata"]["num_frames"]) == ("done", 10)
    wait_for((folder / "hook").exists, 30)
    told = json.loads((folder / "hook").read_bytes())
    assert told.pop("result_url").startswith(f"http://127.0.0.1:8080/jobs/{ordered['id']}/result?expires=")
    assert told == {name: value for name, value in talk.items() if name != "result_url"}
    missing = ended(talking, order(talking, source_url=f"http://{address}/nobody.png", script=script)["id"])
    assert missing["status"] == "error"
    assert missing["error"]["kind"] == "BadRequestError"
    assert missing["error"]["details"] == {"kind": "fetch_failed"}
    assert "404" in missing["error"]["description"]


def test_a_picture_without_a_face_ends_as_an_error(talking: TestClient, sound: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    assert cv2.imwrite(str(grey), np.full((256, 256, 3), 128, np.uint8))
    image, audio = send(talking, "/images", image=grey), send(talking, "/audios", audio=sound)
    script = {"type": "audio", "audio_url": audio["url"]}
    for _ in range(2):  # nothing of the first is kept
        ordered = order(talking, source_url=image["url"], script=script)
        talk = ended(talking, ordered["id"])
        assert (talk["status"], talk["error"]["details"]) == ("error", {"kind": "no_face"})
        assert talk["error"]["kind"] == "BadRequestError" and "No face" in talk["error"]["description"]
        assert "result_url" not in talk and "metadata" not in talk
    service = talking.get(f"/talk-status/{ordered['id']}").json()
    assert (service["status"], service["error_kind"], service["result_url"]) == ("error", "no_face", None)
    assert "No face" in service["error"]
    assert talking.delete(f"/talks/{ordered['id']}").status_code == 200


def test_an_upload_may_go_while_its_talk_waits(talking: TestClient, face: Path, sound: Path) -> None:
    image, audio = send(talking, "/images", image=face), send(talking, "/audios", audio=sound)
    ordered = order(talking, source_url=image["url"], script={"type": "audio", "audio_url": audio["url"]})
    uploads = talking.app.state.uploads  # type: ignore[attr-defined]
    for upload in (image, audio):
        uploads.delete(upload["id"], "")
    assert ended(talking, ordered["id"])["status"] == "done"


def test_a_talk_being_made_cannot_be_deleted(talking: TestClient, face: Path, tmp_path: Path) -> None:
    long = write_sound(tmp_path / "long.flac", tone(60), 16000)
    image, audio = send(talking, "/images", image=face), send(talking, "/audios", audio=long)
    talk_id = order(talking, source_url=image["url"], script={"type": "audio", "audio_url": audio["url"]})["id"]
    wait_for(lambda: talking.get(f"/talks/{talk_id}").json()["status"] == "started", 30)
    refused = talking.delete(f"/talks/{talk_id}")
    assert (refused.status_code, refused.json()["kind"]) == (409, "ConflictError")
    assert talking.delete(f"/jobs/{talk_id}").status_code == 202  # cancelled
    talk = ended(talking, talk_id)
    assert (talk["status"], talk["error"]["details"]) == ("rejected", {"kind": "cancelled"})
    assert talking.get(f"/talk-status/{talk_id}").json()["error_kind"] == "cancelled"
    assert talking.delete(f"/talks/{talk_id}").status_code == 200


def test_one_that_waits_can_be_deleted(talking: TestClient, face: Path, tmp_path: Path) -> None:
    long = write_sound(tmp_path / "long.flac", tone(60), 16000)
    image, audio = send(talking, "/images", image=face), send(talking, "/audios", audio=long)
    body = {"source_url": image["url"], "script": {"type": "audio", "audio_url": audio["url"]}}
    ids = [order(talking, **body)["id"] for _ in range(5)]  # four are worked on at once
    wait_for(lambda: [s for s in states(talking, ids) if s == "started"] == ["started"] * 4, 30)
    (waiting,) = (talk_id for talk_id, state in zip(ids, states(talking, ids), strict=True) if state == "created")
    assert talking.delete(f"/talks/{waiting}").status_code == 200
    assert talking.get(f"/talks/{waiting}").status_code == 404
    for talk_id in ids:
        talking.delete(f"/jobs/{talk_id}")
    wait_for(lambda: not set(states(talking, ids)) & {"started", "created"}, 30)


def states(client: TestClient, ids: list[str]) -> list[str]:
    return [client.get(f"/talks/{talk_id}").json().get("status", "gone") for talk_id in ids]


def test_the_list_in_pages(talking: TestClient, face: Path) -> None:
    image = send(talking, "/images", image=face)
    script = {"type": "silence", "duration": 0.1}
    ids = [order(talking, source_url=image["url"], script=script)["id"] for _ in range(3)]
    for talk_id in ids:
        ended(talking, talk_id)
    first = talking.get("/talks", params={"limit": "2"}).json()
    assert [talk["id"] for talk in first["talks"]] == ids[:0:-1]
    second = talking.get("/talks", params={"limit": "2", "token": first["token"]}).json()
    assert second["talks"][0]["id"] == ids[0]
    everything = talking.get("/talks").json()
    assert "token" not in everything and len(everything["talks"]) >= 3
    assert all(talk["object"] == "talk" for talk in everything["talks"])


def error_of(response: Any) -> tuple[int, str, str]:
    body = response.json()
    assert set(body) == {"kind", "description", "details"} and body["details"]["request_id"]
    return response.status_code, body["kind"], body["details"]["kind"]


AUDIO = {"type": "audio", "audio_url": "https://example.com/a.mp3"}
FACE = "https://example.com/a.jpg"
BAD = (400, "BadRequestError", "invalid_parameter")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, BAD),
        ({"source_url": FACE}, BAD),
        ({"source_url": FACE, "script": AUDIO, "driver_url": "bank://lively"}, BAD),
        ({"source_url": FACE, "script": AUDIO, "\ud800": 1}, BAD),
        ({"source_url": FACE, "script": AUDIO, "x" * 5000: 1}, BAD),
        ({"source_url": FACE, "script": {"type": "text", "input": "?!"}}, BAD),
        ({"source_url": FACE, "script": {"type": "text", "input": "a " * 2501}}, BAD),
        ({"source_url": FACE, "script": {"type": "text", "input": "a", "provider": {"voice_id": "Nobody"}}}, BAD),
        (
            {"source_url": FACE, "script": {"type": "text", "input": '<audio src="/etc/passwd"/>a', "ssml": True}},
            BAD,
        ),
        ({"source_url": FACE, "script": {"type": "silence", "duration": 901}}, BAD),
        ({"source_url": "http://127.0.0.1:9/a.jpg", "script": AUDIO}, (400, "BadRequestError", "url_not_allowed")),
        ({"source_url": "file:///etc/passwd", "script": AUDIO}, (404, "NotFoundError", "upload_not_found")),
        ({"source_url": "../../etc/passwd", "script": AUDIO}, (404, "NotFoundError", "upload_not_found")),
        ({"source_url": "lipserve://avatars/../x", "script": AUDIO}, (400, "BadRequestError", "invalid_avatar_id")),
        ({"source_url": FACE, "script": {**AUDIO, "audio_url": "lipserve://avatars/lisa"}}, BAD),
        (
            {"source_url": FACE, "script": AUDIO, "webhook": "http://169.254.169.254/"},
            (400, "BadRequestError", "url_not_allowed"),
        ),
    ],
)
def test_bad_orders_are_refused_at_once(
    talking: TestClient, body: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    before = len(talking.get("/talks").json()["talks"])
    headers = {"content-type": "application/json"}
    assert error_of(talking.post("/talks", content=json.dumps(body), headers=headers)) == expected
    assert len(talking.get("/talks").json()["talks"]) == before


def test_other_errors_in_their_form(talking: TestClient, sound: Path, face: Path, tmp_path: Path) -> None:
    broken = talking.post("/talks", content=b'{"source_url": ', headers={"content-type": "application/json"})
    assert error_of(broken) == BAD
    assert error_of(talking.put("/talks")) == (405, "MethodNotAllowedError", "method_not_allowed")
    assert error_of(talking.get("/talks/tlk_nobody")) == (404, "NotFoundError", "job_not_found")
    assert error_of(talking.delete(f"/talks/tlk_{'0' * 32}")) == (404, "NotFoundError", "job_not_found")
    assert error_of(talking.get("/talks", params={"limit": 0})) == BAD
    assert error_of(talking.get("/talks", params={"token": "x"})) == BAD
    assert error_of(talking.post("/images")) == BAD
    as_image = talking.post("/images", files={"image": sound.read_bytes()})
    assert error_of(as_image) == (400, "BadRequestError", "not_a_video")
    as_audio = talking.post("/audios", files={"audio": face.read_bytes()})
    assert error_of(as_audio) == (400, "BadRequestError", "not_audio")
    large = talking.post("/images", files={"image": bytes(6_000_000)})
    assert error_of(large) == (413, "PayloadTooLargeError", "payload_too_large")
    audio, image = send(talking, "/audios", audio=sound), send(talking, "/images", image=face)
    swapped = {"source_url": audio["url"], "script": {"type": "audio", "audio_url": image["url"]}}
    assert error_of(talking.post("/talks", json=swapped)) == BAD


def test_errors_of_the_service_endpoints_in_ours(talking: TestClient, sound: Path, face: Path) -> None:
    both = talking.post("/generate-video", data={"audio_url": AUDIO["audio_url"], "source_url": ""})
    assert (both.status_code, both.json()["kind"]) == (422, "invalid_parameter")
    assert "source_url and source_image" in both.json()["message"]
    unknown = talking.post("/generate-video", data={"audio_url": "a", "source_url": "b", "fps": "25"})
    assert unknown.json()["message"] == "There is no field 'fps'."
    assert talking.get("/talk-status/job_1").json()["kind"] == "job_not_found"
    damaged = face.read_bytes()[:200]
    refused = talking.post("/upload-source-image", files={"file": ("a.jpg", damaged)})
    assert (refused.status_code, refused.json()["kind"]) == (422, "not_a_video")
    assert "picture" in refused.json()["message"]


def test_a_full_queue(talking: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talking.app.state.jobs, "_max_waiting", 0)  # type: ignore[attr-defined]
    full = talking.post("/talks", content=b"not even read")
    assert error_of(full) == (429, "TooManyRequestsError", "queue_full")
    assert int(full.headers["retry-after"]) >= 1
    ours = talking.post("/generate-video", content=b"not even read")
    assert (ours.status_code, ours.json()["kind"]) == (429, "queue_full")
    assert talking.get("/talks").status_code == 200


def test_other_jobs_are_no_talks(talking: TestClient, clip: Path) -> None:
    data = {"avatar_id": "job", "async": "true"}
    job = talking.post("/prepare_avatar", data=data, files={"video": clip.open("rb")}).json()
    assert talking.get(f"/talks/{job['id']}").status_code == 404
    assert talking.get(f"/talk-status/{job['id']}").status_code == 404
    assert job["id"] not in [talk["id"] for talk in talking.get("/talks").json()["talks"]]
    wait_for(lambda: talking.get(f"/jobs/{job['id']}").json()["state"] == "done", 60)
    assert talking.delete("/avatars/job").status_code == 204
