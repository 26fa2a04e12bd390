"""Makes the media that tests feed in: short clips of the bundled avatar, and sounds in every format."""

from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from lipserve.colour import U8
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
