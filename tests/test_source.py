"""What an avatar is made from: stills and folders of them; videos are in test_media."""

import resource
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from samples import number, numbered, smooth, tone, write_clip, write_sound

from avatar_prep.source import Limits, StillPictures, open_source
from lipserve.colour import U8, ColourTags, planes_to_bgr
from lipserve.errors import BadMedia, NotAVideo, VideoTooLarge
from lipserve.media import VideoReader, too_many_scans

PICTURE = smooth(96, 64)


def save(file: Path, bgr: U8 = PICTURE, **options: object) -> Path:
    Image.fromarray(np.ascontiguousarray(bgr[..., ::-1])).save(file, **options)  # type: ignore[arg-type]
    return file


def look(path: Path, limits: Limits | None = None) -> list[U8]:
    """All pictures of a source, as BGR."""
    with open_source(path, 25, limits or Limits()) as source:
        pictures = list(source)
        assert {picture.shape for picture in pictures} == {(source.height * 3 // 2, source.width)}
        assert source.expected_frames == len(pictures)
        return [planes_to_bgr(picture, source.tags.matrix) for picture in pictures]


def refused(error: type[BadMedia], path: Path, limits: Limits | None = None) -> str:
    with pytest.raises(error) as caught:
        look(path, limits)
    assert type(caught.value) is error
    assert caught.value.hint
    return caught.value.message


def largest_difference(a: U8, b: U8) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 6),
        ("a.jpg", {"quality": 95}, 10),
        ("a.webp", {"lossless": True}, 6),
        ("upload", {"format": "PNG"}, 6),
    ],
)
def test_a_still_is_one_picture_whatever_its_name(
    name: str, options: dict[str, object], tolerance: int, tmp_path: Path
) -> None:
    file = save(tmp_path / name, **options)
    (picture,) = look(file)
    assert picture.shape == (64, 96, 3)
    assert largest_difference(picture, PICTURE) <= tolerance  # slopes of 2 levels a pixel, halved chroma
    with open_source(file, 25, Limits()) as source:
        assert source.tags == ColourTags(space=6)


def test_odd_sides_are_cut(tmp_path: Path) -> None:
    (picture,) = look(save(tmp_path / "a.png", smooth(97, 65)))
    assert picture.shape == (64, 96, 3)
    assert largest_difference(picture, smooth(97, 65)[:64, :96]) <= 6


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.swapaxes(0, 1)),
        (6, lambda p: p.swapaxes(0, 1)[:, ::-1]),  # turn right
        (7, lambda p: p.swapaxes(0, 1)[::-1, ::-1]),
        (8, lambda p: p.swapaxes(0, 1)[::-1]),  # turn left
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_exif_orientation(name: str, orientation: int, upright, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (picture,) = look(save(tmp_path / name, exif=exif, quality=95))
    expected = upright(PICTURE)
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).mean() < 4
    assert orientation == 1 or picture.shape != PICTURE.shape or np.abs(picture.astype(int) - PICTURE).mean() > 20


