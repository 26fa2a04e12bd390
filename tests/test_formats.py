"""Every format that is taken, once through the service: sounds to lip_sync, pictures and videos to prepare_avatar."""

import io
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from mutations import coded_sound
from PIL import Image
from samples import facts, frames_of, pictures, write_video

from lipserve.colour import ColourTags, planes_to_bgr


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".aac", "aac"), (".webm", "libopus"), (".mov", "alac"), (".mka", "flac")]
)
def test_sounds(suffix: str, codec: str, client: TestClient, lisa: str, tmp_path: Path) -> None:
    """The others are in test_service."""
    sound = coded_sound(tmp_path / f"a{suffix}", codec, seconds=0.4)
    with sound.open("rb") as handle:
        response = client.post("/lip_sync", data={"avatar_id": lisa}, files={"audio": ("speech", handle)})
    assert response.status_code == 200, response.text
    (tmp_path / "out.mp4").write_bytes(response.content)
    assert facts(tmp_path / "out.mp4")["frames"] in (10, 11)  # coders pad


def still(form: str) -> bytes:
    """Lisa on her side, and how to put her upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(
        np.ascontiguousarray(planes_to_bgr(pictures(1)[0], ColourTags(space=6).matrix)[..., ::-1])
    )
    buffer = io.BytesIO()
    upright.rotate(90).save(buffer, form, exif=exif)
    return buffer.getvalue()


def clip(folder: Path, suffix: str, codec: str) -> bytes:
    return write_video(folder / f"a{suffix}", frames_of(pictures(3)), codec=codec).read_bytes()


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("JPEG", ""),
        ("PNG", ""),
        ("WEBP", ""),
        (".mov", "libx264"),
        (".webm", "libvpx-vp9"),
        (".webm", "libvpx"),
        (".avi", "mpeg4"),
    ],
)
def test_pictures_and_videos(name: str, codec: str, client: TestClient, lisa: str, tmp_path: Path) -> None:
    content = clip(tmp_path, name, codec) if codec else still(name)
    try:
        response = client.post("/prepare_avatar", data={"avatar_id": "format"}, files={"video": ("upload", content)})
        assert response.status_code == 201, response.text
        found = response.json()
        assert (found["frames"], found["frames_without_face"]) == (3 if codec else 1, 0)
        assert client.get("/avatars/format").json()["state"] == "ready"
    finally:
        client.delete("/avatars/format")
