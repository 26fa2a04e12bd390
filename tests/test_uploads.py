"""Uploads that are kept: whole or not at all, their owner's alone, gone in time."""

import hashlib
import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image
from samples import numbered, tone, write_clip, write_sound

from avatar_prep.source import Limits
from gateway.jobs.folders import JobFolders
from gateway.uploads import Upload, Uploads, What
from lipserve.errors import (
    BadMedia,
    InvalidParameter,
    LipserveError,
    NotAudio,
    NotAVideo,
    PayloadTooLarge,
    StorageFull,
    UploadNotFound,
    VideoTooLarge,
)


def picture(size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "storage/uploads"


@pytest.fixture
def uploads(folder: Path) -> Uploads:
    return Uploads(folder, 24)


def keep(uploads: Uploads, owner: str = "anna", content: bytes | None = None, what: What = "image") -> Upload:
    return uploads.keep(what, io.BytesIO(picture() if content is None else content), "../x/me.png", owner)


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_what_is_kept_is_found_again_by_id_and_by_url(uploads: Uploads, folder: Path) -> None:
    kept = keep(uploads)
    assert kept.id.startswith("img_")
    assert kept.url == f"lipserve://images/{kept.id}"
    assert (kept.owner, kept.name, kept.media_type, kept.size) == ("anna", "me.png", "image/png", len(picture()))
    assert kept.sha256 == hashlib.sha256(picture()).hexdigest()
    for name in (kept.id, kept.url):
        assert uploads.open(name, "anna").read_bytes() == picture()
        assert uploads.get(name, "anna") == kept
        assert Uploads(folder, 24).get(name, "anna") == kept  # after a restart
    assert files(folder) == {kept.id, f"{kept.id}.json"}


def test_sounds_and_videos(uploads: Uploads, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(3))
    sound = keep(uploads, content=write_sound(tmp_path / "a.mp3", tone(0.2), 16000).read_bytes(), what="audio")
    video = keep(uploads, content=(tmp_path / "a.mp4").read_bytes(), what="video")
    assert (sound.id[:4], sound.url[:18], sound.media_type) == ("aud_", "lipserve://audios/", "audio/mpeg")
    assert (video.id[:4], video.url[:18], video.media_type) == ("vid_", "lipserve://videos/", "video/mp4")


def test_ids_cannot_be_guessed(uploads: Uploads) -> None:
    ids = {keep(uploads).id for _ in range(20)}
    assert len(ids) == 20
    assert {len(upload_id) for upload_id in ids} == {4 + 32}  # 128 bits


def test_an_upload_is_its_owners_alone(uploads: Uploads) -> None:
    kept = keep(uploads)
    messages = set()
    for owner, name in (("bob", kept.id), ("", kept.url), ("anna", "img_" + "0" * 32)):
        for use in (uploads.get, uploads.open, uploads.delete):
            with pytest.raises(UploadNotFound) as caught:
                use(name, owner)
            messages.add(str(caught.value))
    assert len(messages) == 1
    assert uploads.open(kept.id, "anna").is_file()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../uploads/{id}",
        "/etc/passwd",
        "{id}.json",
        "{id}/",
        "{id}\n",
        " {id}",
        "{id}\0",
        ".new-{id}",
        "lipserve://audios/{id}",
        "lipserve://images/../{id}",
        "lipserve://images/{id}?",
        "lipserve://images/",
        "LIPSERVE://images/{id}",
        "http://images/{id}",
        "img_*",
        "img_" + "g" * 32,
        "{upper}",
    ],
)
def test_names_that_are_none(name: str, uploads: Uploads) -> None:
    kept = keep(uploads)
    given = name.replace("{id}", kept.id).replace("{upper}", kept.id.upper())
    with pytest.raises(UploadNotFound):
        uploads.open(given, "anna")


def test_deleting(uploads: Uploads, folder: Path) -> None:
    kept, other = keep(uploads), keep(uploads)
    uploads.delete(kept.url, "anna")
    with pytest.raises(UploadNotFound):
        uploads.delete(kept.id, "anna")
    assert files(folder) == {other.id, f"{other.id}.json"}


@pytest.mark.parametrize(
    ("what", "content", "error", "message"),
    [
        ("image", b"hello", NotAVideo, "cannot be read"),
        ("image", b"PK\3\4" + bytes(100), NotAVideo, "cannot be read"),
        ("image", picture()[:60], NotAVideo, "cannot be read"),
        ("image", picture((2000, 2000)), VideoTooLarge, "2000×2000"),
        ("audio", picture(), NotAudio, "The file is a PNG picture."),
        ("audio", b"PK\3\4" + bytes(100), NotAudio, "The file is a ZIP archive."),
        ("video", b"%PDF-1.7 " + bytes(100), NotAVideo, "The file is a PDF document."),
        ("video", b"<!DOCTYPE html><html>404", NotAVideo, "The file is a web page."),
        ("video", b"", InvalidParameter, "empty"),
    ],
)
def test_what_is_not_kept(
    what: What, content: bytes, error: type[LipserveError], message: str, uploads: Uploads, folder: Path
) -> None:
    with pytest.raises(error, match=message):
        keep(uploads, content=content, what=what)
    assert files(folder) == set()


