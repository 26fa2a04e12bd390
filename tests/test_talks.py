"""Talks over both APIs, on the real Triton: pictures, clips and avatars that say sounds and texts."""

import io
import json
import shutil
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
from fastapi import UploadFile
from fastapi.testclient import TestClient
from processes import wait_for
from receiver import Receiver, receiving
from samples import facts, pictures, tone, write_sound

from gateway import delivery, service_routes
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
def bucket() -> Iterator[Receiver]:
    """Where videos may be sent."""
    with receiving() as receiver:
        yield receiver


def own_settings(settings: Settings, root: Path, **more: object) -> Settings:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = {"avatars_dir": root / "avatars", "work_dir": root / "work", "storage_dir": root / "storage"}
    return Settings(**given | own | more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def talking(
    settings: Settings,
    triton: EmbeddedTriton,
    web: tuple[Path, str],
    bucket: Receiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TestClient]:
    """A gateway of its own, which may fetch from `web` and send to `bucket`."""
    own = own_settings(settings, tmp_path_factory.mktemp("talks"), fetch_allow=f"{web[1]},{bucket.host}")
    app = create_app(own, triton.grpc_url)
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
    assert (talk["config"], "webhook" in talk) == ({"fluent": False, "stitch": True, "pad_audio": 0.2}, False)
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
    assert "ignored" not in talk

    spoken = talking.get(talk["audio_url"])
    assert (spoken.status_code, spoken.headers["content-type"]) == (200, "audio/wav")
    assert spoken.content == (tmp_path / "said.wav").read_bytes()
    assert talking.head(talk["audio_url"]).headers["content-length"] == str(len(spoken.content))
    assert talking.get(talk["audio_url"], headers={"range": "bytes=4-7"}).status_code == 206
    forged = talking.get(talk["audio_url"] + "x")
    assert (forged.status_code, forged.json()["details"]["kind"]) == (403, "link_expired")
    assert talking.delete(f"/talks/{talk['id']}").status_code == 200
    assert talking.get(talk["audio_url"]).json()["kind"] == "NotFoundError"


def test_a_talk_without_a_text_has_no_speech_of_its_own(talking: TestClient, face: Path) -> None:
    image = send(talking, "/images", image=face)
    talk = ended(talking, order(talking, source_url=image["url"], script={"type": "silence", "duration": 0.2})["id"])
    assert (talk["status"], "audio_url" in talk) == ("done", False)
    missing = talking.get(f"/talks/{talk['id']}/audio")
    assert (missing.status_code, missing.json()["details"]["kind"]) == (404, "job_not_found")
    assert talking.get("/talks/tlk_nobody/audio").status_code == 404


def test_what_made_no_difference_is_said(talking: TestClient, face: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = send(talking, "/images", image=face)
    provider = {"type": "amazon", "voice_id": "Joanna", "voice_config": {"rate": "0.5"}}
    script = {"type": "text", "input": "Hi.", "provider": provider}
    config = {"fluent": "true", "logo": "false", "driver_expressions": {"transition_frames": 20}}
    ordered = order(talking, source_url=image["url"], script=script, config=config, driver_url="bank://lively/")
    talk = ended(talking, ordered["id"])
    assert talk["status"] == "done", talk
    assert sorted(talk["ignored"]) == [
        "config.driver_expressions",
        "driver_url",
        "script.provider.voice_config",
        "script.provider.voice_id",
    ]
    assert talk["config"] == {"fluent": True, "logo": False}
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    assert [line["voice"] for line in lines if "not known here" in line["event"]] == ["Joanna"]


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
    assert talk["webhook"] == hook
    if shutil.which("espeak-ng"):
        text, hook = {"type": "text", "input": "Hello."}, f"http://{address}/hook-of-a-text"
        spoken = ended(
            talking, order(talking, source_url=f"http://{address}/anna.png", script=text, webhook=hook)["id"]
        )
        wait_for((folder / "hook-of-a-text").exists, 30)
        told = json.loads((folder / "hook-of-a-text").read_bytes())
        assert told["audio_url"].startswith(f"http://127.0.0.1:8080/talks/{spoken['id']}/audio?expires=")
    missing = ended(talking, order(talking, source_url=f"http://{address}/nobody.png", script=script)["id"])
    assert missing["status"] == "error"
    assert missing["error"]["kind"] == "BadRequestError"
    assert missing["error"]["details"] == {"kind": "fetch_failed"}
    assert "404" in missing["error"]["description"]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch, bucket: Receiver) -> Receiver:
    """`bucket`, empty; no attempt is waited for."""
    monkeypatch.setattr(delivery, "WAITS", (0.01, 0.01))
    for kept in (bucket.got, bucket.methods, bucket.answers):
        kept.clear()  # type: ignore[attr-defined]
    return bucket


@pytest.mark.parametrize("answers", [[200], [500, 503, 201], [429, 204]])
def test_a_video_is_sent_to_where_it_is_wanted(
    talking: TestClient, at_once: Receiver, face: Path, caplog: pytest.LogCaptureFixture, answers: list[int]
) -> None:
    at_once.answers += answers
    image, target = send(talking, "/images", image=face), f"http://{at_once.host}/talk.mp4?signature=x"
    script = {"type": "silence", "duration": 0.4}
    talk = ended(talking, order(talking, source_url=image["url"], script=script, result_url=target)["id"])
    assert talk["status"] == "done", talk
    assert talk["result_url"].startswith(f"http://testserver/jobs/{talk['id']}/result?")
    kept = talking.get(talk["result_url"]).content
    assert at_once.methods == ["PUT"] * len(answers)
    for headers, body in at_once.got:
        assert body == kept
        assert headers["content-type"] == "video/mp4"
        assert headers["content-length"] == str(len(kept))
    assert "deliver" in stages(caplog, talk["id"])
    assert talking.get(f"/jobs/{talk['id']}").json()["stage"] == "deliver"


@pytest.mark.parametrize(
    ("answers", "said"), [([403], "answered 403"), ([302], "answered 302"), ([500, 503, 500], "answered 500")]
)
def test_a_video_that_cannot_be_sent_ends_as_an_error(
    talking: TestClient, at_once: Receiver, face: Path, answers: list[int], said: str
) -> None:
    at_once.answers += answers
    image, script = send(talking, "/images", image=face), {"type": "silence", "duration": 0.4}
    ordered = order(talking, source_url=image["url"], script=script, result_url=f"http://{at_once.host}/a.mp4")
    talk = ended(talking, ordered["id"])
    assert (talk["status"], talk["error"]["details"]) == ("error", {"kind": "delivery_failed"})
    assert said in talk["error"]["description"] and "result_url" not in talk
    assert len(at_once.got) == len(answers)


def test_a_server_that_follows_no_urls_sends_no_videos(
    settings: Settings, triton: EmbeddedTriton, at_once: Receiver, tmp_path: Path
) -> None:
    own = own_settings(settings, tmp_path, fetch_urls=False, fetch_allow=at_once.host)
    with TestClient(create_app(own, triton.grpc_url)) as client:
        body = {"source_url": "lipserve://avatars/x", "script": {"type": "silence", "duration": 1}}
        refused = client.post("/talks", json=body | {"result_url": f"http://{at_once.host}/a.mp4"})
        assert error_of(refused) == (400, "BadRequestError", "url_not_allowed")
        assert client.get("/talks").json()["talks"] == []
    assert at_once.got == []


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
MALFORMED = (400, "ValidationError", "invalid_parameter")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, MALFORMED),
        ({"source_url": FACE}, MALFORMED),
        ({"script": AUDIO}, MALFORMED),
        ({"source_url": FACE, "script": AUDIO, "driver_url": FACE}, MALFORMED),
        ({"source_url": FACE, "script": AUDIO, "config": {"logo": {"url": FACE}}}, MALFORMED),
        ({"source_url": FACE, "script": AUDIO, "\ud800": 1}, MALFORMED),
        ({"source_url": FACE, "script": AUDIO, "x" * 5000: 1}, MALFORMED),
        (
            {"source_url": FACE, "script": AUDIO, "result_url": "http://127.0.0.1:9/put"},
            (400, "BadRequestError", "url_not_allowed"),
        ),
        ({"source_url": FACE, "script": {"type": "text", "input": "?!"}}, BAD),
        ({"source_url": FACE, "script": {"type": "text", "input": "a " * 2501}}, BAD),
        ({"source_url": FACE, "script": {"type": "text", "input": "a", "provider": {"voice_id": "qq-QQ-A"}}}, BAD),
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
    assert error_of(broken) == MALFORMED
    assert broken.json()["description"] == "validation failed"
    assert broken.json()["details"]["body"] == {"message": "JSON decode error"}
    missing = talking.post("/talks", json={"source_url": FACE})
    assert set(missing.json()["details"]) == {"kind", "request_id", "body.script"}
    assert error_of(talking.put("/talks")) == (405, "MethodNotAllowedError", "method_not_allowed")
    assert error_of(talking.get("/talks/tlk_nobody")) == (404, "NotFoundError", "job_not_found")
    assert error_of(talking.delete(f"/talks/tlk_{'0' * 32}")) == (404, "NotFoundError", "job_not_found")
    assert error_of(talking.get("/talks", params={"limit": 0})) == MALFORMED
    assert error_of(talking.get("/talks", params={"token": "x"})) == BAD
    assert error_of(talking.post("/images")) == MALFORMED
    as_image = talking.post("/images", files={"image": sound.read_bytes()})
    assert error_of(as_image) == (400, "BadRequestError", "not_a_video")
    as_audio = talking.post("/audios", files={"audio": face.read_bytes()})
    assert error_of(as_audio) == (400, "BadRequestError", "not_audio")
    large = talking.post("/images", files={"image": bytes(6_000_000)})
    assert error_of(large) == (413, "PayloadTooLargeError", "payload_too_large")
    audio, image = send(talking, "/audios", audio=sound), send(talking, "/images", image=face)
    swapped = {"source_url": audio["url"], "script": {"type": "audio", "audio_url": image["url"]}}
    assert error_of(talking.post("/talks", json=swapped)) == BAD


