"""The avatar folder: its files, and how they are opened and checked. Where it stands among others: lipserve.store.

    <id>/avatar.json    AvatarInfo: format version, source, parameters, fps, size, counts
         frames.yuv     uint8 (n, h·3/2, w): the source's pictures as I420, one after another
         latents.npy    float16 (n, 8, 32, 32): masked 4, then reference 4, times the VAE's scaling factor
         regions.npy    REGION (n,): the box of each face and the rectangle its blend touches
         masks.u8       uint8 (total,): the blend mask of each region, row-major, one after another
         preview.jpg    a picture for people

One record per frame in every array, so nothing can drift apart. Nothing here is pickled.
"""

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lipserve.colour import U8, ColourTags
from lipserve.contract import AVATAR_FORMAT, FACE_LATENTS, MAX_FPS
from lipserve.errors import AvatarDamaged
from lipserve.media import MAX_SIDE

FILES = ("avatar.json", "frames.yuv", "latents.npy", "regions.npy", "masks.u8")
Version = tuple[tuple[int, ...], ...]
AVATAR_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

# has_face False: the frame is shown as it is, and its other fields are 0. Boxes are x1, y1, x2, y2 in pixels, end
# excluded. `face` is where a generated face goes, wholly inside the frame; `region` is the even-sided rectangle inside
# `face` grown to even pixels, outside of which the mask is 0; the mask of the region starts at `mask_start`.
REGION = np.dtype([("has_face", "?"), ("face", "<i4", 4), ("region", "<i4", 4), ("mask_start", "<i8")])


class AvatarInfo(BaseModel):
    """avatar.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = AVATAR_FORMAT
    avatar_id: str = Field(pattern=f"^{AVATAR_ID.pattern}$")
    prepared_at: str  # ISO 8601, UTC
    source: str  # what the source was called, for people only
    source_sha256: str
    parameters: dict[str, int | str]
    weights_id: str  # of the VAE encoder that made the latents
    fps: int = Field(ge=1, le=MAX_FPS)
    width: int = Field(ge=16, le=MAX_SIDE, multiple_of=2)
    height: int = Field(ge=16, le=MAX_SIDE, multiple_of=2)
    frames: int = Field(ge=1)
    frames_without_face: int = Field(ge=0)
    colour_space: int = Field(ge=0, le=255)
    colour_primaries: int = Field(ge=0, le=255)
    colour_transfer: int = Field(ge=0, le=255)

    @field_validator("format")
    @classmethod
    def _readable(cls, value: int) -> int:
        if value != AVATAR_FORMAT:
            raise ValueError(f"this lipserve reads format {AVATAR_FORMAT}, not {value}")
        return value

    @property
    def tags(self) -> ColourTags:
        return ColourTags(self.colour_space, self.colour_primaries, self.colour_transfer)


class Avatar:
    """An opened avatar folder; its arrays are memory-mapped and read-only. Raises AvatarDamaged if anything is off."""

    version: Version = ()  # of the folder when AvatarStore opened it

    def __init__(self, folder: Path) -> None:
        try:
            self.info = AvatarInfo.model_validate_json((folder / "avatar.json").read_bytes())
            shape = (self.info.frames, self.info.height * 3 // 2, self.info.width)
            if (folder / "frames.yuv").stat().st_size != math.prod(shape):
                raise ValueError("frames.yuv has another size than avatar.json says")
            self.frames: U8 = np.memmap(folder / "frames.yuv", np.uint8, "r", shape=shape)
            self.latents: NDArray[np.float16] = _load(folder / "latents.npy")
            self.regions = np.array(_load(folder / "regions.npy"))
            if not (folder / "masks.u8").stat().st_size:
                raise ValueError("masks.u8 is empty")
            self.masks: U8 = np.memmap(folder / "masks.u8", np.uint8, "r")
            self._check()
        except (OSError, ValueError) as exc:
            raise damaged(folder.name, exc) from exc

    def _check(self) -> None:
        n = self.info.frames
        if self.latents.shape != (n, *FACE_LATENTS.shape) or self.latents.dtype != FACE_LATENTS.dtype:
            raise ValueError(f"latents.npy is {self.latents.dtype} {self.latents.shape}")
        if self.regions.shape != (n,) or self.regions.dtype != REGION:
            raise ValueError(f"regions.npy is {self.regions.dtype} {self.regions.shape}")
        used = self.regions[self.regions["has_face"]]
        face, region, start = used["face"], used["region"], used["mask_start"]
        size = np.array([self.info.width, self.info.height])
        widths, heights = (region[:, 2:] - region[:, :2]).T.astype(np.int64)
        inside = (
            (face[:, :2] >= 0).all()
            and (face[:, 2:] <= size).all()
            and (face[:, :2] < face[:, 2:]).all()
            and (region[:, :2] >= 0).all()
            and (region[:, 2:] <= size).all()
            and (region[:, :2] < region[:, 2:]).all()
            and (region % 2 == 0).all()
            and (start >= 0).all()
            and (start <= self.masks.size - widths * heights).all()
        )
        if not inside:
            raise ValueError("regions.npy points outside the frames or the masks")
        if n - len(used) != self.info.frames_without_face:
            raise ValueError(f"regions.npy has {n - len(used)} frames without a face, avatar.json has another number")

    def index(self, frame: int, fps: int) -> int:
        """Which stored frame output frame `frame` at `fps` shows: forward, then backward, at the avatar's own pace."""
        n = self.info.frames
        position = frame * self.info.fps // fps % (2 * n)
        return position if position < n else 2 * n - 1 - position

    def mask(self, index: int) -> U8:
        """uint8 (region height, region width): 255 takes the generated face, 0 leaves the frame."""
        record = self.regions[index]
        x1, y1, x2, y2 = record["region"]
        start, size = int(record["mask_start"]), int(x2 - x1) * int(y2 - y1)
        return self.masks[start : start + size].reshape(y2 - y1, x2 - x1)


def _load(file: Path) -> NDArray[Any]:
    """An .npy file, memory-mapped and read-only. Raises OSError or ValueError."""
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except OSError:
        raise
    except Exception as exc:  # of a damaged header numpy makes SyntaxError, TokenError, TypeError and more
        raise ValueError(f"{file.name}: {exc}") from exc


def _reason(exc: OSError | ValueError) -> str:
    """What is wrong, in one line, without the folder's path."""
    if isinstance(exc, ValidationError):
        first = exc.errors()[0]
        return ": ".join(["avatar.json", *(str(part) for part in first["loc"]), first["msg"]])
    if isinstance(exc, OSError) and exc.filename:
        return f"{Path(exc.filename).name}: {exc.strerror}"
    return str(exc).split("\n")[0]


def damaged(avatar_id: str, reason: OSError | ValueError) -> AvatarDamaged:
    return AvatarDamaged(
        f"The stored avatar {avatar_id!r} is damaged ({_reason(reason)}).", "Prepare it again with force=true."
    )


def sha256(path: Path) -> str:
    """Of a file, or of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(os.fsencode(file.name))
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_info(folder: Path, info: AvatarInfo) -> None:
    (folder / "avatar.json").write_text(json.dumps(info.model_dump(), indent=2) + "\n")
