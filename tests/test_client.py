"""The typed client against the real gateway on a real port; and against answers that no gateway of ours gives."""

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from samples import facts, short_clip, tone, write_sound
from serving import serving

from gateway import keys
from gateway.app import create_app
from lipserve import client as module
from lipserve import errors
from lipserve.client import Client
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file, and the key."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return file, keys.add(file, "alice")


@pytest.fixture(scope="module")
def app(
    settings: Settings, triton: EmbeddedTriton, key: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> FastAPI:
    root = tmp_path_factory.mktemp("client")
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = {"avatars_dir": root / "avatars", "work_dir": root / "work", "storage_dir": root / "storage"}
    return create_app(Settings(**given | own | {"keys_file": key[0]}), triton.grpc_url)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def lipserve(url: str, key: tuple[Path, str]) -> Iterator[Client]:
    with Client(url, key[1]) as client:
        yield client


@pytest.fixture(scope="module")
def anna(lipserve: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    clip = short_clip(tmp_path_factory.mktemp("anna") / "anna.mp4", 6)
    assert lipserve.prepare_avatar("anna", clip, extra_margin=12).frames == 6
    return "anna"


@pytest.fixture(scope="module")
def preview(app: FastAPI, anna: str) -> bytes:
    """A picture with a face."""
    file: Path = app.state.settings.avatars_dir / anna / "preview.jpg"
    return file.read_bytes()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 frames of it at 25 a second."""
    return write_sound(tmp_path_factory.mktemp("sound") / "a.wav", tone(0.4), 16000)


def test_avatars_and_the_main_call(lipserve: Client, anna: str, sound: Path, tmp_path: Path) -> None:
    shown = lipserve.avatar(anna)
    assert shown in lipserve.avatars()
    assert shown.info is not None and shown.info.parameters["extra_margin"] == 12
    output = lipserve.lip_sync(anna, sound, tmp_path / "said.mp4", fps=30)
    assert facts(output)["frames"] == 12
    assert [file.name for file in tmp_path.iterdir()] == ["said.mp4"]
    lipserve.prepare_avatar("gone", io.BytesIO(short_clip(tmp_path / "x.mp4", 2).read_bytes()), force=True)
    lipserve.delete_avatar("gone")
    with pytest.raises(errors.AvatarNotFound) as told:
        lipserve.avatar("gone")
    assert told.value.message and told.value.hint and told.value.status == 404
    assert lipserve.health().status == "healthy"


def test_jobs_are_followed_listed_fetched_and_removed(lipserve: Client, anna: str, sound: Path, tmp_path: Path) -> None:
    ids = [lipserve.submit_lip_sync(anna, sound, batch_size=4).id for _ in range(3)]
    views = list(lipserve.follow(ids[0]))
    assert (views[-1].state, views[-1].progress) == ("done", 1.0)
    assert [view.progress for view in views] == sorted(view.progress for view in views)
    assert views[-1] == lipserve.job(ids[0])
    assert all(lipserve.wait(job, 60).state == "done" for job in ids)
    assert [job.id for job in lipserve.jobs(state="done", kind="lip_sync", page=2)] == ids[::-1]
    assert facts(lipserve.download(views[-1], tmp_path / "said.mp4"))["frames"] == 10
    for job in ids:
        lipserve.delete_job(job)
    with pytest.raises(errors.JobNotFound):
        lipserve.job(ids[0])
    assert list(lipserve.jobs(kind="lip_sync")) == []


def test_a_job_is_cancelled_and_waiting_has_an_end(lipserve: Client, anna: str, tmp_path: Path) -> None:
    long = write_sound(tmp_path / "long.wav", tone(60), 16000)
    job = lipserve.submit_lip_sync(anna, long)
    with pytest.raises(errors.JobNotDone, match=r"within 0\.1 s"):
        lipserve.wait(job, 0.1)
    with pytest.raises(errors.JobNotDone):
        lipserve.download(job, tmp_path / "early.mp4")
    assert not (tmp_path / "early.mp4").exists()
    assert lipserve.cancel(job).state == "cancelled"
    with pytest.raises(errors.JobNotDone, match="ended already"):
        lipserve.cancel(job)
    with pytest.raises(errors.AvatarNotFound):
        lipserve.submit_lip_sync("nobody", long)
    prepared = lipserve.submit_prepare("by-job", short_clip(tmp_path / "clip.mp4", 2))
    assert lipserve.wait(prepared).result == lipserve.avatar("by-job").model_dump(mode="json")["info"]


def test_a_talk_the_way_of_d_id(lipserve: Client, preview: bytes, sound: Path, tmp_path: Path) -> None:
    image, audio = lipserve.upload_image(io.BytesIO(preview)), lipserve.upload_audio(sound)
    assert audio.duration == 0.4
    ordered = lipserve.create_talk(image.url, audio_url=audio.url, name="greeting", user_data="17", pad_audio=0.2)
    assert (ordered.status, ordered.created_by) == ("created", "alice")
    assert lipserve.wait(ordered).state == "done"
    talk = lipserve.talk(ordered)
    assert (talk.status, talk.name, talk.user_data, talk.error) == ("done", "greeting", "17", None)
    assert talk.metadata is not None and talk.metadata.num_frames == 15
    assert talk.result_url is not None and httpx.get(talk.result_url).status_code == 200  # signed: without the key
    assert facts(lipserve.download(talk, tmp_path / "talk.mp4"))["frames"] == 15
    second = lipserve.create_talk(image.url, audio_url=audio.url)
    assert [talk.id for talk in lipserve.talks(page=1)] == [second.id, ordered.id]
    for talk_id in (ordered, second):
        lipserve.wait(talk_id)
        lipserve.delete_talk(talk_id)
    with pytest.raises(errors.JobNotFound):  # their 404 NotFoundError, our kind
        lipserve.talk(ordered)
    with pytest.raises(errors.InvalidParameter, match="result_format"):
        lipserve.create_talk(image.url, audio_url=audio.url, result_format="gif")
    with pytest.raises(errors.InvalidParameter, match="Exactly one"):
        lipserve.create_talk(image.url)


def test_a_texts_speech_is_its_owners(lipserve: Client, url: str, key: tuple[Path, str], preview: bytes) -> None:
    image = lipserve.upload_image(io.BytesIO(preview))
    ordered = lipserve.create_talk(image.url, text="Hi.")
    lipserve.wait(ordered)
    signed, path = lipserve.talk(ordered).audio_url, f"{url}/talks/{ordered.id}/audio"
    assert signed is not None and signed.startswith(f"{path}?expires=")
    with_key = {"x-api-key": key[1]}
    speech = httpx.get(path, headers=with_key)
    assert speech.status_code == 200 and speech.content.startswith(b"RIFF")
    assert httpx.get(signed).content == speech.content
    another = {"x-api-key": keys.add(key[0], "bob")}
    assert httpx.get(path).status_code == 401
    assert httpx.get(path, headers=another).status_code == 404
    assert httpx.get(signed.replace("/audio?", "?")).status_code == 403  # a link opens what it was signed for
    lipserve.delete_talk(ordered)
    assert httpx.get(signed).status_code == 404


def test_a_talk_the_way_of_musetalk_services(lipserve: Client, preview: bytes, sound: Path, tmp_path: Path) -> None:
    ordered = lipserve.generate_video(source_image=io.BytesIO(preview), audio_data=sound)
    assert ordered.status == "queued"
    lipserve.wait(ordered)
    status = lipserve.talk_status(ordered)
    assert (status.status, status.progress, status.error) == ("done", 1.0, None)
    assert facts(lipserve.download(status, tmp_path / "talk.mp4"))["frames"] == 10
    kept = lipserve.upload_source(short_clip(tmp_path / "clip.mp4", 2))
    again = lipserve.generate_video(source_url=kept.url, audio_url=lipserve.upload_audio(sound).url)
    assert lipserve.wait(again).state == "done"
    with pytest.raises(errors.InvalidParameter):
        lipserve.generate_video(source_url=kept.url)
    with pytest.raises(errors.NotAudio):
        lipserve.upload_audio(io.BytesIO(b"no sound" * 100))


def test_a_wrong_key_and_a_wrong_address(url: str, tmp_path: Path, sound: Path) -> None:
    with Client(url, "wrong") as client, pytest.raises(errors.Unauthorized):
        client.avatars()
    with pytest.raises(errors.InvalidParameter):
        Client(url, "ké\n")
    for nowhere in ("http://127.0.0.1:1", "nonsense", "http://[", "ftp://127.0.0.1"):
        with pytest.raises(errors.ServiceUnreachable, match="does not answer"), Client(nowhere) as client:
            client.lip_sync("a", sound, tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []


# -- answers of others ------------------------------------------------------------------------------------------------


def answering(handler: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client("http://lipserve.test", transport=httpx.MockTransport(handler))


def test_errors_are_found_by_their_kind_in_both_forms() -> None:
    told = {"kind": "queue_full", "message": "Full.", "hint": "Later.", "request_id": "x"}
    client = answering(lambda _: httpx.Response(429, json=told, headers={"retry-after": "7"}))
    with pytest.raises(errors.QueueFull) as full:
        client.avatars()
    assert (full.value.message, full.value.hint, full.value.retry_after) == ("Full.", "Later.", 7)
    theirs = {"kind": "ConflictError", "description": "Busy.", "details": {"kind": "job_not_done"}}
    with pytest.raises(errors.JobNotDone, match="Busy"):
        answering(lambda _: httpx.Response(409, json=theirs)).talk("tlk_0")
    with pytest.raises(errors.ServiceError) as new:
        answering(lambda _: httpx.Response(418, json=told | {"kind": "of_tomorrow"})).avatars()
    assert (new.value.answer_status, new.value.answer_kind, new.value.message) == (418, "of_tomorrow", "Full.")


def test_what_is_wrong_with_an_order_is_told_in_full() -> None:
    details = {"kind": "invalid_parameter", "request_id": "x", "body.script.input": {"message": "Field required"}}
    theirs = {"kind": "ValidationError", "description": "validation failed", "details": details}
    with pytest.raises(errors.InvalidParameter, match=r"body\.script\.input: Field required\."):
        answering(lambda _: httpx.Response(400, json=theirs)).talk("tlk_0")
    theirs["details"] = {"body": {"message": "Odd."}}
    with pytest.raises(errors.ServiceError, match="Odd") as new:
        answering(lambda _: httpx.Response(400, json=theirs)).talk("tlk_0")
    assert new.value.answer_kind == "ValidationError"


def test_booleans_are_written_small_and_names_as_they_are() -> None:
    seen: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.read())
        return httpx.Response(418)

    for avatar_id, force in (("True", True), ("False", False)):
        with pytest.raises(errors.ServiceError):
            answering(handler).prepare_avatar(avatar_id, io.BytesIO(b"x"), force=force)
    for name, value, body in ((b"True", b"true", seen[0]), (b"False", b"false", seen[1])):
        assert b'name="avatar_id"\r\n\r\n' + name + b"\r\n" in body
        assert b'name="force"\r\n\r\n' + value + b"\r\n" in body


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(502, text="<html>Bad gateway</html>"),
        httpx.Response(302, headers={"location": "http://elsewhere/"}),
        httpx.Response(200, text="<html>Welcome</html>"),
        httpx.Response(200, json={"avatars": [{"avatar_id": 3}]}),
    ],
)
def test_what_is_not_lipserves_is_a_service_error(answer: httpx.Response) -> None:
    with pytest.raises(errors.ServiceError):
        answering(lambda _: answer).avatars()


def test_names_stay_within_their_part_of_the_path() -> None:
    seen: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(204)

    client = answering(handler)
    client.delete_avatar("../jobs?x#y")
    assert seen == [b"/avatars/..%2Fjobs%3Fx%23y"]
    for name in ("", ".", ".."):
        with pytest.raises(errors.InvalidParameter):
            client.delete_avatar(name)
    assert len(seen) == 1


def test_a_download_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"half"
            raise httpx.ReadError("cut")

    output = tmp_path / "said.mp4"
    output.write_bytes(b"yesterday's")
    with pytest.raises(errors.ServiceUnreachable, match="cut"):
        answering(lambda _: httpx.Response(200, stream=Broken())).download("job_0", output)
    assert output.read_bytes() == b"yesterday's"
    assert list(tmp_path.iterdir()) == [output]


def view(state: str, progress: float) -> str:
    from lipserve.api import JobView

    example = JobView.model_config["json_schema_extra"]["examples"][0]  # type: ignore[index,call-overload]
    return JobView.model_validate({**example, "state": state, "progress": progress}).model_dump_json()


def test_following_goes_on_after_a_broken_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments, events of other kinds and repetitions are passed over."""
    monkeypatch.setattr(module, "POLL", 0.01)
    first = f": ping\r\n\r\nevent: job\r\ndata: {view('processing', 0.2)}\r\n\r\nevent: other\ndata: 1\n\n"
    second = f"event: job\ndata: {view('processing', 0.2)}\n\nevent: job\ndata: {view('done', 1.0)}\n\n"
    answers = [httpx.Response(200, text=first), None, httpx.Response(200, text=second)]

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/jobs/job_0/events"
        answer = answers.pop(0)
        if answer is None:
            raise httpx.ConnectError("restarting")
        return answer

    seen = list(answering(handler).follow("job_0"))
    assert [(view.state, view.progress) for view in seen] == [("processing", 0.2), ("done", 1.0)]
    assert answers == []


def test_following_gives_up_when_the_service_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.01)
    monkeypatch.setattr(module, "AWAY", 0.05)

    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone")

    with pytest.raises(errors.ServiceUnreachable, match="gone"):
        list(answering(handler).follow("job_0"))


def test_several_threads_may_share_a_client(lipserve: Client, anna: str) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(lipserve.avatars()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8 and len(set(found)) == 1


# -- the command line -------------------------------------------------------------------------------------------------


def lipserve_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lipserve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_orders_lists_and_fetches(
    lipserve: Client, url: str, key: tuple[Path, str], anna: str, preview: bytes, sound: Path, tmp_path: Path
) -> None:
    key_file, picture, output = tmp_path / "key", tmp_path / "anna.jpg", tmp_path / "new/talk.mp4"
    key_file.write_text(f"{key[1]}\n")
    picture.write_bytes(preview)
    there = ("--url", url, "--key-file", key_file)
    job = lipserve.submit_lip_sync(anna, sound)
    done = lipserve_command("jobs", "fetch", job.id, "-o", tmp_path / "said.mp4", *there)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "said.mp4")), done.stderr
    assert facts(tmp_path / "said.mp4")["frames"] == 10
    listed = lipserve_command("jobs", "list", "--limit", 1, *there)
    assert listed.stdout.split()[:4] == [job.id, "lip_sync", "done", "100%"], listed.stderr
    done = lipserve_command("talk", "Hello!", "--source", picture, "-o", output, *there)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == output and facts(output)["video_codec"] == "h264"


def test_the_command_line_says_what_is_wrong(url: str, tmp_path: Path) -> None:
    output = tmp_path / "talk.mp4"
    for arguments, kind in [
        (("talk", "Hello!", "--avatar", "anna", "--url", url), "unauthorized"),
        (("talk", "Hello!", "--avatar", "anna", "--url", "http://127.0.0.1:1"), "service_unreachable"),
        (("talk", "Hello!"), "invalid_parameter"),
    ]:
        done = lipserve_command(*arguments, "-o", output)
        assert (done.returncode, kind in done.stderr, "Traceback" in done.stderr) == (1, True, False), done.stderr
    assert not output.exists()
