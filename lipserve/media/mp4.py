"""Finished videos, written frame by frame."""

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange

from lipserve.colour import U8, ColourTags, Planes, planes
from lipserve.errors import EncoderUnavailable
from lipserve.media.encoder import VideoEncoding, reason
from lipserve.media.sound import Samples

AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
AAC_BIT_RATE = 192_000
# FFmpeg's default search takes two to three times as long; speech at this bit rate comes no closer with it.
AAC_OPTIONS = {"aac_coder": "fast"}
SOUND_BLOCK = 16  # AAC frames encoded at a time: a call for each costs as much as the encoding


class Mp4Writer:
    """H.264 and AAC into one MP4 with its index in front, in one pass. Use as a context manager.

    The video is written frame by frame, each drawn into one and the same buffer: `picture`, then `append`. Sound goes
    along so that both stay interleaved, and all of it is kept. Raises EncoderUnavailable.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: int,
        sound: Samples | None,
        tags: ColourTags | None = None,
        encoding: VideoEncoding | None = None,
    ) -> None:
        encoding = encoding or VideoEncoding()
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._fps = fps
        self._frames = 0
        video = self._container.add_stream(encoding.encoder, rate=fps)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.time_base = Fraction(1, fps)
        video.codec_context.time_base = Fraction(1, fps)
        encoding.configure(video.codec_context)
        tags = tags or ColourTags()
        video.codec_context.color_range = int(ColorRange.MPEG)
        video.codec_context.colorspace = tags.space
        video.codec_context.color_primaries = tags.primaries
        video.codec_context.color_trc = tags.transfer
        self._video = video
        self._frame = av.VideoFrame(*size, "yuv420p")
        self._frame.time_base = Fraction(1, fps)
        self._sound = sound
        self._finished = False
        self._sent = 0  # samples of sound
        if sound is not None:
            if sound.rate not in AAC_RATES:
                raise ValueError(f"AAC has no sample rate {sound.rate}")
            layout = "mono" if sound.channels == 1 else "stereo"
            audio = self._container.add_stream("aac", rate=sound.rate, layout=layout)
            audio.options = {**AAC_OPTIONS}
            audio.bit_rate = AAC_BIT_RATE if layout == "stereo" else AAC_BIT_RATE // 2
            audio.codec_context.time_base = Fraction(1, sound.rate)
            self._audio = audio
        try:
            self._container.start_encoding()
        except av.FFmpegError as exc:
            raise EncoderUnavailable(
                f"{encoding.encoder} cannot be opened for {size[0]}×{size[1]}: {reason(exc)}.",
                "LIPSERVE_VIDEO_ENCODER=libx264 needs no GPU and takes every size.",
            ) from exc

    @property
    def frames(self) -> int:
        return self._frames

    def picture(self) -> Planes:
        """The planes that `append` takes, to be filled: uint8 Y (h, w), U and V (h/2, w/2). What they hold is undefined
        at first and the picture before from then on; they may not be touched after `append`."""
        self._frame.make_writable()  # copies nothing unless an encoder still holds the picture before; libx264 does not
        y, u, v = (
            np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]  # type: ignore[call-overload]
            for plane in self._frame.planes
        )
        return y, u, v

    def append(self) -> None:
        """The filled picture is the next frame."""
        self._frame.pts = self._frames
        self._container.mux(self._video.encode(self._frame))
        self._frames += 1
        if self._sound is not None:
            self._send_sound(until=self._frames * self._sound.rate // self._fps)

    def write(self, i420: U8) -> None:
        """Append a copy of a finished picture: uint8 (h·3/2, w), I420."""
        for target, plane in zip(self.picture(), planes(i420), strict=True):
            np.copyto(target, plane)
        self.append()

    def _send_sound(self, until: int) -> None:
        assert self._sound is not None
        rate, step = self._sound.rate, SOUND_BLOCK * self._audio.codec_context.frame_size
        until = min(until, self._sound.length)
        while self._sent < until:
            block = np.ascontiguousarray(self._sound.block(self._sent, self._sent + step))
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
            self._send_sound(until=self._sound.length)
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
