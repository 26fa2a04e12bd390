"""Files of sound and video, read and written. The only module that imports PyAV.

Everything read here comes from outside: only the demuxers listed below may open it, none of them may open a second
file, and sizes are checked before pictures are decoded. Time is integer: a frame's pts is its index, in units of 1/fps.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange
from numpy.typing import NDArray
from typing_extensions import Self

from lipserve.colour import U8, Matrix, bgr_to_planes, planes
from lipserve.errors import (
    AudioDamaged,
    AudioTooLong,
    NotAudio,
    NotAVideo,
    VideoDamaged,
    VideoTooLarge,
)

# Self-contained formats only: no playlist, no concatenation script, nothing that names other files.
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,wav,w64,aiff,mp3,flac,ogg,aac,amr,asf,caf"
OPEN_OPTIONS = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
JITTER = 0.05  # ticks: halfway between two, a frame takes the earlier one, also where times are rounded to milliseconds
MAX_SIDE = 16384  # pixels, of H.264 by libx264
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
AAC_BIT_RATE = 192_000
MAX_SOUND_RATE = 48_000  # Hz; more than that nobody hears, and a file may claim any rate
MAX_DECODED_RATE = 240  # frames per second of video, on average, that are decoded before it is called too large
PROBED_PIXELS = 2**22  # FFmpeg decodes pictures while it opens a file; of a sound's file, no larger ones than this,
FAR_TOO_LARGE = 4  # and of a video's file none of this many times the allowed pixels
MAX_DAMAGED_PACKETS = 0.02  # share of a sound's packets that may fail to decode; an MP3 cut anywhere begins with one

# ISO/IEC 23091-2 matrix coefficients, as in AVColorSpace; 2 is "unspecified", which decoders read as BT.601.
_MATRICES: dict[int, Matrix] = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}
RGB, UNSPECIFIED = 0, 2


@dataclass(frozen=True)
class ColourTags:
    """How a video's YUV is meant, as AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic numbers."""

    space: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    @property
    def matrix(self) -> Matrix:
        return _MATRICES.get(self.space, "bt601")


@dataclass(frozen=True)
class Sound:
    """Decoded sound: float32 (channels, samples) in [-1, 1], one or two channels.

    `rate` in Hz is the file's own, 48 kHz at most.
    """

    samples: NDArray[np.float32]
    rate: int

    @property
    def seconds(self) -> float:
        return float(self.samples.shape[1] / self.rate)


def _open(path: Path, max_pixels: int) -> Any:
    """Tags in any encoding. Raises av.FFmpegError or ValueError."""
    options = OPEN_OPTIONS | {"max_pixels": str(max_pixels)}
    return av.open(str(path.absolute()), options=options, metadata_errors="replace")


def read_sound(path: Path, max_seconds: float) -> Sound:
    """The first audio stream of any media file; more than two channels are mixed down to stereo, peaks are clipped.

    Raises NotAudio, AudioDamaged or AudioTooLong.
    """
    hint = "Send speech as WAV, MP3, M4A, OGG or FLAC, or a video with a sound track."
    try:
        container = _open(path, PROBED_PIXELS)
    except (av.FFmpegError, ValueError) as exc:
        raise NotAudio("The file is not a media file that can be read.", hint) from exc
    with container:
        if not container.streams.audio:
            raise NotAudio("The file has no audio stream.", hint)
        stream = container.streams.audio[0]
        if not stream.codec_context or not stream.rate or not stream.channels:
            raise NotAudio("The file's audio stream has no readable format.", hint)
        rate = min(int(stream.rate), MAX_SOUND_RATE)
        planar = _PlanarFloat("mono" if stream.channels == 1 else "stereo", rate)
        blocks: list[NDArray[Any]] = []
        samples = packets = damaged = 0
        try:
            for packet in container.demux(stream):
                packets += 1
                try:
                    decoded = packet.decode()
                except av.InvalidDataError:
                    damaged += 1
                    continue
                for frame in decoded:
                    converted = planar.convert(frame)
                    samples += sum(block.shape[1] for block in converted)
                    blocks += converted
                if samples > max_seconds * rate:
                    raise AudioTooLong(f"The audio is longer than {max_seconds:g} seconds.", "Send it in parts.")
            blocks += planar.rest()
        except (av.FFmpegError, ValueError) as exc:
            raise AudioDamaged(f"The audio cannot be decoded after {samples / rate:.2f} s.", hint) from exc
    if damaged > max(2, MAX_DAMAGED_PACKETS * packets):
        raise AudioDamaged(f"{damaged} of the audio's {packets} packets cannot be decoded.", hint)
    if not blocks:
        raise NotAudio("The audio stream is empty.", hint)
    joined = np.concatenate(blocks, axis=1, dtype=np.float32)
    blocks.clear()
    np.nan_to_num(joined, copy=False, nan=0.0)
    return Sound(np.clip(joined, -1, 1, out=joined), rate)