def test_more_bytes_than_allowed(folder: Path) -> None:
    small = Uploads(folder, 24, max_bytes=len(picture()) - 1)
    with pytest.raises(PayloadTooLarge):
        keep(small)
    assert files(folder) == set()
    assert keep(Uploads(folder, 24, max_bytes=len(picture()))).size == len(picture())


def test_the_limits_are_those_given(folder: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(10))
    with pytest.raises(VideoTooLarge):
        keep(Uploads(folder, 24, limits=Limits(pixels=32 * 32 - 1)))
    with pytest.raises(VideoTooLarge):
        keep(Uploads(folder, 24, limits=Limits(pixels=100)), content=(tmp_path / "a.mp4").read_bytes(), what="video")


class Broken(io.BytesIO):
    """Ends in the middle, as a full disk or a client that goes away."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error, self._reads = error, 0

    def read(self, size: int | None = -1) -> bytes:
        self._reads += 1
        if self._reads > 1:
            raise self._error
        return picture()[:50]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(122, "quota"), KeyboardInterrupt()])
def test_an_upload_that_breaks_off_leaves_nothing(error: BaseException, uploads: Uploads, folder: Path) -> None:
    source: BinaryIO = Broken(error)
    with pytest.raises(StorageFull if isinstance(error, OSError) else KeyboardInterrupt):
        uploads.keep("image", source, "x", "anna")
    assert files(folder) == set()


@pytest.mark.parametrize("step", ["rename", "open"])
def test_failing_at_the_last_step_leaves_nothing(
    step: str, uploads: Uploads, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(Path, step)

    def fail(path: Path, *arguments: object) -> object:
        if path.suffix == ".json":
            raise OSError(5, "Input/output error")
        return original(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fail)
        with pytest.raises(OSError, match="Input/output"):
            keep(uploads)
    assert files(folder) == set()


def test_what_a_killed_process_left_is_cleared_and_the_rest_kept(uploads: Uploads, folder: Path) -> None:
    kept = keep(uploads)
    for name in (".new-img_" + "1" * 32, ".new-img_" + "2" * 32 + ".json", "img_" + "3" * 32, "aud_" + "4" * 32):
        (folder / name).write_bytes(b"half")
    (folder / "README").write_text("somebody's")
    assert Uploads(folder, 24).list() == [kept]
    assert files(folder) == {kept.id, f"{kept.id}.json", "README"}


def test_an_upload_that_jobs_link_to_is_counted_once_in_all(uploads: Uploads, tmp_path: Path) -> None:
    wide = os.urandom(200_000)
    kept = keep(uploads, content=picture() + wide)  # behind its end a PNG may have anything
    folders = JobFolders(tmp_path / "jobs")
    ids = [f"tlk_{number:032x}" for number in range(4)]
    for job_id in ids:
        os.link(uploads.open(kept.id, "anna"), folders.create(job_id) / "source")
    assert sum(folders.size(job_id) for job_id in ids) <= len(wide) + 4096
    (folders.folder(ids[0]) / "result.mp4").write_bytes(bytes(1_000_000))
    assert 1_000_000 <= folders.size(ids[0]) < 1_000_000 + len(wide)


def test_uploads_expire(uploads: Uploads, folder: Path) -> None:
    kept = [keep(uploads) for _ in range(3)]
    assert uploads.expire() == 0
    description = folder / f"{kept[1].id}.json"
    aged = json.loads(description.read_text())
    aged["created_at"] = (datetime.now(UTC) - timedelta(hours=25)).isoformat()
    description.write_text(json.dumps(aged))
    assert [upload.id for upload in uploads.list()] == [kept[1].id, kept[0].id, kept[2].id]  # the oldest first
    assert uploads.expire() == 1
    assert [upload.id for upload in uploads.list()] == [kept[0].id, kept[2].id]
    assert uploads.expire(kept[2].created_at) == 1
    uploads.remove(kept[2])
    assert files(folder) == set()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": 1}', "\ufeff"])
def test_a_damaged_description_is_said_and_nothing_is_lost(content: str, uploads: Uploads, folder: Path) -> None:
    kept, other = keep(uploads), keep(uploads)
    (folder / f"{kept.id}.json").write_text(content)
    assert uploads.list() == [other]
    assert uploads.expire(datetime.now(UTC)) == 1  # the others still go in time
    with pytest.raises(LipserveError, match="damaged") as caught:
        uploads.open(kept.id, "anna")
    assert not isinstance(caught.value, BadMedia)
    assert (folder / kept.id).is_file()


def test_a_description_of_another_upload_is_none(uploads: Uploads, folder: Path) -> None:
    kept, other = keep(uploads), keep(uploads)
    (folder / f"{kept.id}.json").write_bytes((folder / f"{other.id}.json").read_bytes())
    with pytest.raises(UploadNotFound):
        uploads.open(kept.id, "anna")