def tags(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of these: tag, type, count, value or where it is."""
    table = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4)


ON_ITS_SIDE = (0x0112, 3, 1, b"\x06")


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (tags(ON_ITS_SIDE, (0x0100, 2, 4, b"abc")), True),  # a width that is text
        (tags(ON_ITS_SIDE, (0x011A, 2, 4, b"abc")), True),  # a ratio that is text
        (tags(ON_ITS_SIDE, (0x0131, 12, 1, b"\x08")), True),  # a program's name that is a number
        (tags(ON_ITS_SIDE, (0x8769, 4, 1, b"\xff\xff")), True),  # more tags, nowhere
        (tags((0x0112, 2, 4, b"abc")), False),
        (tags((0x0112, 3, 1, b"\x09")), False),
        (tags((0x0112, 5, 1, b"\x08")), False),
        (b"Exif\0\0neither II nor MM", False),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_tags_of_any_type_do_no_harm(name: str, exif: bytes, turned: bool, tmp_path: Path) -> None:
    (picture,) = look(save(tmp_path / name, exif=exif))
    assert picture.shape == ((96, 64, 3) if turned else (64, 96, 3))


def test_exif_as_a_text_of_a_png(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("exif", "no bytes")
    (picture,) = look(save(tmp_path / "a.png", pnginfo=info))
    assert picture.shape == PICTURE.shape


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_other_colour_modes(mode: str, tmp_path: Path) -> None:
    grey = np.full((32, 32, 3), 255, np.uint8)
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(grey).convert(mode).save(file)
    (picture,) = look(file)
    assert largest_difference(picture, grey) <= 2


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (32, 32), (200, 0, 0, 255))
    picture.paste((0, 0, 200, 0), (0, 0, 32, 16))
    picture.save(tmp_path / "a.png")
    (found,) = look(tmp_path / "a.png")
    assert found[4, 4].tolist() == pytest.approx([255, 255, 255], abs=2)
    assert found[28, 4].tolist() == pytest.approx([0, 0, 200], abs=2)


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 100 * 257, np.uint16)).save(tmp_path / "a.png")
    assert {int(value) for value in look(tmp_path / "a.png")[0].flat} <= {99, 100, 101}


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_an_animation_is_no_still(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert refused(NotAVideo, tmp_path / name) == "The picture is an animation."


def test_a_telephones_jpeg_that_holds_a_second_picture(tmp_path: Path) -> None:
    second = Image.new("L", (16, 16))  # a depth map, say
    Image.fromarray(PICTURE[..., ::-1].copy()).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95
    )
    (found,) = look(tmp_path / "a.jpg")
    assert largest_difference(found, PICTURE) <= 10


# -- folders ----------------------------------------------------------------------------------------------------------


def flat(value: int, size: tuple[int, int] = (32, 32)) -> U8:
    return np.full((size[1], size[0], 3), value, np.uint8)


def test_a_folder_is_read_in_name_order(tmp_path: Path) -> None:
    for name, value in (("b.jpg", 90), ("c.webp", 150), ("a.png", 30), ("d.PNG", 210)):
        save(tmp_path / name, flat(value))
    save(tmp_path / ".hidden.png", flat(255))
    (tmp_path / "inner").mkdir()
    assert [int(picture[0, 0, 0]) for picture in look(tmp_path)] == pytest.approx([30, 90, 150, 210], abs=3)


def test_links_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    save(tmp_path / "shots/1.png", flat(9))
    (tmp_path / "shots/2.png").symlink_to("1.png")
    assert len(look(tmp_path / "shots")) == 2
    save(tmp_path / "secret.png", flat(9))
    (tmp_path / "shots/3.png").symlink_to(tmp_path / "secret.png")
    assert refused(NotAVideo, tmp_path / "shots") == "3.png is a link out of its folder."


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots/.DS_Store").write_bytes(b"x")
    assert refused(NotAVideo, tmp_path / "shots") == "The folder 'shots' is empty."


def test_mixed_sizes_name_the_picture(tmp_path: Path) -> None:
    save(tmp_path / "1.png", flat(9))
    save(tmp_path / "2.png", flat(9, (34, 32)))
    assert refused(NotAVideo, tmp_path) == "2.png has another size than the first picture."


def test_sizes_that_differ_by_the_cut_row_are_the_same(tmp_path: Path) -> None:
    save(tmp_path / "1.png", flat(9, (32, 32)))
    save(tmp_path / "2.png", flat(9, (33, 33)))
    assert len(look(tmp_path)) == 2


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    save(tmp_path / "1.png", flat(9))
    (tmp_path / "2.png").write_text("hello")
    assert refused(NotAVideo, tmp_path) == "The picture 2.png cannot be read."


def test_too_many_pictures(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / f"{index}.png", flat(9))
    assert refused(VideoTooLarge, tmp_path, Limits(seconds=2 / 25)) == "The folder has 3 pictures."
    assert len(look(tmp_path, Limits(seconds=3 / 25))) == 3


# -- refused ----------------------------------------------------------------------------------------------------------


def bomb(file: Path, width: int, height: int) -> Path:
    """A PNG of a hundred bytes that says it is huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return file


@pytest.mark.parametrize(("width", "height"), [(1921, 1920), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_huge_pictures_are_refused_undecoded(
    width: int, height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert "pixels" in refused(VideoTooLarge, bomb(tmp_path / "a.png", width, height))


def test_a_jpeg_that_is_gone_over_for_hours(tmp_path: Path) -> None:
    jpeg = save(tmp_path / "a.jpg", progressive=True).read_bytes()
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(jpeg[:-2] + last * 80 + b"\xff\xd9")
    assert len(look(tmp_path / "a.jpg")) == 1
    (tmp_path / "a.jpg").write_bytes(jpeg[:-2] + last * 100 + b"\xff\xd9")
    assert refused(NotAVideo, tmp_path / "a.jpg") == "The picture is a JPEG of far too many scans."


def test_what_only_looks_like_scans_is_none(tmp_path: Path) -> None:
    """A telephone's picture with a video behind it, and a thumbnail in its EXIF data."""
    jpeg = save(tmp_path / "a.jpg", quality=95, comment=b"\xff\xda\0\x0c" * 200).read_bytes()
    (tmp_path / "a.jpg").write_bytes(jpeg + b"ftypmp42" + b"\xff\xda\0\x0c" * 5000)
    (picture,) = look(tmp_path / "a.jpg")
    assert largest_difference(picture, PICTURE) <= 10


@pytest.mark.parametrize("between", [b"\xff", b"\xff\xff", b"\xff\0", b"rubbish", b"\xff\xd0", b"\xff\xfe\0\x04ab"])
def test_scans_count_whatever_is_between_them(between: bytes, tmp_path: Path) -> None:
    jpeg = save(tmp_path / "a.jpg", progressive=True).read_bytes()
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(jpeg[:-2] + (between + last) * 100 + b"\xff\xd9")
    assert "scans" in refused(NotAVideo, tmp_path / "a.jpg")


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\0", b"\xff\xfe\0\2", b"\xff\xd0"])
def test_looking_for_scans_takes_no_time(filling: bytes) -> None:
    start = time.monotonic()
    too_many_scans(b"\xff\xd8" + filling * (20_000_000 // len(filling)))
    assert time.monotonic() - start < 10  # tenths of a second; hours if it went back at each byte


def test_a_picture_of_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(tmp_path / "a.png")
    monkeypatch.setattr("avatar_prep.source.MAX_PICTURE_BYTES", file.stat().st_size)
    assert len(look(file)) == 1
    monkeypatch.setattr("avatar_prep.source.MAX_PICTURE_BYTES", file.stat().st_size - 1)
    assert "MB" in refused(VideoTooLarge, file)


def test_a_length_in_a_png_reserves_no_memory(tmp_path: Path) -> None:
    """Its pixels say they have 4 GB, read in a process that may have less."""
    content = bytearray(save(tmp_path / "a.png").read_bytes())
    struct.pack_into(">I", content, content.index(b"IDAT") - 4, 0xFFFFFFF0)
    (tmp_path / "a.png").write_bytes(content)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**30, limits[1]))
    try:
        with suppress(NotAVideo):
            look(tmp_path / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_the_pixel_limit_is_what_may_be(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png")
    assert len(look(file, Limits(pixels=96 * 64))) == 1
    assert refused(VideoTooLarge, file, Limits(pixels=96 * 64 - 1)) == "The picture has 96×64 pixels, more than 6143."


def test_a_side_longer_than_h264_allows(tmp_path: Path) -> None:
    assert "20000×16" in refused(VideoTooLarge, save(tmp_path / "a.png", flat(9, (20_000, 16))))
    assert len(look(save(tmp_path / "a.png", flat(9, (16_384, 16))))) == 1


def test_too_small_for_a_face(tmp_path: Path) -> None:
    assert "14×30" in refused(NotAVideo, save(tmp_path / "a.png", flat(9, (15, 30))))


def test_a_picture_cut_short(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp"):
        content = save(tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        assert refused(NotAVideo, tmp_path / name) == "The picture cannot be read."


@pytest.mark.parametrize(
    "content", [b"hello, this is text", b"", b"RIFF\0\0\0\0WEBPVP8 ", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
)
def test_files_that_only_look_like_pictures(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert "read" in refused(NotAVideo, tmp_path / "a.png")


def test_other_picture_formats_are_refused(tmp_path: Path) -> None:
    for suffix in ("gif", "bmp", "tiff", "ppm"):
        refused(NotAVideo, save(tmp_path / f"a.{suffix}"))


def test_riff_may_also_be_a_video_or_a_sound(tmp_path: Path) -> None:
    assert refused(NotAVideo, write_sound(tmp_path / "a.wav", tone(0.2), 16000)) == "The file has no video stream."


def test_videos_go_to_the_video_reader_with_their_limits(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(10))
    with open_source(tmp_path / "a.mp4", 50, Limits()) as source:
        assert isinstance(source, VideoReader)
        assert [number(picture) for picture in source] == [i // 2 for i in range(20)]
    refused(VideoTooLarge, tmp_path / "a.mp4", Limits(seconds=0.2))
    refused(VideoTooLarge, tmp_path / "a.mp4", Limits(pixels=3000))


def test_stills_can_be_read_twice(tmp_path: Path) -> None:
    source = StillPictures([save(tmp_path / "a.png")], Limits())
    assert [picture.tobytes() for picture in source] == [picture.tobytes() for picture in source]
