"""The H.264 encoder of finished videos: which one there is, and what preset and quality mean to it."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

import av
from av import logging as av_logging

from lipserve.errors import EncoderUnavailable

Encoder = Literal["libx264", "h264_nvenc"]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"]

# Seven of each, from the fastest to the smallest file.
NVENC_PRESETS: dict[Preset, str] = {
    "ultrafast": "p1",
    "superfast": "p2",
    "veryfast": "p3",
    "faster": "p4",
    "fast": "p5",
    "medium": "p6",
    "slow": "p7",
}
PROBE_SIDE = 256  # pixels: NVENC refuses pictures of less than 145


@dataclass(frozen=True)
class VideoEncoding:
    """`preset` and `crf` are libx264's. NVENC gets the preset of the same rank, and `crf` as its constant quality: a
    scale of the same direction and range, not the same bytes."""

    encoder: Encoder = "libx264"
    preset: Preset = "veryfast"
    crf: int = 18
    threads: int = 2  # of libx264

    def configure(self, codec: av.VideoCodecContext) -> None:
        """A codec that is not open yet."""
        codec.options = {**self.options()}
        # PyAV's default is slices, parts of one picture, and then no call returns before the picture is encoded. By
        # pictures, libx264 works on some while the next is drawn, and files are a little smaller.
        codec.thread_type = "FRAME"

    def options(self) -> dict[str, str]:
        """FFmpeg's, for the encoder."""
        if self.encoder == "libx264":
            options = {"preset": self.preset, "crf": str(self.crf), "threads": str(self.threads)}
            # As in the faster presets: 5 % less CPU, and files of talking people are as large as with the hexagon's.
            return options | {"motion-est": "dia"} if self.preset == "veryfast" else options
        # cq 0 would leave the quality to the encoder, and its bit rate of 2 Mbit/s would be a ceiling.
        return {"preset": NVENC_PRESETS[self.preset], "rc": "vbr", "cq": str(max(self.crf, 1)), "b": "0"}


@cache
def why_not(encoder: Encoder) -> str:
    """Why the encoder cannot be used on this machine, in FFmpeg's words; empty if it can. Tried once per process."""
    level = av_logging.get_level()
    av_logging.set_level(av_logging.ERROR)  # or the reason is not kept
    try:
        with av_logging.Capture():  # not to our log: it may be no error
            codec = av.CodecContext.create(encoder, "w")
            codec.width = codec.height = PROBE_SIDE
            codec.pix_fmt = "yuv420p"
            codec.time_base = Fraction(1, 25)
            VideoEncoding(encoder).configure(codec)
            codec.open()
    except (av.FFmpegError, ValueError) as exc:
        return reason(exc)
    finally:
        av_logging.set_level(level)
    return ""


def reason(exc: Exception) -> str:
    """One line."""
    logged = getattr(exc, "log", None)  # (level, who, what)
    return str(logged[2] if logged else getattr(exc, "strerror", None) or exc).strip()


def choose_encoder(wanted: Literal["libx264", "h264_nvenc", "auto"]) -> tuple[Encoder, str]:
    """The encoder to use, and why. Raises EncoderUnavailable if the one that was named does not work here."""
    if wanted == "auto":
        trouble = why_not("h264_nvenc")
        return ("libx264", f"h264_nvenc does not work here: {trouble}") if trouble else ("h264_nvenc", "it works here")
    if trouble := why_not(wanted):
        raise EncoderUnavailable(
            f"The encoder {wanted} does not work here: {trouble}.",
            "Set LIPSERVE_VIDEO_ENCODER to libx264, or to auto, which uses the GPU's encoder where there is one.",
        )
    return wanted, "it is configured"
