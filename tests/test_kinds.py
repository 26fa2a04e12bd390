"""What a file is, by its content alone; what is taken, and how what is not is named."""

import gzip
import io
import zipfile
from pathlib import Path

import pytest
from mutations import seeds
from PIL import Image

from avatar_prep.source import Limits, open_source
from lipserve.errors import NotAudio, NotAVideo
from lipserve.media import SoundReader, choose_encoder, media_type
from lipserve.media.kinds import MEDIA, PICTURES, extension, stranger


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return seeds(tmp_path_factory.mktemp("seeds"))


# by name in `seeds`: extension and MIME type
KINDS = {
    "picture.png": ("png", "image/png"),
    "picture.jpg": ("jpg", "image/jpeg"),
    "picture-progressive.jpg": ("jpg", "image/jpeg"),
    "picture.webp": ("webp", "image/webp"),
    "picture-lossless.webp": ("webp", "image/webp"),
    "sound.wav": ("wav", "audio/wav"),
    "sound.mp3": ("mp3", "audio/mpeg"),
    "sound.m4a": ("m4a", "audio/mp4"),
    "sound.ogg": ("ogg", "audio/ogg"),
    "sound.flac": ("flac", "audio/flac"),
    "sound-own-rate.flac": ("flac", "audio/flac"),
    "sound.aac": ("aac", "audio/aac"),
    "sound.webm": ("webm", "audio/webm"),
    "sound.mka": ("mkv", "audio/x-matroska"),
    "video.mp4": ("mp4", "video/mp4"),
    "video.mov": ("mov", "video/quicktime"),
    "video.webm": ("webm", "video/webm"),
    "video.mkv": ("mkv", "video/x-matroska"),
    "video.avi": ("avi", "video/x-msvideo"),
}
WHAT = {"picture": "image", "sound": "audio", "video": "video"}


def test_every_format_is_known_by_its_content(samples: dict[str, bytes], tmp_path: Path) -> None:
    assert set(KINDS) == set(samples)
    for name, (kind, mime) in KINDS.items():
        file = tmp_path / "harmless.txt"
        file.write_bytes(samples[name])
        assert extension(file) == kind, name
        assert media_type(file, WHAT[name.split(".")[0].split("-")[0]]) == mime  # type: ignore[arg-type]
        assert stranger(file, MEDIA | PICTURES) is None


def test_every_format_is_read_under_any_name(samples: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in samples.items():
        file = tmp_path / "voice.zip"
        file.write_bytes(content)
        if name.startswith("sound"):
            with SoundReader(file, 10) as sound:
                seconds = sum(block.shape[1] for block in sound) / sound.rate
            assert 0.24 < seconds < 0.4, name  # coders pad
        else:
            with open_source(file, 25, Limits()) as pictures:
                size = (pictures.width, pictures.height)
                assert len(list(pictures)) == (6 if name.startswith("video") else 1), name
            turned = name in ("picture.jpg", "picture.webp")  # by EXIF
            assert size == ((64, 48) if name.startswith("video") else (32, 48) if turned else (48, 32)), name


def saved(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, form)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("voice.wav", b"RIFF")
    return buffer.getvalue()


STRANGERS = {
    "a ZIP archive": zipped(),
    "a gzip archive": gzip.compress(b"RIFF" * 99),
    "a PDF document": b"%PDF-1.7\n" + bytes(100),
    "a program": b"\x7fELF\2\1\1" + bytes(100),
    "a web page": b"\xef\xbb\xbf \r\n<!DOCTYPE HTML><html><title>404</title></html>",
    "an SVG drawing": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "an XML document": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>",
    "a playlist": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
    "a list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "a GIF picture": saved("GIF"),
    "a BMP picture": saved("BMP"),
    "a TIFF picture": saved("TIFF"),
    "an AIFF sound": b"FORM\0\0\0\x40AIFFCOMM" + bytes(60),
    "a HEIC picture": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "an AVIF picture": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(100),
    "a Flash video": b"FLV\1\5\0\0\0\x09" + bytes(100),
    "an MPEG-1 or MPEG-2 file": b"\0\0\1\xba" + bytes(100),
    "a MIDI file, notes without sound": b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk",
}


@pytest.mark.parametrize("words", STRANGERS)
def test_what_is_not_taken_is_named(words: str, tmp_path: Path) -> None:
    file = tmp_path / "voice.wav"
    file.write_bytes(STRANGERS[words])
    with pytest.raises(NotAudio) as sound, SoundReader(file, 10):
        pass
    with pytest.raises(NotAVideo) as video, open_source(file, 25, Limits()):
        pass
    assert sound.value.message == video.value.message == f"The file is {words}."
    assert sound.value.hint
    assert video.value.hint


def test_a_picture_is_no_sound_and_a_file_of_no_known_kind_is_not_guessed_at(
    samples: dict[str, bytes], tmp_path: Path
) -> None:
    file = tmp_path / "a"
    file.write_bytes(samples["picture.jpg"])
    assert stranger(file, MEDIA) == "a JPEG picture"
    for content in (b"", b"hello", bytes(1000)):
        file.write_bytes(content)
        assert (extension(file), stranger(file, MEDIA)) == (None, None)
        assert media_type(file, "audio") == "application/octet-stream"


def test_ffmpegs_log_stays_out_of_python() -> None:
    """With it on, the fuzzer saw a decoder hang: most likely its thread wanted the interpreter, which waited for it."""
    import av

    choose_encoder("auto")  # listens to it for a moment
    assert av.logging.get_level() is None
