"""The main job over HTTP on a real Triton: prepare, speak, list, delete; what is logged and measured."""

import io
import json
import logging
import os
import re
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from processes import wait_for
from samples import FORMATS, SPEECH, facts, pictures, short_clip, tone, write_sound

from gateway.app import create_app
from gateway.avatars import AvatarCache
from gateway.engine import Engine, SyncRequest
from gateway.metrics import Metrics
from gateway.triton import TritonClient
from lipserve.contract import CROPS, FACE_LATENTS
from lipserve.embedded import EmbeddedTriton
from lipserve.errors import AvatarDamaged
from lipserve.media import VideoReader, read_sound
from lipserve.settings import Settings
from lipserve.store import AvatarStore


def say(client: TestClient, audio: Path, avatar: str = "lisa", **form: object) -> bytes:
    with audio.open("rb") as handle:
        response = client.post("/lip_sync", data={"avatar_id": avatar, **form}, files={"audio": handle})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "video/mp4"
    return response.content


def test_the_gateway_is_ready_when_every_model_is_warm(client: TestClient, lisa: str) -> None:
    assert client.get("/health/live").json() == {"status": "live", "message": ""}
    wait_for(lambda: client.get("/health/ready").status_code == 200, 60)
    assert client.get("/health/ready").json() == {"status": "ready", "message": ""}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_sound_format_gives_exact_frames_and_durations(
    client: TestClient, lisa: str, tmp_path: Path, suffix: str
) -> None:
    sound = write_sound(tmp_path / f"speech{suffix}", tone(1.2, 48000, 2), 48000)
    video = tmp_path / "out.mp4"
    video.write_bytes(say(client, sound))
    found = facts(video)
    exact = read_sound(sound, 10).samples.shape[1] * 25 // 48000  # lossy formats may be padded at the end
    assert exact in (30, 31)
    assert found["frames"] == exact
    assert (found["size"], found["rate"]) == ((512, 512), Fraction(25))
    assert (found["video_codec"], found["audio_codec"]) == ("h264", "aac")
    assert found["video_seconds"] == pytest.approx(exact / 25, abs=1e-6)
    assert found["audio_seconds"] == pytest.approx(found["video_seconds"], abs=1 / 25)