class _PlanarFloat:
    """Turns decoded frames into float32 (channels, samples) of one layout and rate, though theirs change midway."""

    def __init__(self, layout: str, rate: int) -> None:
        self._layout, self._rate = layout, rate
        self._source: tuple[str, str, int] | None = None
        self._resampler: Any = None

    def convert(self, frame: Any) -> list[NDArray[np.float32]]:
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        before = self.rest() if source != self._source else []
        if self._resampler is None:
            self._source = source
            self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate)
        return before + [block.to_ndarray() for block in self._resampler.resample(frame)]

    def rest(self) -> list[NDArray[np.float32]]:
        """What is still inside."""
        resampler, self._resampler = self._resampler, None
        return [block.to_ndarray() for block in resampler.resample(None)] if resampler is not None else []


class VideoReader:
    """A video as I420 pictures at a constant rate, upright, with square pixels and even sizes.

    Iterating gives uint8 (h·3/2, w), limited range, in the source's own colour matrix; `width`, `height` and `tags`
    are known from the start. A frame lands on the nearest tick of `fps`; empty ticks repeat the frame before them.
    The last odd row or column is cut off, since 4:2:0 has none. Raises NotAVideo, VideoDamaged or VideoTooLarge.
    """

    _HINT = "Send a complete MP4, MOV, WebM, MKV or AVI file."

    def __init__(self, path: Path, fps: int, max_seconds: float, max_pixels: int) -> None:
        self._fps, self._max_seconds, self._max_pixels = fps, max_seconds, max_pixels
        try:
            self._container = _open(path, FAR_TOO_LARGE * max_pixels)
        except (av.FFmpegError, ValueError) as exc:
            raise NotAVideo("The file is not a video that can be read.", self._HINT) from exc
        try:
            self._first_look()
        except BaseException:
            self._container.close()
            raise

    def _first_look(self) -> None:
        streams = [s for s in self._container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not streams or not streams[0].codec_context:
            raise NotAVideo("The file has no video stream.", self._HINT)
        self._stream = streams[0]
        codec = self._stream.codec_context
        if not codec.width or not codec.height:
            limit = self._max_pixels
            raise NotAVideo(f"The frames' size is not to be read, or far more than {limit} pixels.", self._HINT)
        if codec.width * codec.height > self._max_pixels:
            raise VideoTooLarge(
                f"Frames of {codec.width}×{codec.height} are more than {self._max_pixels} pixels.",
                "Scale the video down first.",
            )
        if self._duration > self._max_seconds + 1:
            raise self._too_long(self._duration)
        self._stream.thread_type = "AUTO"
        codec.options = {"max_pixels": str(FAR_TOO_LARGE * self._max_pixels)}
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise NotAVideo("The video has no frames.", self._HINT)
        self._first = first
        self.tags = ColourTags(int(first.colorspace), int(first.color_primaries), int(first.color_trc))
        if first.format.is_rgb or self.tags.space == RGB:
            self.tags = ColourTags(space=6)
        rows, self.width = self._picture(first).shape
        self.height = rows * 2 // 3

    def _too_long(self, seconds: float) -> VideoTooLarge:
        return VideoTooLarge(
            f"The video lasts {seconds:.0f} s or more, the limit is {self._max_seconds:g} s.", "Send a shorter clip."
        )

    @property
    def expected_frames(self) -> int | None:
        """A guess, for progress bars."""
        return round(self._duration * self._fps) or None

    @property
    def _duration(self) -> float:
        """Seconds, as the file says, 0 if it does not. The file's own duration may be that of a longer sound."""
        duration, time_base = self._stream.duration, self._stream.time_base
        return float(duration * time_base) if duration else (self._container.duration or 0) / av.time_base

    def _decode(self) -> Iterator[Any]:
        packets, frames, end, last, start = 0, 0, 0.0, 0.0, None
        try:
            for packet in self._container.demux(self._stream):
                packets += bool(packet.size)
                for frame in packet.decode():
                    frames += 1
                    if frames > MAX_DECODED_RATE * self._max_seconds:
                        raise VideoTooLarge(f"The video has more than {frames - 1} frames.", "Send a shorter clip.")
                    time = frame.time if frame.time is not None else end
                    start = time if start is None else start
                    last = self._seconds(frame)
                    end = max(end, time + last)
                    if time - start > self._max_seconds or end - start > self._max_seconds + 1:
                        raise self._too_long(end - start)
                    yield frame
        except (av.FFmpegError, ValueError) as exc:
            kind = VideoDamaged if packets else NotAVideo
            raise kind(f"The video cannot be decoded after {end:.2f} s.", self._HINT) from exc
        # An edit list leaves frames out, so fewer of them are a loss only if the end is missing too.
        if packets < self._stream.frames and end - (start or 0.0) < self._duration - 1.5 * last:
            raise VideoDamaged(
                f"The video is cut off: {packets} of {self._stream.frames} frames are there.", self._HINT
            )
        if start is not None and end - start < 0.9 * self._duration - 1:
            raise VideoDamaged(f"The video is cut off: it ends at {end:.1f} of {self._duration:.1f} s.", self._HINT)

    def _seconds(self, frame: Any) -> float:
        """How long a frame is shown."""
        return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / self._fps

    def _picture(self, frame: Any) -> U8:
        """One decoded frame to I420, upright."""
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        width = round(frame.width * aspect) // 2 * 2
        height = frame.height // 2 * 2
        if width * height > self._max_pixels or max(width, height) > MAX_SIDE:
            raise VideoTooLarge(f"Frames of {width}×{height} are too large.", "Scale the video down first.")
        if min(width, height) < 16:
            raise NotAVideo(f"Frames of {width}×{height} are too small to show a face.", self._HINT)
        try:
            if (frame.width, frame.height) != (width, height) and aspect == 1:
                i420 = _crop_to_even(frame.reformat(format="yuv420p", dst_color_range=ColorRange.MPEG))
            else:
                scaled = frame.reformat(width=width, height=height, format="yuv420p", dst_color_range=ColorRange.MPEG)
                i420 = scaled.to_ndarray()
        except (av.FFmpegError, ValueError) as exc:
            raise NotAVideo(f"Pixels of the format {frame.format.name} cannot be read.", self._HINT) from exc
        turns = round((frame.rotation or 0) / 90) % 4
        return _rotate(i420, turns) if turns else i420

    def __iter__(self) -> Iterator[U8]:
        emitted, current, start = 0, None, None
        end = 0.0
        for frame in self._chain():
            time = frame.time if frame.time is not None else end
            start = time if start is None else start
            tick = math.ceil((time - start) * self._fps - 0.5 - JITTER)
            while current is not None and emitted < tick:
                yield current
                emitted += 1
            current = self._picture(frame)
            if current.shape != (self.height * 3 // 2, self.width):
                raise VideoDamaged("The picture size changes in the middle of the video.", self._HINT)
            end = time + self._seconds(frame)
        last = max(emitted + 1, round((end - (start or 0.0)) * self._fps))
        while current is not None and emitted < last:
            yield current
            emitted += 1

    def _chain(self) -> Iterator[Any]:
        yield self._first
        yield from self._frames

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _crop_to_even(frame: Any) -> U8:
    """I420 of a yuv420p frame without its last odd row and column."""
    w, h = frame.width // 2 * 2, frame.height // 2 * 2
    out = np.empty((h * 3 // 2, w), np.uint8)
    for target, plane in zip(planes(out), frame.planes, strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        target[:] = rows[: target.shape[0], : target.shape[1]]
    return out


def _rotate(i420: U8, quarter_turns: int) -> U8:
    """Rotated counter-clockwise by 90° times `quarter_turns`."""
    return np.concatenate([np.rot90(plane, quarter_turns).reshape(-1) for plane in planes(i420)]).reshape(
        -1, i420.shape[1] if quarter_turns == 2 else i420.shape[0] * 2 // 3
    )


def bgr_to_i420(bgr: U8) -> tuple[U8, ColourTags]:
    """A still picture, uint8 (h, w, 3) BGR of even size, as the I420 that a video of it would hold (BT.601)."""
    i420 = np.empty((bgr.shape[0] * 3 // 2, bgr.shape[1]), np.uint8)
    for target, plane in zip(planes(i420), bgr_to_planes(bgr, "bt601"), strict=True):
        target[:] = plane
    return i420, ColourTags(space=6)


class Mp4Writer:
    """H.264 and AAC into one MP4 with its index in front, in one pass. Use as a context manager.

    The video is written frame by frame; sound goes along so that both stay interleaved, and all of it is kept.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: int,
        sound: Sound | None,
        tags: ColourTags | None = None,
        preset: str = "veryfast",
        crf: int = 18,
        threads: int = 2,
    ) -> None:
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._fps = fps
        self._frames = 0
        video = self._container.add_stream("libx264", rate=fps)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.time_base = Fraction(1, fps)
        video.codec_context.time_base = Fraction(1, fps)
        video.options = {"preset": preset, "crf": str(crf), "threads": str(threads)}
        tags = tags or ColourTags()
        video.codec_context.color_range = int(ColorRange.MPEG)
        video.codec_context.colorspace = tags.space
        video.codec_context.color_primaries = tags.primaries
        video.codec_context.color_trc = tags.transfer
        self._video = video
        self._sound = sound
        self._finished = False
        self._sent = 0  # samples of sound
        if sound is not None:
            if sound.rate not in AAC_RATES:
                raise ValueError(f"AAC has no sample rate {sound.rate}")
            layout = "mono" if sound.samples.shape[0] == 1 else "stereo"
            audio = self._container.add_stream("aac", rate=sound.rate, layout=layout)
            audio.bit_rate = AAC_BIT_RATE if layout == "stereo" else AAC_BIT_RATE // 2
            audio.codec_context.time_base = Fraction(1, sound.rate)
            self._audio = audio
        self._container.start_encoding()

    @property
    def frames(self) -> int:
        return self._frames

    def write(self, i420: U8) -> None:
        """Append one frame: uint8 (h·3/2, w), I420."""
        frame = av.VideoFrame.from_ndarray(i420, format="yuv420p")
        frame.pts = self._frames
        frame.time_base = Fraction(1, self._fps)
        self._container.mux(self._video.encode(frame))
        self._frames += 1
        if self._sound is not None:
            self._send_sound(until=self._frames * self._sound.rate // self._fps)

    def _send_sound(self, until: int) -> None:
        assert self._sound is not None
        samples, rate = self._sound.samples, self._sound.rate
        step = self._audio.codec_context.frame_size
        until = min(until, samples.shape[1])
        while self._sent < until:
            block = np.ascontiguousarray(samples[:, self._sent : self._sent + step])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self._audio.layout.name)
            frame.sample_rate = rate
            frame.pts = self._sent
            frame.time_base = Fraction(1, rate)
            self._container.mux(self._audio.encode(frame))
            self._sent += block.shape[1]

    def finish(self) -> None:
        """What the encoders still hold, the rest of the sound, and the index. Leaving the block without an error calls
        it, too."""
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._send_sound(until=self._sound.samples.shape[1])
            self._container.mux(self._audio.encode(None))
        self._finished = True
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None and not self._finished:
            self.finish()
        elif not self._finished:
            with suppress(av.FFmpegError, ValueError):  # a half file's trailer hides no earlier error
                self._container.close()


def encode_picture(bgr: U8, quality: int = 90) -> bytes:
    """uint8 (h, w, 3) BGR as JPEG bytes."""
    ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError("OpenCV could not encode the picture")
    return data.tobytes()