def test_an_order_of_many_megabytes_is_not_parsed(talking: TestClient) -> None:
    """The gateway takes 5 MB; of JSON, which is read on the event loop, less."""
    body = json.dumps({"source_url": FACE, "script": {"type": "text", "input": "a" * 2_000_000}}).encode()
    headers = {"content-type": "application/json"}
    large = (413, "PayloadTooLargeError", "payload_too_large")
    for content in (body, iter([body[:10], body[10:]])):  # of a length that is told, and one that is not
        refused = talking.post("/talks", content=content, headers=headers)
        assert error_of(refused) == large
        assert "2 MB" in refused.json()["description"] and "MAX_UPLOAD" not in refused.json()["description"]
    almost = talking.post("/talks", content=body.replace(b"aaaaaaaaaa", b"a"), headers=headers)
    assert error_of(almost) == MALFORMED  # read, and too long a text
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert error_of(talking.post("/talks", content=b"x" * 4_000_000, headers=form)) == BAD
    other = talking.post("/generate-video", data={"source_url": "x" * 2_100_000})
    assert (other.status_code, other.json()["kind"]) == (413, "payload_too_large")


def test_nothing_is_left_of_files_that_came_with_an_order(talking: TestClient, face: Path, sound: Path) -> None:
    uploads = talking.app.state.uploads  # type: ignore[attr-defined]
    before = uploads.list()
    done = finished(talking, send(talking, "/generate-video", 200, audio_data=sound, source_image=face)["id"])
    assert done["status"] == "done", done
    assert uploads.list() == before
    assert send(talking, "/generate-video", 422, source_image=face, audio_data=face)["kind"] == "not_audio"
    assert uploads.list() == before
    missing = {"source_url": "lipserve://images/img_" + "0" * 32}
    refused = talking.post("/generate-video", data=missing, files={"audio_data": sound.read_bytes()})
    assert (refused.status_code, refused.json()["kind"]) == (404, "upload_not_found")
    assert uploads.list() == before


