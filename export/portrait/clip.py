"""Rendered frames into a silent video file, through the project's own writer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from export.portrait.geometry import Bytes
from lipserve.colour import bgr_to_i420
from lipserve.media import Mp4Writer, VideoEncoding


def write_clip(path: Path, frames: Iterable[Bytes], size: int, fps: int, crf: int = 18) -> None:
    """Encode frames, uint8 (size, size, 3) BGR with an even size, as H.264."""
    planes = (bgr_to_i420(frame) for frame in frames)
    first, tags = next(planes)
    with Mp4Writer(
        path, (size, size), fps, sound=None, tags=tags, encoding=VideoEncoding(preset="slow", crf=crf)
    ) as clip:
        clip.write(first)
        for picture, _ in planes:
            clip.write(picture)
