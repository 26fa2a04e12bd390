"""Every kind of bad input: a clear error with a kind, nothing lost, the server still serving."""

import errno
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from samples import pictures, short_clip, tone, write_clip, write_sound

from lipserve.settings import Settings


def prepare(client: TestClient, content: bytes, **form: str) -> tuple[int, dict[str, str]]:
    data = {"avatar_id": "bad", **form}
    response = client.post("/prepare_avatar", data=data, files={"video": ("v.mp4", content)})
    return response.status_code, response.json()


def speak(client: TestClient, content: bytes, **form: str) -> tuple[int, dict[str, str]]:
    data = {"avatar_id": "lisa", **form}
    response = client.post("/lip_sync", data=data, files={"audio": ("a.wav", content)})
    return response.status_code, response.json()


def speak_well(client: TestClient, content: bytes, avatar_id: str) -> bool:
    files = {"audio": ("a.wav", content)}
    return client.post("/lip_sync", data={"avatar_id": avatar_id}, files=files).status_code == 200


@pytest.fixture(autouse=True)
def still_serving(client: TestClient, lisa: str, settings: Settings, tmp_path: Path):  # type: ignore[no-untyped-def]
    """After each bad input the good avatar is still there and still speaks."""
    yield
    listed = [a["avatar_id"] for a in client.get("/avatars").json()["avatars"] if a["state"] == "ready"]
    assert listed == ["lisa"]
    sound = write_sound(tmp_path / "good.wav", tone(0.1), 16000)
    with sound.open("rb") as handle:
        response = client.post("/lip_sync", data={"avatar_id": "lisa"}, files={"audio": handle})
    assert response.status_code == 200
    hidden = {p.name for p in settings.avatars_dir.iterdir() if p.name.startswith((".draft", ".deleted", ".replaced"))}
    assert not hidden


def clear(answer: tuple[int, dict[str, str]], status: int, kind: str) -> str:
    """Asserts status, kind and that there is a message and advice; returns the message."""
    found, body = answer
    assert (found, body["kind"]) == (status, kind), body
    assert body["message"]
    assert body["hint"]
    assert body["request_id"]
    return body["message"]


