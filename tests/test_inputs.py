"""Where a request's files come from, and what they are called."""

import io
from pathlib import Path

import pytest
from starlette.datastructures import UploadFile

from gateway.inputs import display_name, media_file, take_input
from lipserve.errors import InvalidParameter, PathNotAllowed


def upload(content: bytes, filename: str = "x.wav") -> UploadFile:
    return UploadFile(io.BytesIO(content), filename=filename)


def test_an_upload_lands_under_our_name_not_its_own(tmp_path: Path) -> None:
    file = take_input("audio", upload(b"data", "../../etc/passwd"), None, None, tmp_path)
    assert file == tmp_path / "audio"
    assert file.read_bytes() == b"data"


def test_exactly_one_source_must_be_given(tmp_path: Path) -> None:
    for given in ((None, None), (upload(b"x"), "a.wav")):
        with pytest.raises(InvalidParameter, match="audio_path"):
            take_input("audio", *given, tmp_path, tmp_path)


def test_without_a_media_folder_no_path_is_allowed() -> None:
    with pytest.raises(PathNotAllowed, match="LIPSERVE_MEDIA_DIR"):
        media_file("audio", "a.wav", None)


def test_folders_of_pictures_are_allowed_below_the_media_folder(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    assert media_file("video", "frames", tmp_path) == tmp_path / "frames"
    (tmp_path / "frames/up").symlink_to(tmp_path.parent)
    with pytest.raises(PathNotAllowed):
        media_file("video", "frames/up", tmp_path)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("a b.mp4", "a b.mp4"), ("../x\n\x1b[31m.mp4", "x[31m.mp4"), ("", "upload"), ("é" * 300, "é" * 200)],
)
def test_names_for_people_are_harmless(given: str, shown: str) -> None:
    assert display_name(upload(b"", given), None) == shown
