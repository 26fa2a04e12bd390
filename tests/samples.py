"""Makes the media that tests feed in: short clips of the bundled avatar, and sounds in every format."""

from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from gateway.blend import blend
from lipserve.avatar import Avatar
from lipserve.colour import U8, planes
from lipserve.media import Mp4Writer, Sound, VideoReader

ROOT = Path(__file__).parent.parent
LISA = ROOT / "demo/lisa.mp4"
SPEECH = ROOT / "demo/speech.flac"


def pictures(count: int, file: Path = LISA) -> list[U8]:
    """The first I420 pictures of the bundled clip."""
    with VideoReader(file, 25, 60, 10**7) as video:
        return list(islice(video, count))


def short_clip(file: Path, frames: int) -> Path:
    write_clip(file, pictures(frames))
    return file


def write_clip(file: Path, frames: list[U8], fps: int = 25, sound: Sound | None = None) -> None:
    rows, width = frames[0].shape
    with Mp4Writer(file, (width, rows * 2 // 3), fps, sound) as video:
        for frame in frames:
            video.write(frame)


def tone(seconds: float, rate: int = 16000, channels: int = 1) -> NDArray[np.float32]:
    """float32 (channels, samples): syllables of 200 Hz, four a second."""
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * 200 * t) * (0.5 - 0.5 * np.cos(2 * np.pi * 4 * t))
    return np.tile(wave.astype(np.float32), (channels, 1))


# file suffix: codec, sample format
FORMATS = {
    ".wav": ("pcm_s16le", "s16"),
    ".flac": ("flac", "s16"),
    ".mp3": ("libmp3lame", "fltp"),
    ".m4a": ("aac", "fltp"),
    ".ogg": ("libopus", "flt"),
}


def blended(avatar: Avatar, index: int, face: U8) -> U8:
    """One I420 picture of its own, uint8 (h·3/2, w)."""
    picture = np.full_like(avatar.frame(0), 77)
    blend(avatar, index, face, planes(picture))
    return picture


def write_sound(file: Path, samples: NDArray[np.float32], rate: int) -> Path:
    """`samples`: float32 (channels, n); the format follows the file's suffix."""
    codec, sample_format = FORMATS[file.suffix]
    coded_rate = 48000 if codec == "libopus" else rate
    layout = "mono" if samples.shape[0] == 1 else "stereo"
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=coded_rate, layout=layout)
        resampler = av.AudioResampler(format=sample_format, layout=layout, rate=coded_rate, frame_size=960)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = rate
        frame.pts = 0
        frame.time_base = Fraction(1, rate)
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return file


def facts(file: Path) -> dict[str, object]:
    """What a decoder finds in a finished mp4: frames really decoded, durations in seconds, sizes, codecs."""
    with av.open(str(file)) as container:
        video = container.streams.video[0]
        frames = sum(1 for _ in container.decode(video))
        out: dict[str, object] = {
            "frames": frames,
            "size": (video.width, video.height),
            "rate": video.average_rate,
            "video_codec": video.codec_context.name,
            "video_seconds": float(video.duration * video.time_base),
        }
        if container.streams.audio:
            audio = container.streams.audio[0]
            out |= {"audio_codec": audio.codec_context.name, "audio_seconds": float(audio.duration * audio.time_base)}
    return out


def numbered(count: int, size: tuple[int, int] = (64, 48)) -> list[U8]:
    """Flat grey pictures, whose brightness is their number."""
    width, height = size
    pictures = [np.full((height * 3 // 2, width), 128, np.uint8) for _ in range(count)]
    for index, picture in enumerate(pictures):
        picture[:height] = 20 + 2 * index
    return pictures


def number(picture: U8) -> int:
    return round((int(picture[0, 0]) - 20) / 2)


def write_video(
    file: Path,
    frames: list[av.VideoFrame],
    pts: list[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    codec: str = "libx264",
    aspect: Fraction | None = None,
    space: int = 2,
) -> Path:
    """Any frames at any times into any container, which follows the file's suffix."""
    first = frames[0]
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=1 / time_base)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.color_range, stream.codec_context.colorspace = first.color_range, space
        if codec == "libx264":
            stream.options = {"qp": "1", "bf": "0", "g": "10"}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame, time in zip(frames, pts or range(len(frames)), strict=True):
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


def frames_of(pictures: list[U8]) -> list[av.VideoFrame]:
    return [av.VideoFrame.from_ndarray(picture, format="yuv420p") for picture in pictures]


def flat_frame(size: tuple[int, int], pixel_format: str, values: tuple[int, ...], full_range: bool) -> av.VideoFrame:
    """One colour: a sample value for each plane, in the pixel format's own depth."""
    frame = av.VideoFrame(*size, pixel_format)
    for plane, value in zip(frame.planes, values, strict=True):
        wide = "10" in pixel_format
        plane.update(np.full(plane.buffer_size // (2 if wide else 1), value, np.uint16 if wide else np.uint8).tobytes())
    frame.color_range = 2 if full_range else 1
    return frame


def smooth(width: int, height: int) -> U8:
    """uint8 (h, w, 3) BGR without edges: every colour channel a slope of its own."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.stack([40 + 160 * x, 220 - 150 * y, 60 + 90 * x + 80 * y], axis=-1).round().astype(np.uint8)