def test_a_file_wins_over_a_url(talking: TestClient, face: Path, sound: Path) -> None:
    urls = {"source_url": "http://127.0.0.1:9/a.jpg", "audio_url": "http://127.0.0.1:9/a.wav"}
    files = {"source_image": face.read_bytes(), "audio_data": sound.read_bytes()}
    answer = talking.post("/generate-video", data=urls, files=files)
    assert answer.status_code == 200, answer.text
    assert finished(talking, answer.json()["id"])["status"] == "done"


@pytest.mark.parametrize(("name", "content", "sent"), [("", b"", False), ("a", b"", True), ("", b"a", True)])
def test_a_file_without_name_and_bytes_is_none(name: str, content: bytes, sent: bool) -> None:
    """Some versions of FastAPI say so themselves."""
    file = UploadFile(io.BytesIO(content), size=len(content), filename=name)
    assert (service_routes._sent(file) is file) == sent
    assert service_routes._sent(None) is None


def test_file_fields_that_were_left_empty_are_absent(talking: TestClient, face: Path, sound: Path) -> None:
    """As browsers send them."""
    fields = {"source_url": send(talking, "/images", image=face)["url"]}
    fields["audio_url"] = send(talking, "/audios", audio=sound)["url"]
    parts = [f'--x\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{url}\r\n' for name, url in fields.items()]
    empty = '--x\r\ncontent-disposition: form-data; name="{}"; filename=""\r\ncontent-type: text/plain\r\n\r\n\r\n'
    parts += [empty.format(name) for name in ("source_image", "audio_data")]
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = talking.post("/generate-video", content="".join([*parts, "--x--\r\n"]), headers=headers)
    assert answer.status_code == 200, answer.text
    nothing = talking.post("/generate-video", content="".join([*parts[1:], "--x--\r\n"]), headers=headers)
    assert "source_url and source_image" in nothing.json()["message"]
    named = empty.format("audio_data").replace('filename=""', 'filename="a.wav"')
    emptied = talking.post("/generate-video", content="".join([parts[0], named, "--x--\r\n"]), headers=headers)
    assert (emptied.status_code, emptied.json()["message"]) == (422, "The uploaded audio is empty.")


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