def test_a_videos_own_sound_is_used(client: TestClient, lisa: str, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav", tone(0.8), 16000)
    video = tmp_path / "said.mp4"
    video.write_bytes(say(client, sound))
    again = tmp_path / "again.mp4"
    again.write_bytes(say(client, video))
    assert facts(again)["frames"] in (20, 21)  # AAC may pad the sound by a part of a frame


def test_the_sound_comes_through_unharmed(client: TestClient, lisa: str, tmp_path: Path) -> None:
    video = tmp_path / "out.mp4"
    video.write_bytes(say(client, SPEECH))
    given, kept = read_sound(SPEECH, 60), read_sound(video, 60)
    assert kept.rate == given.rate
    n = min(given.samples.shape[1], kept.samples.shape[1])
    assert np.corrcoef(given.samples[0, :n], kept.samples[0, :n])[0, 1] > 0.99
    assert kept.seconds == pytest.approx(given.seconds, abs=0.1)


def test_the_index_stands_in_front_of_the_data(client: TestClient, lisa: str, tmp_path: Path) -> None:
    data = say(client, write_sound(tmp_path / "a.wav", tone(0.4), 16000))
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_outside_the_blend_the_source_is_kept(
    client: TestClient, lisa: str, settings: Settings, tmp_path: Path
) -> None:
    video = tmp_path / "out.mp4"
    video.write_bytes(say(client, write_sound(tmp_path / "a.wav", tone(0.8), 16000)))
    avatar = AvatarStore(settings.avatars_dir).open(lisa)
    with VideoReader(video, 25, 10, 10**7) as frames:
        for i, frame in enumerate(frames):
            record = avatar.regions[avatar.index(i, 25)]
            x1, y1, x2, y2 = record["region"]
            outside = np.ones((512, 512), bool)
            outside[y1:y2, x1:x2] = False
            source = avatar.frame(avatar.index(i, 25))[:512].astype(float)
            error = np.mean((frame[:512].astype(float) - source)[outside] ** 2)
            assert 10 * np.log10(255**2 / error) > 38
            inside = np.abs(frame[y1:y2, x1:x2].astype(float) - source[y1:y2, x1:x2])
            assert inside.mean() > 1.5  # the face is really replaced


@pytest.mark.parametrize("name", ["frames.yuv", "masks.u8", "latents.npy"])
def test_an_avatar_that_is_cut_while_it_speaks_ends_that_request_alone(
    lisa: str, settings: Settings, triton: EmbeddedTriton, tmp_path: Path, name: str
) -> None:
    """A map of the file would end the whole gateway with SIGBUS."""
    sound, video = write_sound(tmp_path / "a.wav", tone(1.0), 16000), tmp_path / "out.mp4"
    store, shown = AvatarStore(tmp_path / "avatars"), 0
    shutil.copytree(AvatarStore(settings.avatars_dir).folder(lisa), store.folder("cut"))

    def cut(stage: str, done: int, total: int | None) -> None:
        nonlocal shown
        shown = done
        if done == 3:
            os.truncate(store.folder("cut") / name, 4096)

    engine = Engine(settings, triton.grpc_url)
    try:
        avatars = AvatarCache(store, 1, Metrics())
        with pytest.raises(AvatarDamaged, match=rf"'cut' is damaged \({name} ends too early\)"):
            engine.lip_sync(SyncRequest("cut", batch_size=2), sound, video, cut, avatars=avatars)
        assert 3 <= shown < 25
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.wav", "avatars"]
        with pytest.raises(AvatarDamaged):  # not from the cache
            engine.lip_sync(SyncRequest("cut"), sound, video, avatars=avatars)
        assert engine.lip_sync(SyncRequest(lisa), sound, video).frames == 25
    finally:
        engine.close()


def test_the_clip_runs_forward_then_backward(client: TestClient, lisa: str, tmp_path: Path) -> None:
    """The bundled clip blinks; frame 20 + k of the answer shows stored frame 19 − k above the mask."""
    video = tmp_path / "out.mp4"
    video.write_bytes(say(client, write_sound(tmp_path / "a.wav", tone(1.6), 16000)))
    source = [p[:200] for p in pictures(20)]
    with VideoReader(video, 25, 10, 10**7) as frames:
        shown = [frame[:200] for frame in frames]
    for k in (0, 7, 19):
        distances = [np.mean((shown[20 + k].astype(float) - s) ** 2) for s in source]
        assert distances[19 - k] <= min(distances) * 1.05


def test_the_batch_size_changes_nothing_that_can_be_seen(client: TestClient, lisa: str, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav", tone(1.4), 16000)  # 35 frames: of 32 at once, the networks take 16
    videos = []
    for size in (1, 4, 32):
        file = tmp_path / f"{size}.mp4"
        file.write_bytes(say(client, sound, batch_size=size))
        with VideoReader(file, 25, 10, 10**7) as frames:
            videos.append(np.stack(list(frames)).astype(np.int16))
    assert [len(video) for video in videos] == [35, 35, 35]
    assert np.abs(videos[0] - videos[1]).mean(axis=(1, 2)).max() < 0.5
    assert np.abs(videos[0] - videos[2]).mean(axis=(1, 2)).max() < 0.5


@pytest.mark.parametrize(
    ("frames", "batches"),
    [(1, [1]), (8, [8]), (15, [15]), (16, [16]), (17, [16, 1]), (31, [16, 15]), (32, [16, 16])],
)
def test_a_batch_size_beyond_the_networks_own_is_split(
    frames: int,
    batches: list[int],
    lisa: str,
    settings: Settings,
    triton: EmbeddedTriton,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound, video, sent = write_sound(tmp_path / "a.wav", tone(frames / 25), 16000), tmp_path / "out.mp4", []
    engine = Engine(settings, triton.grpc_url)
    batch = engine.triton.batch
    monkeypatch.setattr(engine.triton, "batch", lambda n, *more: sent.append(n) or batch(n, *more))
    try:
        assert engine.lip_sync(SyncRequest(lisa, batch_size=32), sound, video).frames == frames
    finally:
        engine.close()
    assert sent == batches
    assert facts(video)["frames"] == frames


@pytest.mark.parametrize(
    ("crops", "batches"),
    [(1, [1]), (8, [8]), (15, [8, 7]), (16, [8, 8]), (17, [8, 8, 1]), (31, [8, 8, 8, 7]), (32, [8, 8, 8, 8])],
)
def test_faces_are_encoded_in_batches_that_the_encoder_takes(
    crops: int, batches: list[int], triton: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order: each crop is of one grey level, brighter than the one before."""
    faces = np.empty((crops, *CROPS.shape), np.uint8)
    faces[:] = 7 * np.arange(crops)[:, None, None, None]
    client, sent = TritonClient(triton.grpc_url, 60, Metrics()), []
    infer = client.grpc.async_infer

    def counted(name: str, inputs: Any, **options: Any) -> Any:
        sent.append(inputs[0].shape()[0])
        return infer(name, inputs, **options)

    monkeypatch.setattr(client.grpc, "async_infer", counted)
    latents = client.encode_faces(faces)
    assert sent == batches
    assert (latents.shape, latents.dtype) == ((crops, *FACE_LATENTS.shape), np.float16)
    alone = np.concatenate([client.encode_faces(face[None]) for face in faces])
    assert np.abs(latents.astype(np.float64) - alone).max() < 0.01
    assert crops == 1 or np.abs(np.diff(alone.astype(np.float64), axis=0)).max(axis=(1, 2, 3)).min() > 0.02
    client.close()


@pytest.mark.parametrize(("fps", "frames"), [(30, 36), (10, 12), (1, 1), (60, 72)])
def test_other_frame_rates(client: TestClient, lisa: str, tmp_path: Path, fps: int, frames: int) -> None:
    video = tmp_path / "out.mp4"
    video.write_bytes(say(client, write_sound(tmp_path / "a.wav", tone(1.2), 16000), fps=fps))
    found = facts(video)
    assert (found["frames"], found["rate"]) == (frames, Fraction(fps))
    assert found["audio_seconds"] == pytest.approx(found["video_seconds"], abs=1 / fps)


def test_the_frame_rate_may_be_set_for_all_who_name_none(
    client: TestClient, lisa: str, settings: Settings, triton: EmbeddedTriton, tmp_path: Path
) -> None:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = {"work_dir": tmp_path / "work", "storage_dir": tmp_path / "storage", "output_fps": 10}
    sound, video = write_sound(tmp_path / "a.wav", tone(1.2), 16000), tmp_path / "out.mp4"
    with TestClient(create_app(Settings(**given | own), triton.grpc_url)) as at_10_fps:
        video.write_bytes(say(at_10_fps, sound))
        assert (facts(video)["frames"], facts(video)["rate"]) == (12, Fraction(10))
        video.write_bytes(say(at_10_fps, sound, fps=20))
        assert (facts(video)["frames"], facts(video)["rate"]) == (24, Fraction(20))


def test_silence_is_speech_too(client: TestClient, lisa: str, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav", np.zeros((1, 16000), np.float32), 16000)
    video = tmp_path / "out.mp4"
    video.write_bytes(say(client, sound))
    assert facts(video)["frames"] == 25


def test_files_of_the_media_folder_serve_as_input(
    client: TestClient, lisa: str, settings: Settings, tmp_path: Path
) -> None:
    assert settings.media_dir is not None
    (settings.media_dir / "sub").mkdir(exist_ok=True)
    write_sound(settings.media_dir / "sub/a.wav", tone(0.4), 16000)
    response = client.post("/lip_sync", data={"avatar_id": lisa, "audio_path": "sub/a.wav"})
    assert response.status_code == 200
    short_clip(settings.media_dir / "clip.mp4", 4)
    response = client.post("/prepare_avatar", data={"avatar_id": "from-media", "video_path": "clip.mp4"})
    assert response.status_code == 201
    assert response.json()["source"] == "clip.mp4"
    assert client.delete("/avatars/from-media").status_code == 204


def test_avatars_are_listed_shown_and_deleted(client: TestClient, lisa: str, clip: Path) -> None:
    form = {"avatar_id": "short-lived", "version": "v1", "bbox_shift": "5", "fps": "12"}
    response = client.post("/prepare_avatar", data=form, files={"video": clip.open("rb")})
    info = response.json()
    assert (info["frames"], info["frames_without_face"], info["fps"]) == (10, 0, 12)
    assert (info["width"], info["height"]) == (512, 512)
    assert (info["parameters"]["version"], info["parameters"]["bbox_shift"]) == ("v1", 5)
    listed = {a["avatar_id"]: a["state"] for a in client.get("/avatars").json()["avatars"]}
    assert listed == {lisa: "ready", "short-lived": "ready"}
    preview = client.get("/avatars/short-lived/preview")
    assert preview.headers["content-type"] == "image/jpeg"
    assert preview.content.startswith(b"\xff\xd8\xff")
    assert client.get("/avatars/short-lived").json()["info"] == info
    assert client.delete("/avatars/short-lived").status_code == 204
    for path in ("/avatars/short-lived", "/avatars/short-lived/preview"):
        assert client.get(path).json()["kind"] == "avatar_not_found"
    assert client.delete("/avatars/short-lived").status_code == 404


def test_an_existing_avatar_is_replaced_only_by_force(client: TestClient, lisa: str, clip: Path) -> None:
    def prepare(**form: str) -> tuple[int, dict[str, object]]:
        data = {"avatar_id": "twice", **form}
        response = client.post("/prepare_avatar", data=data, files={"video": clip.open("rb")})
        return response.status_code, response.json()

    assert prepare(fps="5")[0] == 201
    status, body = prepare(fps="10")
    assert (status, body["kind"]) == (409, "avatar_exists")
    assert client.get("/avatars/twice").json()["info"]["fps"] == 5
    assert prepare(fps="10", force="true")[0] == 201
    assert client.get("/avatars/twice").json()["info"]["fps"] == 10
    client.delete("/avatars/twice")


def test_both_calls_log_twice_with_the_same_numbers_as_the_headers(
    client: TestClient, lisa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = write_sound(tmp_path / "a.wav", tone(0.4), 16000)
    written = io.StringIO()
    (handler,) = (h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler)
    monkeypatch.setattr(handler, "stream", written)
    with sound.open("rb") as handle:
        response = client.post(
            "/lip_sync",
            data={"avatar_id": lisa, "batch_size": "4"},
            files={"audio": ("my voice.wav", handle)},
            headers={"x-request-id": "Root=1-67891233-abcdef"},
        )
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    received, answered = (line for line in lines if line["event"].startswith("lip_sync"))
    assert (
        response.headers["x-request-id"] == received["request_id"] == answered["request_id"] == "Root=1-67891233-abcdef"
    )
    assert received["event"] == "lip_sync received"
    given = {"avatar_id": lisa, "audio": "my voice.wav", "fps": None, "batch_size": 4}
    assert {name: received[name] for name in given} == given
    assert (answered["event"], answered["status"], answered["kind"]) == ("lip_sync answered", 200, "ok")
    stages = dict(part.split("=") for part in response.headers["x-seconds-stages"].split(", "))
    assert {name: float(seconds) for name, seconds in stages.items()} == answered["stages"]
    assert list(stages) == ["queue", "audio", "features", "faces", "blend", "encode", "finish"]
    assert float(response.headers["x-seconds-total"]) == answered["seconds"] >= sum(answered["stages"].values()) - 0.01


def test_a_call_with_an_unreadable_parameter_is_logged_too(
    client: TestClient, lisa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    (handler,) = (h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler)
    monkeypatch.setattr(handler, "stream", written)
    client.post("/lip_sync", data={"avatar_id": lisa, "fps": "many", "event": "x"}, files={"audio": b"x"})
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    received, refused = (line for line in lines if "lip_sync" in line["event"] and "testserver" not in line["event"])
    assert (received["event"], received["avatar_id"], received["fps"]) == ("lip_sync received", lisa, "many")
    assert refused["event"].startswith("POST /lip_sync refused: 422 invalid_parameter: fps")
    assert refused["request_id"] == received["request_id"]


def test_nothing_of_a_request_is_left_behind(client: TestClient, lisa: str, settings: Settings, tmp_path: Path) -> None:
    say(client, write_sound(tmp_path / "a.wav", tone(0.2), 16000))
    client.post("/lip_sync", data={"avatar_id": lisa}, files={"audio": b"not audio"})
    (folder,) = settings.work_dir.glob("requests-*")
    assert [file.name for file in folder.iterdir()] == [".lock"]


def test_triton_batches_requests_that_run_at_the_same_time(
    client: TestClient, lisa: str, triton: EmbeddedTriton, tmp_path: Path
) -> None:
    import urllib.request
    from concurrent.futures import ThreadPoolExecutor

    def counters() -> tuple[float, float]:
        """Frames inferred and batches executed by the UNet."""
        text = urllib.request.urlopen(triton.metrics_url).read().decode()
        values = {}
        for line in text.splitlines():
            if line.startswith(("nv_inference_count{", "nv_inference_exec_count{")) and 'model="unet"' in line:
                values[line.split("{")[0]] = float(line.rsplit(" ", 1)[1])
        return values["nv_inference_count"], values["nv_inference_exec_count"]

    sound = write_sound(tmp_path / "a.wav", tone(1.0), 16000)
    before = counters()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: say(client, sound, batch_size=1), range(4)))
    frames, batches = (after - start for after, start in zip(counters(), before, strict=True))
    assert frames == 4 * 25
    assert batches < frames  # some held more than the one frame of a request


def test_the_api_describes_itself(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == {
        ("/prepare_avatar", "post"),
        ("/lip_sync", "post"),
        ("/avatars", "get"),
        ("/avatars/{avatar_id}", "get"),
        ("/avatars/{avatar_id}", "delete"),
        ("/avatars/{avatar_id}/preview", "get"),
        ("/jobs", "get"),
        ("/jobs/{job_id}", "get"),
        ("/jobs/{job_id}", "delete"),
        ("/jobs/{job_id}/events", "get"),
        ("/jobs/{job_id}/result", "get"),
        ("/health", "get"),
        ("/health/live", "get"),
        ("/health/ready", "get"),
        ("/metrics", "get"),
        ("/talks", "post"),
        ("/talks", "get"),
        ("/talks/{talk_id}", "get"),
        ("/talks/{talk_id}", "delete"),
        ("/talks/{talk_id}/audio", "get"),
        ("/images", "post"),
        ("/audios", "post"),
        ("/generate-video", "post"),
        ("/talk-status/{talk_id}", "get"),
        ("/upload-source-image", "post"),
        ("/upload-audio", "post"),
    }
    page = client.get("/docs").text
    assert "https://" not in page  # the page works without any other server
    for address in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert client.get(address).status_code == 200
    assert {"404", "409", "413", "422", "503"} <= set(paths["/lip_sync"]["post"]["responses"])
