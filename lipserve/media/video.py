"""Video files, decoded picture by picture."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
from av.video.reformatter import ColorRange

from lipserve.colour import RGB, U8, ColourTags, planes
from lipserve.errors import NotAVideo, VideoDamaged, VideoTooLarge
from lipserve.media.jpeg import may_have_too_many_scans
from lipserve.media.kinds import MEDIA, stranger
from lipserve.media.source import VIDEO_DECODERS, open_source

JITTER = 0.05  # ticks: halfway between two, a frame takes the earlier one, also where times are rounded to milliseconds
MAX_SIDE = 16384  # pixels, of H.264 by libx264
MAX_DECODED_RATE = 240  # frames per second of video, on average, that are decoded before it is called too large
FAR_TOO_LARGE = 4  # times the allowed pixels: no picture that large is even probed


class VideoReader:
    """A video as I420 pictures at a constant rate, upright, with square pixels and even sizes.

    Iterating gives uint8 (h·3/2, w), limited range, in the source's own colour matrix; `width`, `height` and `tags`
    are known from the start. A frame lands on the nearest tick of `fps`; empty ticks repeat the frame before them.
    The last odd row or column is cut off, since 4:2:0 has none. Raises NotAVideo, VideoDamaged or VideoTooLarge.
    """

    _HINT = "Send a complete MP4, MOV, WebM, MKV or AVI file."

    def __init__(self, path: Path, fps: int, max_seconds: float, max_pixels: int) -> None:
        self._fps, self._max_seconds, self._max_pixels = fps, max_seconds, max_pixels
        if words := stranger(path, MEDIA):
            raise NotAVideo(f"The file is {words}.", self._HINT)
        try:
            self._container = open_source(path, FAR_TOO_LARGE * max_pixels)
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
        if codec.name not in VIDEO_DECODERS.split(","):
            raise NotAVideo(f"The video is coded as {codec.name}, which is not taken.", self._HINT)
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
    def square_pixels(self) -> bool:
        """Whether the stored pixels are square, so that pictures have the size that is stored."""
        return (self._stream.sample_aspect_ratio or 1) == 1

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
                if self._stream.codec_context.name == "mjpeg" and may_have_too_many_scans(bytes(packet)):
                    raise VideoDamaged("A JPEG of the video has too many scans.", self._HINT)
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
            current = self._same_size(frame)
            end = time + self._seconds(frame)
        last = max(emitted + 1, round((end - (start or 0.0)) * self._fps))
        while current is not None and emitted < last:
            yield current
            emitted += 1

    def every_frame(self) -> Iterator[U8]:
        """Each decoded frame once, whatever its time, as programs see the clip that know no rate."""
        return map(self._same_size, self._chain())

    def _same_size(self, frame: Any) -> U8:
        picture = self._picture(frame)
        if picture.shape != (self.height * 3 // 2, self.width):
            raise VideoDamaged("The picture size changes in the middle of the video.", self._HINT)
        return picture

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
