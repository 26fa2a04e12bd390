"""Opens what an avatar is made from: a video, a still picture, or a folder of pictures in name order.

Gives I420 pictures of one even size at a constant rate. Knows nothing of faces.
"""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from lipserve.colour import U8, ColourTags, bgr_to_i420
from lipserve.errors import NotAVideo, VideoTooLarge
from lipserve.media import MAX_SIDE, VideoReader, too_many_scans

MAX_PICTURE_BYTES = 64_000_000  # 16 bits and four channels of the most pixels, twice
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {  # by what it says
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")  # RIFF: also WAV and AVI, told apart by Pillow


@dataclass(frozen=True)
class Limits:
    """How large a source may be."""

    seconds: float = 120.0
    pixels: int = 1920 * 1920


class Pictures(Protocol):
    """uint8 (h·3/2, w) I420 pictures, and what holds for all of them."""

    width: int
    height: int
    tags: ColourTags

    @property
    def expected_frames(self) -> int | None: ...

    def __iter__(self) -> Iterator[U8]: ...


def is_picture(start: bytes) -> bool:
    """Whether a file with these first bytes, 12 or more, is read as a still picture, and not as a video."""
    return start.startswith(_PICTURE_STARTS) and (not start.startswith(b"RIFF") or start[8:12] == b"WEBP")


def open_source(path: Path, fps: int, limits: Limits) -> AbstractContextManager[Pictures]:
    """Raises NotAVideo, VideoDamaged or VideoTooLarge."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        root = path.resolve()
        if strangers := [p.name for p in files if p.resolve().parent != root]:
            raise NotAVideo(f"{strangers[0]} is a link out of its folder.", "Put the pictures themselves there.")
        if not files:
            raise NotAVideo(f"The folder {path.name!r} is empty.", "Put JPEG, PNG or WebP pictures into it.")
        if len(files) > limits.seconds * fps:
            raise VideoTooLarge(f"The folder has {len(files)} pictures.", f"The limit is {limits.seconds * fps:.0f}.")
        return nullcontext(StillPictures(files, limits))
    with path.open("rb") as handle:
        start = handle.read(12)
    if is_picture(start):
        return nullcontext(StillPictures([path], limits))
    return VideoReader(path, fps, limits.seconds, limits.pixels)


def _turned(picture: Image.Image) -> Image.Image:
    """As EXIF or XMP say that it is looked at. The tags are read and never written: they may be of any type."""
    picture.load()  # a PNG may have them behind its pixels
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever is wrong with the tags, the pixels are good
        return picture
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if method is None else picture.transpose(method)


def _to_rgb(picture: Image.Image) -> U8:
    """uint8 (h, w, 3) RGB; 16-bit grey is scaled, transparent parts are white."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture, np.float64) / 257
        return np.repeat(np.clip(np.round(grey), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(picture.convert("RGB"))


class StillPictures:
    """Picture files, one frame each; the first one's size, made even, is everybody's."""

    def __init__(self, files: list[Path], limits: Limits) -> None:
        self._files, self._limits = files, limits
        first = self._read(files[0])
        self.height, self.width = first.shape[:2]
        self.tags = bgr_to_i420(first)[1]

    @property
    def expected_frames(self) -> int | None:
        return len(self._files)

    def _read(self, file: Path) -> U8:
        """uint8 (h, w, 3) BGR, upright, h and w even."""
        hint = "Send a JPEG, PNG or WebP picture."
        name = f"The picture {file.name}" if len(self._files) > 1 else "The picture"
        try:
            with file.open("rb") as handle:
                content = handle.read(MAX_PICTURE_BYTES + 1)
            if len(content) > MAX_PICTURE_BYTES:
                raise VideoTooLarge(f"{name} has more than {MAX_PICTURE_BYTES / 1e6:g} MB.", "Save it as a JPEG.")
            if content.startswith(b"\xff\xd8") and too_many_scans(content):
                raise NotAVideo(f"{name} is a JPEG of far too many scans.", hint)
            # From memory: a length in a file makes `read` of a real one reserve as much.
            with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
                if max(picture.size) > MAX_SIDE:
                    raise VideoTooLarge(
                        f"{name} is {picture.width}×{picture.height}, over {MAX_SIDE} on a side.",
                        "Scale it down first.",
                    )
                if picture.width * picture.height > self._limits.pixels:
                    raise VideoTooLarge(
                        f"{name} has {picture.width}×{picture.height} pixels, more than {self._limits.pixels}.",
                        "Scale it down first.",
                    )
                if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:  # MPO: JPEG with a depth map, say
                    raise NotAVideo(f"{name} is an animation.", "Send it as a video, or send one picture.")
                rgb = _to_rgb(_turned(picture))
        except Image.DecompressionBombError as exc:
            raise VideoTooLarge(
                f"{name} has far more than {self._limits.pixels} pixels.", "Scale it down first."
            ) from exc
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as exc:
            raise NotAVideo(f"{name} cannot be read.", hint) from exc
        h, w = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2
        if min(h, w) < 16:
            raise NotAVideo(f"{name} has {w}×{h} pixels, too few to show a face.", hint)
        return cv2.cvtColor(rgb[:h, :w], cv2.COLOR_RGB2BGR).astype(np.uint8, copy=False)

    def __iter__(self) -> Iterator[U8]:
        for file in self._files:
            bgr = self._read(file)
            if bgr.shape[:2] != (self.height, self.width):
                raise NotAVideo(
                    f"{file.name} has another size than the first picture.", "All pictures must have the same size."
                )
            yield bgr_to_i420(bgr)[0]
