"""Sound and video files, read and written: every format that is meant to work, and all that is meant to be refused."""

import io
import math
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from mutations import flac
from PIL import Image
from samples import (
    FORMATS,
    facts,
    flat_frame,
    frames_of,
    number,
    numbered,
    smooth,
    tone,
    write_clip,
    write_sound,
    write_video,
)

from lipserve.colour import U8, ColourTags, bgr_to_i420, planes, planes_to_bgr
from lipserve.errors import (
    AudioDamaged,
    AudioTooLong,
    BadMedia,
    NotAudio,
    NotAVideo,
    VideoDamaged,
    VideoTooLarge,
)
from lipserve.media import AAC_RATES, Mp4Writer, Sound, SoundReader, VideoEncoding, VideoReader, read_sound
from lipserve.media import sound as sound_module

PIXELS = 10**6


def watch(file: Path, fps: int = 25, seconds: float = 60, pixels: int = PIXELS) -> list[U8]:
    with VideoReader(file, fps, seconds, pixels) as video:
        return list(video)


def numbers(file: Path, fps: int = 25) -> list[int]:
    return [number(picture) for picture in watch(file, fps)]


def refused(error: type[BadMedia], file: Path, fps: int = 25, seconds: float = 60, pixels: int = PIXELS) -> str:
    with pytest.raises(error) as caught:
        watch(file, fps, seconds, pixels)
    assert type(caught.value) is error
    assert caught.value.hint
    return caught.value.message


def unheard(error: type[BadMedia], file: Path, seconds: float = 60) -> str:
    with pytest.raises(error) as caught:
        read_sound(file, seconds)
    assert type(caught.value) is error
    assert caught.value.hint
    return caught.value.message


# -- sound ------------------------------------------------------------------------------------------------------------


def wav(file: Path, samples: np.ndarray, rate: int = 16000, tags: bytes = b"") -> Path:
    """A WAV written by hand, to put into it what no encoder would. `samples`: float32 (channels, n)."""
    channels, data = samples.shape[0], np.ascontiguousarray(samples.T, "<f4").tobytes()
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, channels, rate, rate * 4 * channels, 4 * channels, 32)
    body = b"WAVE" + header + tags + struct.pack("<4sI", b"data", len(data)) + data
    file.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
    return file


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (48000, 2), (44100, 2)])
def test_every_format_is_heard_as_it_was_written(suffix: str, rate: int, channels: int, tmp_path: Path) -> None:
    sound = read_sound(write_sound(tmp_path / f"a{suffix}", tone(1.0, rate, channels), rate), 60)
    own_rate = 48000 if suffix == ".ogg" else rate  # Opus knows no other
    original = tone(1.0, own_rate, channels)
    assert sound.rate == own_rate
    assert sound.samples.dtype == np.float32
    assert sound.samples.shape[0] == channels
    late = sound.samples.shape[1] - own_rate
    assert 0 <= late < 1024 if suffix == ".m4a" else late == 0  # AAC fills its last frame
    assert sound.seconds == pytest.approx(1.0, abs=1024 / own_rate)
    for heard, written in zip(sound.samples, original, strict=True):
        assert np.corrcoef(heard[:own_rate], written)[0, 1] > 0.99
        assert np.abs(heard).max() == pytest.approx(0.5, abs=0.04)


def test_the_sound_track_of_a_video(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(25), sound=Sound(tone(1.0, 44100, 2), 44100))
    sound = read_sound(tmp_path / "a.mp4", 60)
    assert (sound.rate, sound.samples.shape[0]) == (44100, 2)
    assert 44100 <= sound.samples.shape[1] < 44100 + 1024
    assert np.corrcoef(sound.samples[0, :44100], tone(1.0, 44100)[0])[0, 1] > 0.99