def test_not_a_video(client: TestClient) -> None:
    clear(prepare(client, b"hello, this is text" * 100), 422, "not_a_video")
    clear(prepare(client, np.random.default_rng(0).bytes(50_000)), 422, "not_a_video")
    clear(prepare(client, b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"), 422, "not_a_video")
    clear(prepare(client, b"ffconcat version 1.0\nfile /etc/passwd\n"), 422, "not_a_video")


def test_empty_upload(client: TestClient) -> None:
    assert "empty" in clear(prepare(client, b""), 422, "invalid_parameter")
    assert "empty" in clear(speak(client, b""), 422, "invalid_parameter")


def test_truncated_video(client: TestClient, clip: Path) -> None:
    whole = clip.read_bytes()
    clear(prepare(client, whole[: len(whole) * 6 // 10]), 422, "video_damaged")
    clear(prepare(client, whole[:400]), 422, "not_a_video")


def test_zero_frames(client: TestClient, tmp_path: Path) -> None:
    sound_only = write_sound(tmp_path / "a.m4a", tone(1), 16000)
    clear(prepare(client, sound_only.read_bytes()), 422, "not_a_video")


def test_no_face(client: TestClient, tmp_path: Path) -> None:
    grey = [np.full_like(pictures(1)[0], 128)] * 10
    write_clip(tmp_path / "grey.mp4", grey)
    message = clear(prepare(client, (tmp_path / "grey.mp4").read_bytes()), 422, "no_face")
    assert "10 frames" in message


def test_more_than_half_without_a_face_says_which(client: TestClient, tmp_path: Path) -> None:
    good = pictures(4)
    write_clip(tmp_path / "mostly.mp4", good + [np.full_like(good[0], 128)] * 6)
    message = clear(prepare(client, (tmp_path / "mostly.mp4").read_bytes()), 422, "no_face")
    assert "6 of 10" in message
    assert "4–9" in message


def test_audio_missing(client: TestClient) -> None:
    response = client.post("/lip_sync", data={"avatar_id": "lisa"})
    clear((response.status_code, response.json()), 422, "invalid_parameter")
    response = client.post("/prepare_avatar", data={"avatar_id": "bad"})
    clear((response.status_code, response.json()), 422, "invalid_parameter")


def test_audio_that_is_none(client: TestClient, clip: Path) -> None:
    clear(speak(client, b"RIFF this is no sound"), 422, "not_audio")
    assert "no audio stream" in clear(speak(client, clip.read_bytes()), 422, "not_audio")


def test_audio_without_samples(client: TestClient, tmp_path: Path) -> None:
    file = write_sound(tmp_path / "a.wav", tone(0.1), 16000)
    clear(speak(client, file.read_bytes()[:44]), 422, "not_audio")


def test_audio_shorter_than_a_frame(client: TestClient, tmp_path: Path) -> None:
    file = write_sound(tmp_path / "a.wav", tone(0.03), 16000)
    assert "30 ms" in clear(speak(client, file.read_bytes()), 422, "audio_too_short")


@pytest.mark.parametrize(
    "avatar_id", ["../etc", "a/b", ".", "..", "a.b", "a\n", "a\x00b", "a" * 300, "", "é", "-a", ".draft-lisa", "%2e%2e"]
)
def test_avatar_ids_that_are_not_allowed(client: TestClient, clip: Path, avatar_id: str) -> None:
    for status, body in (
        prepare(client, clip.read_bytes(), avatar_id=avatar_id),
        speak(client, b"x", avatar_id=avatar_id),
    ):
        assert status == 422
        assert body["kind"] in ("invalid_avatar_id", "invalid_parameter")


def test_unknown_avatar_says_how_to_prepare_it(client: TestClient) -> None:
    status, body = speak(client, b"x", avatar_id="nobody")
    assert (status, body["kind"]) == (404, "avatar_not_found")
    assert "/prepare_avatar" in body["hint"]
    assert "nobody" in body["hint"]


@pytest.mark.parametrize("fps", ["0", "-1", "NaN", "1000", "25.5", "1e3", "inf"])
def test_frame_rates_that_are_not_possible(client: TestClient, clip: Path, tmp_path: Path, fps: str) -> None:
    assert "fps" in clear(prepare(client, clip.read_bytes(), fps=fps), 422, "invalid_parameter")
    sound = write_sound(tmp_path / "a.wav", tone(0.2), 16000)
    assert "fps" in clear(speak(client, sound.read_bytes(), fps=fps), 422, "invalid_parameter")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", "v2"),
        ("parsing_mode", "hair"),
        ("extra_margin", "-1"),
        ("bbox_shift", "100000"),
        ("left_cheek_width", "999"),
        ("batch_size", "0"),
        ("batch_size", "33"),
        ("force", "perhaps"),
    ],
)
def test_parameters_out_of_range_are_named(client: TestClient, clip: Path, name: str, value: str) -> None:
    assert name in clear(prepare(client, clip.read_bytes(), **{name: value}), 422, "invalid_parameter")


def test_misspelt_fields_are_named(client: TestClient) -> None:
    assert "'frames_per_sec'" in clear(speak(client, b"x", frames_per_sec="12"), 422, "invalid_parameter")
    assert "'bbox-shift'" in clear(prepare(client, b"x", **{"bbox-shift": "3"}), 422, "invalid_parameter")


def test_paddings_that_do_not_fit_the_model(client: TestClient) -> None:
    for left, right in (("3", "3"), ("-1", "5"), ("0", "0")):
        answer = speak(client, b"x", audio_padding_length_left=left, audio_padding_length_right=right)
        clear(answer, 422, "invalid_parameter")


def test_upload_over_the_limit_is_refused(client: TestClient) -> None:
    clear(speak(client, b"\0" * 5_100_000), 413, "payload_too_large")


def test_only_forms_with_files_may_be_large(client: TestClient) -> None:
    response = client.post("/lip_sync", data={"avatar_id": "lisa", "audio_path": "x" * 2_100_000})
    assert "2 MB" in clear((response.status_code, response.json()), 413, "payload_too_large")
    clear(speak(client, b"\0" * 2_100_000), 422, "not_audio")


def test_paths_outside_the_media_folder(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    assert settings.media_dir is not None
    secret = tmp_path / "secret.wav"
    write_sound(secret, tone(0.2), 16000)
    (settings.media_dir / "link.wav").symlink_to(secret)
    paths = [str(secret), "../secret.wav", "link.wav", "a\0b", "x" * 5000, "missing.wav", "/etc/passwd", "~/x"]
    for path in paths:
        response = client.post("/lip_sync", data={"avatar_id": "lisa", "audio_path": path})
        clear((response.status_code, response.json()), 422, "path_not_allowed")
        response = client.post("/prepare_avatar", data={"avatar_id": "bad", "video_path": path})
        clear((response.status_code, response.json()), 422, "path_not_allowed")
    (settings.media_dir / "link.wav").unlink()


def test_a_damaged_avatar_says_so_and_can_be_prepared_again(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    clip = short_clip(tmp_path / "c.mp4", 3).read_bytes()
    sound = write_sound(tmp_path / "a.wav", tone(0.1), 16000).read_bytes()
    assert prepare(client, clip, avatar_id="broken")[0] == 201
    assert speak_well(client, sound, "broken")  # and so it is open and cached
    frames = settings.avatars_dir / "broken/frames.yuv"
    frames.write_bytes(frames.read_bytes()[:-1])
    message = clear(speak(client, sound, avatar_id="broken"), 409, "avatar_damaged")
    assert "frames.yuv" in message
    assert client.get("/avatars/broken").json()["state"] == "damaged"
    assert prepare(client, clip, avatar_id="broken", force="true")[0] == 201
    assert speak_well(client, sound, "broken")
    client.delete("/avatars/broken")


def test_an_avatar_of_other_weights_is_refused(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    clip = short_clip(tmp_path / "c.mp4", 3).read_bytes()
    assert prepare(client, clip, avatar_id="old")[0] == 201
    file = settings.avatars_dir / "old/avatar.json"
    text = file.read_text()
    weights_id = client.app.state.engine.triton.weights_id()  # type: ignore[attr-defined]
    file.write_text(text.replace(weights_id, "demo-of-yesterday"))
    assert "demo-of-yesterday" in clear(speak(client, b"x", avatar_id="old"), 409, "avatar_outdated")
    client.delete("/avatars/old")


def test_unknown_paths_and_methods(client: TestClient) -> None:
    response = client.get("/nowhere")
    clear((response.status_code, response.json()), 404, "not_found")
    response = client.get("/lip_sync")
    clear((response.status_code, response.json()), 405, "method_not_allowed")


def test_form_that_cannot_be_parsed(client: TestClient) -> None:
    response = client.post("/lip_sync", content=b"broken", headers={"content-type": "multipart/form-data"})
    clear((response.status_code, response.json()), 400, "bad_request")


def test_a_full_disk_is_no_defect(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(client.app.state.engine, "lip_sync", full)  # type: ignore[attr-defined]
    clear(speak(client, b"x"), 507, "storage_full")
    monkeypatch.undo()


def test_a_defect_is_a_500_with_the_requests_id_and_no_details(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(client.app.state.engine, "lip_sync", broken)  # type: ignore[attr-defined]
    response = client.post("/lip_sync", data={"avatar_id": "lisa"}, files={"audio": b"x"})
    assert "secret" not in clear((response.status_code, response.json()), 500, "internal")
    assert response.headers["x-request-id"] == response.json()["request_id"]
    monkeypatch.undo()