def test_a_file_without_sound(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(2))
    assert "no audio stream" in unheard(NotAudio, tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is text\n" * 100, np.random.default_rng(0).bytes(20_000), b"RIFF\0\0\0\0WAVE", b"\0" * 5000],
    ids=["empty", "text", "garbage", "a header", "zeros"],
)
def test_a_file_that_is_no_media(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    assert "file" in unheard(NotAudio, tmp_path / "a.bin")
    assert "not a video" in refused(NotAVideo, tmp_path / "a.bin") or content.startswith(b"RIFF")


@pytest.mark.parametrize("script", ["hls", "concat", "svg", "mpd", "sdp"])
def test_a_file_that_names_other_files_is_refused(script: str, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    write_clip(other, numbered(5), sound=Sound(tone(0.2), 16000))
    texts = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.2,\n{other}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {other.name}\n",
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{other}"/></svg>',
        "mpd": f'<?xml version="1.0"?><MPD><Period><BaseURL>{other}</BaseURL></Period></MPD>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    }
    for suffix in ("mp4", "m3u8", "wav", script):
        file = tmp_path / f"script.{suffix}"
        file.write_text(texts[script])
        unheard(NotAudio, file)
        refused(NotAVideo, file)


def test_a_sound_longer_than_allowed(tmp_path: Path) -> None:
    file = wav(tmp_path / "a.wav", tone(1.0))
    assert "longer than 0.5 seconds" in unheard(AudioTooLong, file, 0.5)
    assert read_sound(file, 1.0).samples.shape == (1, 16000)


def test_a_wav_that_says_it_lasts_for_hours_is_read_to_its_end(tmp_path: Path) -> None:
    content = bytearray(wav(tmp_path / "a.wav", tone(1.0)).read_bytes())
    struct.pack_into("<I", content, 40, 2**32 - 1)
    (tmp_path / "a.wav").write_bytes(content)
    assert read_sound(tmp_path / "a.wav", 2.0).samples.shape == (1, 16000)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (flac(48_000, [20]), NotAudio, "20 samples a second"),  # 50 minutes of 48 kHz in 18 bytes
        (flac(48_000, [48_000, 20]), AudioDamaged, "20 samples a second"),
        (flac(48_000, [4_000] * 9), AudioTooLong, "longer than 60 seconds"),
        (flac(40, [40]), NotAudio, "40 samples a second"),
        (flac(3_999, [3_999]), NotAudio, "3999 samples a second"),
    ],
    ids=["one", "second", "long", "declared", "just below"],
)
def test_no_rate_makes_hours_of_a_few_bytes(
    content: bytes, error: type[BadMedia], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused has not been converted: that is where the memory would go."""
    converted: list[int] = []
    convert = sound_module._PlanarFloat.convert

    def watched(planar: sound_module._PlanarFloat, frame: av.AudioFrame) -> list[np.ndarray]:
        converted.append(frame.samples * 48_000 // frame.sample_rate)
        return convert(planar, frame)

    monkeypatch.setattr(sound_module._PlanarFloat, "convert", watched)
    (tmp_path / "a.flac").write_bytes(content)
    assert said in unheard(error, tmp_path / "a.flac")
    assert sum(converted) <= 60 * 48_000


def test_frames_of_several_rates_are_read_as_long_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(flac(48_000, [48_000, 4_000, 16_000], 8_000))
    assert read_sound(tmp_path / "a.flac", 60).seconds == pytest.approx(1 / 6 + 2 + 1 / 2, abs=0.01)


def test_a_wav_without_samples(tmp_path: Path) -> None:
    assert "empty" in unheard(NotAudio, wav(tmp_path / "a.wav", np.zeros((1, 0), np.float32)))


def test_samples_that_are_no_numbers_are_silence_and_peaks_are_clipped(tmp_path: Path) -> None:
    samples = np.array([[0.5, np.nan, np.inf, -np.inf, 1e30, -3.0, 0.25]], np.float32)
    heard = read_sound(wav(tmp_path / "a.wav", samples), 60)
    assert heard.samples.tolist() == [[0.5, 0.0, 1.0, -1.0, 1.0, -1.0, 0.25]]


def test_a_sound_with_peaks_beyond_measure_can_be_written(tmp_path: Path) -> None:
    samples = tone(0.2)
    samples[0, 100] = 1e30
    write_clip(tmp_path / "a.mp4", numbered(5), sound=read_sound(wav(tmp_path / "a.wav", samples), 60))
    assert facts(tmp_path / "a.mp4")["frames"] == 5


@pytest.mark.parametrize("rate", [96_000, 192_000, 655_350])
def test_no_rate_above_48_khz(rate: int, tmp_path: Path) -> None:
    sound = read_sound(wav(tmp_path / "a.wav", tone(1.0, rate), rate), 1.001)
    assert sound.rate == 48_000
    assert sound.samples.shape == (1, pytest.approx(48_000, abs=50))
    heard = sound.samples[0, :47_000]
    assert np.abs(heard - tone(1.0, 48_000)[0, :47_000]).max() < 0.01
    assert "longer than 0.9" in unheard(AudioTooLong, tmp_path / "a.wav", 0.9)


def test_six_channels_are_mixed_to_two(tmp_path: Path) -> None:
    samples = np.zeros((6, 16000), np.float32)  # front left, front right, centre, low, back left, back right
    samples[0], samples[2] = 0.5 * tone(1.0)[0], tone(1.0)[0, ::-1]
    sound = read_sound(wav(tmp_path / "a.wav", samples), 60)
    assert sound.samples.shape == (2, 16000)
    assert sound.samples[0] == pytest.approx(samples[0] + samples[2] * math.sqrt(0.5), abs=1e-4)
    assert sound.samples[1] == pytest.approx(samples[2] * math.sqrt(0.5), abs=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_is_read_many_packets_at_a_time(channels: int, tmp_path: Path) -> None:
    file = write_sound(tmp_path / "a.m4a", tone(3.0, 44100, channels), 44100)
    with SoundReader(file, 60) as reader:
        blocks = [block.shape for block in reader]
    assert [count for count, _ in blocks] == [channels] * len(blocks)
    assert all(2**15 <= samples < 2**15 + 1024 for _, samples in blocks[:-1])
    assert len(blocks) == 5  # of 44100·3 samples


def test_tags_in_an_old_encoding_do_no_harm(tmp_path: Path) -> None:
    name = "Künstlerin".encode("latin-1")
    tags = struct.pack("<4sI4s4sI", b"LIST", 12 + len(name), b"INFO", b"IART", len(name)) + name
    assert read_sound(wav(tmp_path / "a.wav", tone(0.5), tags=tags), 60).samples.shape == (1, 8000)


def test_an_mp3_cut_at_both_ends_is_read(tmp_path: Path) -> None:
    file = write_sound(tmp_path / "a.mp3", tone(2.0, 44100), 44100)
    content = file.read_bytes()
    file.write_bytes(content[len(content) // 4 : len(content) * 3 // 4])
    assert read_sound(file, 60).seconds == pytest.approx(1.0, abs=0.1)


def test_a_sound_that_is_mostly_damaged(tmp_path: Path) -> None:
    file = write_sound(tmp_path / "a.m4a", tone(3.0, 44100), 44100)
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat") + 4
    stop = content.index(b"moov") - 4
    content[start:stop] = np.random.default_rng(0).bytes(stop - start)
    file.write_bytes(content)
    assert "decode" in unheard(AudioDamaged, file)


def test_a_sound_whose_layout_changes_is_read_whole(tmp_path: Path) -> None:
    stereo = write_sound(tmp_path / "a.mp3", tone(1.0, 44100, 2), 44100).read_bytes()
    mono = write_sound(tmp_path / "b.mp3", tone(1.0, 44100, 1), 44100).read_bytes()
    (tmp_path / "c.mp3").write_bytes(stereo + mono[mono.index(b"\xff\xfb") :])
    sound = read_sound(tmp_path / "c.mp3", 60)
    assert sound.seconds == pytest.approx(2.0, abs=0.15)
    for half in np.array_split(sound.samples, 2, axis=1):
        assert np.abs(half).max(axis=1).tolist() == pytest.approx([0.5] * len(sound.samples), abs=0.2)


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wav(Path("take:1.wav"), tone(0.5))
    assert read_sound(Path("take:1.wav"), 60).samples.shape == (1, 8000)


# -- video: how many pictures, and when -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("source_fps", "fps", "expected"),
    [
        (25, 25, list(range(30))),
        (30, 25, [0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 27, 28, 29]),
        (24, 25, [*range(14), 13, *range(14, 30)]),  # 1.25 s: one picture stands twice
        (50, 25, list(range(1, 30, 2))),
        (60, 30, list(range(1, 30, 2))),
        (25, 50, [i for i in range(30) for _ in range(2)]),
    ],
)
def test_frame_rates(suffix: str, source_fps: int, fps: int, expected: list[int], tmp_path: Path) -> None:
    file = write_video(tmp_path / f"a{suffix}", frames_of(numbered(30)), time_base=Fraction(1, source_fps))
    assert numbers(file, fps) == sorted(expected)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("first", [0, 400])
def test_a_variable_frame_rate_keeps_its_timing(suffix: str, first: int, tmp_path: Path) -> None:
    pts = [first + ms for ms in (0, 40, 80, 200, 240, 500)]
    file = write_video(tmp_path / f"a{suffix}", frames_of(numbered(6)), pts, Fraction(1, 1000))
    assert numbers(file) == [0, 1, 2, 2, 2, 3, *[4] * 6, 5]


def test_pictures_between_two_ticks_are_left_out(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mkv", frames_of(numbered(5)), [0, 5, 10, 40, 80], Fraction(1, 1000))
    assert numbers(file)[:2] == [2, 3]


def test_every_frame_once_whatever_its_time(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "a.mkv", frames_of(numbered(5)), [0, 1, 5, 6, 40])
    with VideoReader(clip, 10, 60, 10**7) as video:
        assert [number(picture) for picture in video.every_frame()] == [0, 1, 2, 3, 4]


def test_one_picture(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(1))
    assert numbers(tmp_path / "a.mp4") == [0]


def test_expected_frames_are_those_of_the_picture_not_of_a_longer_sound(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(10), sound=Sound(tone(5.0), 16000))
    with VideoReader(tmp_path / "a.mp4", 25, 60, PIXELS) as video:
        assert video.expected_frames == 10
        assert [number(picture) for picture in video] == list(range(10))


def test_an_edit_list_that_leaves_frames_out_is_no_damage(tmp_path: Path) -> None:
    """As a telephone writes when a clip is trimmed: all frames are in the file, a second of them is shown."""
    file = write_video(tmp_path / "a.mp4", frames_of(numbered(50)))
    content = bytearray(file.read_bytes())
    entry = content.index(b"elst") + 12
    assert struct.unpack_from(">Ii", content, entry) == (2000, 0)  # ms shown, from where
    struct.pack_into(">I", content, entry, 1000)
    file.write_bytes(content)
    assert numbers(file) == list(range(25))


# -- video: what a picture looks like ---------------------------------------------------------------------------------


def quadrants(width: int = 64, height: int = 48) -> U8:
    """I420 with another brightness and colour in each corner."""
    picture = np.empty((height * 3 // 2, width), np.uint8)
    for plane, values in zip(
        planes(picture), ((40, 90, 150, 220), (90, 110, 130, 150), (160, 140, 120, 100)), strict=True
    ):
        h, w = plane.shape
        for value, rows, columns in zip(
            values,
            (slice(h // 2), slice(h // 2), slice(h // 2, h), slice(h // 2, h)),
            (slice(w // 2), slice(w // 2, w), slice(w // 2), slice(w // 2, w)),
            strict=True,
        ):
            plane[rows, columns] = value
    return picture


def with_display_matrix(file: Path, a: int, b: int, c: int, d: int) -> None:
    """Writes x' = a·x + c·y, y' = b·x + d·y, which players apply, into the track header."""
    content = bytearray(file.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    assert struct.unpack_from(">9i", content, matrix) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, matrix, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("matrix", "clockwise"),
    [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)],
    ids=["upright", "90", "180", "270"],
)
def test_rotated_videos_are_shown_upright(matrix: tuple[int, int, int, int], clockwise: int, tmp_path: Path) -> None:
    # (0, 1, -1, 0): x' = −y, y' = x; the top left corner goes to the top right, a turn to the right.
    write_clip(tmp_path / "a.mp4", [quadrants()] * 2)
    with_display_matrix(tmp_path / "a.mp4", *matrix)
    write_clip(tmp_path / "upright.mp4", [quadrants()] * 2)
    with VideoReader(tmp_path / "a.mp4", 25, 60, PIXELS) as video:
        assert (video.width, video.height) == ((48, 64) if clockwise % 2 else (64, 48))
        pictures = list(video)
    assert len(pictures) == 2
    for picture, upright in zip(pictures, watch(tmp_path / "upright.mp4"), strict=True):
        for shown, plane in zip(planes(picture), planes(upright), strict=True):
            assert (shown == np.rot90(plane, -clockwise)).all()


def test_odd_sizes_lose_their_last_row_and_column(tmp_path: Path) -> None:
    bgr = smooth(65, 49)
    source = av.VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format="yuv420p")
    file = write_video(tmp_path / "a.mkv", [source], codec="ffv1")  # lossless
    (picture,) = watch(file)
    assert picture.shape == (72, 64)
    for found, plane in zip(planes(picture), source.planes, strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        assert (found == rows[: found.shape[0], : found.shape[1]]).all()


@pytest.mark.parametrize(("width", "height"), [(161, 120), (160, 121), (161, 121)])
def test_odd_sizes_of_other_pixel_formats(width: int, height: int, tmp_path: Path) -> None:
    bgr = smooth(width, height)
    file = write_video(
        tmp_path / "a.mkv", [av.VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format="bgr0")], codec="ffv1"
    )
    (picture,) = watch(file)
    assert picture.shape == (180, 160)
    assert np.abs(planes_to_bgr(picture, "bt601").astype(int) - bgr[:120, :160]).max() <= 5


def test_non_square_pixels_are_stretched(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", frames_of([quadrants()]), aspect=Fraction(3, 2))
    with VideoReader(file, 25, 60, PIXELS) as video:
        assert (video.width, video.height) == (96, 48)
        (picture,) = list(video)
    y = planes(picture)[0]
    assert [int(y[10, x]) for x in (10, 40, 56, 86)] == pytest.approx([40, 40, 90, 90], abs=2)


def test_non_square_pixels_count_as_they_are_shown(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", frames_of([quadrants()]), aspect=Fraction(10, 1))
    assert "640×48" in refused(VideoTooLarge, file, pixels=20_000)


@pytest.mark.parametrize("space", [1, 6])
def test_full_range_becomes_limited_in_its_own_matrix(space: int, tmp_path: Path) -> None:
    frame = flat_frame((64, 48), "yuvj420p", (200, 90, 180), full_range=True)
    file = write_video(tmp_path / "a.mp4", [frame], space=space)
    with VideoReader(file, 25, 60, PIXELS) as video:
        assert video.tags.space == space
        (picture,) = list(video)
    expected = (16 + 200 * 219 / 255, 128 + (90 - 128) * 224 / 255, 128 + (180 - 128) * 224 / 255)
    assert [int(plane[8, 8]) for plane in planes(picture)] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("space", [1, 2, 5, 6, 9])
def test_limited_range_is_left_as_it_is(space: int, tmp_path: Path) -> None:
    frame = flat_frame((64, 48), "yuv444p", (100, 90, 180), full_range=False)
    file = write_video(tmp_path / "a.mp4", [frame], space=space)
    with VideoReader(file, 25, 60, PIXELS) as video:
        assert video.tags == ColourTags(space=space)
        (picture,) = list(video)
    assert [int(plane[8, 8]) for plane in planes(picture)] == [100, 90, 180]


def test_ten_bits_become_eight(tmp_path: Path) -> None:
    frame = flat_frame((64, 48), "yuv420p10le", (400, 360, 720), full_range=False)
    file = write_video(tmp_path / "a.mp4", [frame], space=9)
    with VideoReader(file, 25, 60, PIXELS) as video:
        assert video.tags.matrix == "bt2020"
        (picture,) = list(video)
    assert [int(plane[8, 8]) for plane in planes(picture)] == [100, 90, 180]


@pytest.mark.parametrize(("codec", "pixel_format"), [("ffv1", "bgr0"), ("libx264rgb", "bgr24"), ("ffv1", "gray")])
def test_rgb_and_grey_sources_are_tagged_as_what_they_become(codec: str, pixel_format: str, tmp_path: Path) -> None:
    colour = (50, 100, 200) if pixel_format != "gray" else (120, 120, 120)
    source = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="bgr24")
    frame = source.reformat(format=pixel_format, dst_color_range=ColorRange.JPEG)
    file = write_video(tmp_path / "a.mkv", [frame], codec=codec, space=0)
    with VideoReader(file, 25, 60, PIXELS) as video:
        assert video.tags == ColourTags(space=6)
        (picture,) = list(video)
    assert planes_to_bgr(picture, "bt601")[8, 8].tolist() == pytest.approx(colour, abs=2)


def test_a_still_picture_looks_like_its_video(tmp_path: Path) -> None:
    bgr = smooth(320, 240)
    i420, tags = bgr_to_i420(bgr)
    assert i420.shape == (360, 320)
    assert tags == ColourTags(space=6)
    assert np.abs(planes_to_bgr(i420, tags.matrix).astype(int) - bgr).max() <= 4


# -- video: what is refused -------------------------------------------------------------------------------------------


def test_a_truncated_mp4(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", [np.random.default_rng(i).integers(16, 235, (72, 64), np.uint8) for i in range(50)])
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) * 6 // 10])
    assert "video" in refused(VideoDamaged, tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(content[: content.index(b"mdat") + 4])
    assert "0 of 50 frames" in refused(VideoDamaged, tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(content[:400])
    assert "video" in refused(NotAVideo, tmp_path / "a.mp4")


def test_a_truncated_mkv(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mkv", frames_of(numbered(100)))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "of 4.0 s" in refused(VideoDamaged, file)


def test_a_damaged_middle(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", [np.random.default_rng(i).integers(16, 235, (72, 64), np.uint8) for i in range(20)])
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = (content.index(b"mdat") + len(content)) // 2
    content[middle : middle + 4000] = b"\xff" * 4000
    (tmp_path / "a.mp4").write_bytes(content)
    assert "decoded after 0." in refused(VideoDamaged, tmp_path / "a.mp4")


def test_a_video_without_frames(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
        container.mux(stream.encode(None))
    assert "no frames" in refused(NotAVideo, tmp_path / "a.avi")


def test_a_sound_is_not_a_video(tmp_path: Path) -> None:
    for suffix in FORMATS:
        file = write_sound(tmp_path / f"a{suffix}", tone(0.5), 16000)
        assert refused(NotAVideo, file) == "The file has no video stream."


def test_cover_art_is_not_a_video(tmp_path: Path) -> None:
    file = write_sound(tmp_path / "a.mp3", tone(1.0), 16000)
    jpeg = av.VideoFrame.from_ndarray(smooth(64, 48), format="bgr24")
    picture = bytes(write_video(tmp_path / "cover.mkv", [jpeg.reformat(format="yuvj420p")], codec="mjpeg").read_bytes())
    picture = picture[picture.index(b"\xff\xd8\xff") : picture.rindex(b"\xff\xd9") + 2]
    apic = b"\0image/jpeg\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">IH", len(apic), 0) + apic
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    mpeg = file.read_bytes()
    file.write_bytes(b"ID3\x03\0\0" + size + frame + mpeg[mpeg.index(b"\xff\xf3") :])
    with av.open(str(file)) as container:
        assert len(container.streams.video) == 1  # the cover is there
    assert refused(NotAVideo, file) == "The file has no video stream."
    assert read_sound(file, 60).seconds == pytest.approx(1.0, abs=0.1)


def test_too_many_pixels(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(2))
    assert "64×48 are more than 3071" in refused(VideoTooLarge, tmp_path / "a.mp4", pixels=64 * 48 - 1)
    assert len(watch(tmp_path / "a.mp4", pixels=64 * 48)) == 2


def test_far_too_many_pixels_are_not_even_probed(tmp_path: Path) -> None:
    frame = flat_frame((640, 480), "rgb24", (100,), full_range=True)
    file = write_video(tmp_path / "a.mov", [frame], codec="png")
    assert "1000 pixels" in refused(NotAVideo, file, pixels=1000)


def scans(count: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A progressive JPEG with its last scan so many times."""
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * count + b"\xff\xd9"


def test_jpegs_that_are_gone_over_for_hours_are_not_decoded(tmp_path: Path) -> None:
    for count, error in ((80, None), (3000, VideoDamaged)):
        with av.open(str(tmp_path / "a.mkv"), "w") as container:
            stream = container.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            packet = av.Packet(scans(count))
            packet.pts, packet.time_base, packet.stream = 0, Fraction(1, 25), stream
            container.mux(packet)
        if error:
            assert "too many scans" in refused(error, tmp_path / "a.mkv")
        else:
            assert len(watch(tmp_path / "a.mkv")) == 1


def test_a_side_longer_than_h264_allows(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mkv", frames_of([np.full((24, 16_386), 100, np.uint8)]), codec="ffv1")
    assert "16386×16" in refused(VideoTooLarge, file)
    write_clip(tmp_path / "a.mp4", [np.full((24, 16_384), 100, np.uint8)])
    assert len(watch(tmp_path / "a.mp4")) == 1


def test_too_small_for_a_face(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", [np.full((21, 64), 100, np.uint8)])
    assert "64×14" in refused(NotAVideo, tmp_path / "a.mp4")


def test_too_long(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(100))
    assert refused(VideoTooLarge, tmp_path / "a.mp4", seconds=2) == "The video lasts 4 s or more, the limit is 2 s."
    assert len(watch(tmp_path / "a.mp4", seconds=4)) == 100


def test_too_many_frames_for_any_camera(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mkv", frames_of(numbered(30)), time_base=Fraction(1, 1000))  # 30 in 30 ms
    assert "more than 24 frames" in refused(VideoTooLarge, file, seconds=0.1)
    assert len(watch(file, seconds=0.2)) == 2


def test_pixel_formats_that_cannot_be_converted(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(1))
    with (
        VideoReader(tmp_path / "a.mp4", 25, 60, PIXELS) as video,
        pytest.raises(NotAVideo, match="gray32le"),
    ):
        video._picture(av.VideoFrame(64, 48, "gray32le"))


def test_too_long_though_the_file_says_nothing(tmp_path: Path) -> None:
    pts = [0, 40, 5000]
    file = write_video(tmp_path / "a.mkv", frames_of(numbered(3)), pts, Fraction(1, 1000))
    content = bytearray(file.read_bytes())
    duration = content.index(b"\x44\x89\x88") + 3  # the segment's Duration element, a float of 8 bytes
    struct.pack_into(">d", content, duration, 0.0)
    for name in (b"\x44\x89\x88", b"DURATION"):
        assert name in content
    file.write_bytes(bytes(content).replace(b"DURATION", b"WHATEVER"))
    assert "limit is 3 s" in refused(VideoTooLarge, file, seconds=3)


def test_the_picture_size_changes(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index, size in enumerate(((64, 48), (96, 64))):
            coder = av.CodecContext.create("mjpeg", "w")
            coder.width, coder.height, coder.pix_fmt, coder.time_base = *size, "yuvj420p", Fraction(1, 25)
            frame = flat_frame(size, "yuvj420p", (100, 128, 128), full_range=True)
            for packet in [*coder.encode(frame), *coder.encode(None)]:
                packet.pts = packet.dts = index
                packet.time_base, packet.stream = Fraction(1, 25), stream
                container.mux(packet)
    assert "size changes" in refused(VideoDamaged, tmp_path / "a.mkv")


@pytest.mark.parametrize("codec", ["flv", "cinepak"])
def test_a_codec_that_is_not_taken_is_named(codec: str, tmp_path: Path) -> None:
    pixels = "rgb24" if codec == "cinepak" else "yuv420p"
    frame = flat_frame((64, 48), pixels, (100,) if codec == "cinepak" else (100, 128, 128), full_range=False)
    file = write_video(tmp_path / "a.avi", [frame], codec=codec)
    assert f"is coded as {codec}" in refused(NotAVideo, file)


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [1, 24, 25, 30, 60])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_both_durations_within_a_frame(fps: int, rate: int, channels: int, tmp_path: Path) -> None:
    seconds = 2 if fps == 1 else 1.23
    frames = math.floor(seconds * fps)
    write_clip(tmp_path / "a.mp4", numbered(frames), fps, Sound(tone(seconds, rate, channels), rate))
    found = facts(tmp_path / "a.mp4")
    assert (found["frames"], found["rate"], found["size"]) == (frames, fps, (64, 48))
    assert (found["video_codec"], found["audio_codec"]) == ("h264", "aac")
    assert found["video_seconds"] == pytest.approx(frames / fps, abs=1e-3)
    assert found["audio_seconds"] == pytest.approx(seconds, abs=1 / fps)
    assert numbers(tmp_path / "a.mp4", fps) == list(range(frames))


@pytest.mark.parametrize("rate", AAC_RATES)
def test_every_rate_of_aac(rate: int, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(10), sound=Sound(tone(0.4, rate), rate))
    assert facts(tmp_path / "a.mp4")["audio_seconds"] == pytest.approx(0.4, abs=0.05)


def test_another_rate_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12345"):
        Mp4Writer(tmp_path / "a.mp4", (64, 48), 25, Sound(tone(0.4, 12345), 12345))


def test_without_sound(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(10))
    found = facts(tmp_path / "a.mp4")
    assert found["frames"] == 10
    assert "audio_codec" not in found


def test_a_sound_longer_than_the_video_is_kept_whole(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(5), sound=Sound(tone(1.5), 16000))
    found = facts(tmp_path / "a.mp4")
    assert (found["frames"], found["video_seconds"]) == (5, pytest.approx(0.2))
    assert found["audio_seconds"] == pytest.approx(1.5, abs=0.04)


def test_the_index_stands_in_front(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", numbered(10), sound=Sound(tone(0.4), 16000))
    content, position, boxes = (tmp_path / "a.mp4").read_bytes(), 0, []
    while position < len(content):
        size, name = struct.unpack_from(">I4s", content, position)
        boxes.append(name)
        position += size
    assert boxes[0] == b"ftyp"
    assert boxes.index(b"moov") < boxes.index(b"mdat")


def test_colour_tags_are_written_and_read_back(tmp_path: Path) -> None:
    for tags in (ColourTags(1, 1, 1), ColourTags(6, 5, 6), ColourTags(9, 9, 16)):
        with Mp4Writer(tmp_path / "a.mp4", (64, 48), 25, None, tags) as video:
            video.write(numbered(1)[0])
        with VideoReader(tmp_path / "a.mp4", 25, 60, PIXELS) as reader:
            assert reader.tags == tags


def test_frames_are_counted_as_they_are_written(tmp_path: Path) -> None:
    with Mp4Writer(tmp_path / "a.mp4", (64, 48), 25, None) as video:
        for expected, picture in enumerate(numbered(3)):
            assert video.frames == expected
            video.write(picture)
        assert video.frames == 3


def test_a_finished_file_is_whole_before_the_block_ends(tmp_path: Path) -> None:
    with Mp4Writer(tmp_path / "a.mp4", (64, 48), 25, Sound(tone(0.4), 16000)) as video:
        for picture in numbered(10):
            video.write(picture)
        video.finish()
        assert facts(tmp_path / "a.mp4")["frames"] == 10
        size = (tmp_path / "a.mp4").stat().st_size
    assert (tmp_path / "a.mp4").stat().st_size == size


@pytest.mark.parametrize("written", [0, 3])
@pytest.mark.parametrize("sound", [None, Sound(tone(1.0), 16000)], ids=["silent", "sound"])
def test_an_error_inside_the_block_comes_out_as_it_is(written: int, sound: Sound | None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), Mp4Writer(tmp_path / "a.mp4", (64, 48), 25, sound) as video:
        for picture in numbered(written):
            video.write(picture)
        raise RuntimeError("mine")


def test_pictures_drawn_into_the_writers_buffer_arrive_as_they_were(tmp_path: Path) -> None:
    """One buffer for all, while x264 looks ahead at forty of them; width and chroma do not fill FFmpeg's rows."""
    noise = np.random.default_rng(0).integers(16, 235, (60, 75, 74), np.uint8)
    lossless = VideoEncoding(preset="slow", crf=0)
    with Mp4Writer(tmp_path / "a.mp4", (74, 50), 25, None, encoding=lossless) as video:
        for picture in noise:
            for target, plane in zip(video.picture(), planes(picture), strict=True):
                target[:] = plane
            video.append()
    with av.open(str(tmp_path / "a.mp4")) as container:
        shown = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert (np.stack(shown) == noise).all()


def test_the_writers_buffer_stays_where_it_is(tmp_path: Path) -> None:
    """libx264 copies what it is given, so nothing of a frame's size is allocated for the next one."""
    with Mp4Writer(tmp_path / "a.mp4", (64, 48), 25, None) as video:
        places = set()
        for _ in range(60):
            places.add(tuple(plane.ctypes.data for plane in video.picture()))
            video.append()
    assert len(places) == 1


def test_better_quality_makes_a_larger_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(16, 235, (72, 64), np.uint8)
    sizes = []
    for crf in (10, 40):
        with Mp4Writer(
            tmp_path / "a.mp4", (64, 48), 25, None, encoding=VideoEncoding(preset="ultrafast", crf=crf)
        ) as video:
            video.write(noise)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes[0] > 1.5 * sizes[1]
