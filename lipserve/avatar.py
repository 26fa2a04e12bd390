"""The avatar folder: its files, and how they are opened and checked. Where it stands among others: lipserve.store.

    <id>/avatar.json    AvatarInfo: format version, source, parameters, fps, size, counts
         frames.yuv     uint8 (n, h·3/2, w): the source's pictures as I420, one after another
         latents.npy    float16 (n, 8, 32, 32): masked 4, then reference 4, times the VAE's scaling factor
         regions.npy    REGION (n,): the box of each face and the rectangle its blend touches
         masks.u8       uint8 (total,): the blend mask of each region, row-major, one after another
         norm_sums.npy  float32 (n, 19, 32, 2), once a decoder of the lower rows has asked for it: made of the latents
         preview.jpg    a picture for people

One record per frame in every array, so nothing can drift apart. Nothing here is pickled.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lipserve.colour import U8, ColourTags, Planes, planes
from lipserve.contract import AVATAR_FORMAT, FACE_LATENTS, FACE_SIZE, MAX_FPS, NORM_SUMS
from lipserve.errors import AvatarDamaged
from lipserve.media import MAX_SIDE

log = logging.getLogger(__name__)

FILES = ("avatar.json", "frames.yuv", "latents.npy", "regions.npy", "masks.u8")
Version = tuple[tuple[int, ...], ...]
AVATAR_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

# has_face False: the frame is shown as it is, and its other fields are 0. Boxes are x1, y1, x2, y2 in pixels, end
# excluded. `face` is where a generated face goes, wholly inside the frame; `region` is the even-sided rectangle inside
# `face` grown to even pixels, outside of which the mask is 0; the mask of the region starts at `mask_start`.
REGION = np.dtype([("has_face", "?"), ("face", "<i4", 4), ("region", "<i4", 4), ("mask_start", "<i8")])

NORM_SUMS_FILE = "norm_sums.npy"
ROWS_BYTES = 1 << 18  # of rows on their way to planes with gaps: they stay in the core's cache


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
    """An opened avatar folder. Raises AvatarDamaged if anything is off, also later, when a file has lost its end.

    Frames, latents and masks are read from files that stay open until the last user lets go of the avatar, whatever
    becomes of the folder. Safe to use from several threads.
    """

    version: Version = ()  # of the folder when AvatarStore opened it

    def __init__(self, folder: Path) -> None:
        self._name = folder.name
        try:
            self.info = AvatarInfo.model_validate_json((folder / "avatar.json").read_bytes())
            n = self.info.frames
            self._frame_bytes = self.info.height * 3 // 2 * self.info.width
            self._frames = _File(folder / "frames.yuv")
            if self._frames.size != n * self._frame_bytes:
                raise ValueError("frames.yuv has another size than avatar.json says")
            self._latents = _File(folder / "latents.npy")
            self._latents_start = self._latents.start_of((n, *FACE_LATENTS.shape), np.dtype(FACE_LATENTS.dtype))
            regions = _File(folder / "regions.npy")
            start = regions.start_of((n,), REGION)
            self.regions: NDArray[Any] = np.empty(n, REGION)
            regions.read([self.regions.view(np.uint8)], start)
            self._masks = _File(folder / "masks.u8")
            self._check()
            self._folder = _Folder(folder)
            # The open file and where its data begin, the sums themselves, or None: there are none yet.
            self._sums: tuple[_File, int] | NDArray[np.float32] | None = self._open_norm_sums()
        except (OSError, ValueError) as exc:
            raise damaged(folder.name, exc) from exc

    def _check(self) -> None:
        n = self.info.frames
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
            and (start <= self._masks.size - widths * heights).all()
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

    def read_frame(self, index: int, target: Planes) -> None:
        """Fill the planes, of the avatar's size and with rows that may lie apart, with a stored frame.

        Nothing of a frame's size is allocated. Raises AvatarDamaged.
        """
        start = index * self._frame_bytes
        if all(plane.flags.c_contiguous for plane in target):
            self._read(self._frames, target, start)
            return
        for plane in target:
            self._read_rows(plane, start)
            start += plane.size

    def _read_rows(self, plane: U8, start: int) -> None:
        if plane.flags.c_contiguous:
            self._read(self._frames, [plane], start)
            return
        height, width = plane.shape
        block = np.empty((min(max(1, ROWS_BYTES // width), height), width), np.uint8)
        for top in range(0, height, len(block)):
            rows = plane[top : top + len(block)]
            packed = block[: len(rows)]
            self._read(self._frames, [packed], start + top * width)
            np.copyto(rows, packed)

    def frame(self, index: int) -> U8:
        """A stored frame in memory of its own: uint8 (h·3/2, w), I420. Raises AvatarDamaged."""
        picture = np.empty((self.info.height * 3 // 2, self.info.width), np.uint8)
        self.read_frame(index, planes(picture))
        return picture

    def read_latents(self, indices: Sequence[int], out: NDArray[np.float16]) -> None:
        """Fill `out`, float16 (n, 8, 32, 32) in C order, with those of n stored frames. Raises AvatarDamaged."""
        for row, index in zip(out, indices, strict=True):
            self._read(self._latents, [row], self._latents_start + index * row.nbytes)

    @property
    def has_norm_sums(self) -> bool:
        return self._sums is not None

    def read_norm_sums(self, indices: Sequence[int], out: NDArray[np.float32]) -> None:
        """Fill `out`, float32 (n, 19, 32, 2) in C order, with those of n stored frames. Raises AvatarDamaged."""
        sums = self._sums
        if sums is None:
            raise RuntimeError("the avatar has no norm sums yet")
        if isinstance(sums, np.ndarray):
            out[:] = sums[np.asarray(indices)]
            return
        file, start = sums
        for row, index in zip(out, indices, strict=True):
            self._read(file, [row], start + index * row.nbytes)

    def keep_norm_sums(self, sums: NDArray[np.float32]) -> None:
        """Store them, float32 (n, 19, 32, 2), with the avatar. Where that cannot be, as in a folder that was deleted or
        replaced meanwhile, they stay in memory, for as long as the avatar is open. Raises OSError for a full disk."""
        try:
            self._folder.write(NORM_SUMS_FILE, sums)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning("the norm sums of %s stay in memory: %s", self._name, exc.strerror)
            self._sums = sums
        else:
            self._sums = self._open_norm_sums()

    def _open_norm_sums(self) -> "tuple[_File, int] | None":
        """The file, and where its data begin. What is not whole counts as not there: it can be made again."""
        file = self._folder.open(NORM_SUMS_FILE)
        if file is None:
            return None
        try:
            return file, file.start_of((self.info.frames, *NORM_SUMS.shape), np.dtype(NORM_SUMS.dtype))
        except ValueError:
            return None

    @cached_property
    def first_face_row(self) -> int:
        """The first of a generated face's 256 rows that blending reads, in any frame; 256 if no frame has a face.

        A pixel y of a box of h rows is between the face's rows (y + 0.5) · 256 / h - 0.5, rounded down, and the next.
        """
        used = self.regions[self.regions["has_face"]]
        top, heights = used["face"][:, 1], used["face"][:, 3] - used["face"][:, 1]
        rows = (np.maximum(used["region"][:, 1] - top, 0) + 0.5) * FACE_SIZE / heights - 0.5
        return max(0, int(np.floor(rows.min(initial=FACE_SIZE))))

    def mask(self, index: int) -> U8:
        """uint8 (region height, region width): 255 takes the generated face, 0 leaves the frame. Raises
        AvatarDamaged."""
        record = self.regions[index]
        x1, y1, x2, y2 = (int(side) for side in record["region"])
        mask = np.empty((y2 - y1, x2 - x1), np.uint8)
        self._read(self._masks, [mask], int(record["mask_start"]))
        return mask

    def _read(self, file: "_File", out: Sequence[NDArray[Any]], start: int) -> None:
        try:
            file.read(out, start)
        except (OSError, ValueError) as exc:
            raise damaged(self._name, exc) from exc

    # Whole files as mapped arrays, for tests and benchmarks. No request may touch them: whoever reads a page that its
    # file has lost ends with SIGBUS, and so does the process.

    @cached_property
    def frames(self) -> U8:
        """uint8 (n, h·3/2, w)."""
        shape = (self.info.frames, self.info.height * 3 // 2, self.info.width)
        return np.memmap(self._frames.file, np.uint8, "r", shape=shape)

    @cached_property
    def latents(self) -> NDArray[np.float16]:
        """float16 (n, 8, 32, 32)."""
        shape = (self.info.frames, *FACE_LATENTS.shape)
        return np.memmap(self._latents.file, np.float16, "r", self._latents_start, shape)

    @cached_property
    def masks(self) -> U8:
        """uint8 (total,)."""
        return np.memmap(self._masks.file, np.uint8, "r")


class _Folder:
    """A folder that is open as long as this object lives, and stays the same one whatever its name becomes."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self._handle)

    def open(self, name: str) -> "_File | None":
        """None: there is no such file."""
        try:
            return _File(Path(name), os.open(name, os.O_RDONLY, dir_fd=self._handle))
        except FileNotFoundError:
            return None

    def write(self, name: str, array: NDArray[Any]) -> None:
        """As .npy, whole or not at all. Raises OSError."""
        with os.scandir(self._handle) as files:  # of killed processes, or of one that then keeps the same in memory
            drafts = [file.name for file in files if file.name.startswith(f".{name}.")]
        for left in drafts:
            with suppress(FileNotFoundError):
                os.unlink(left, dir_fd=self._handle)
        draft = f".{name}.{uuid4().hex}"
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=self._handle)
            with os.fdopen(handle, "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
            os.rename(draft, name, src_dir_fd=self._handle, dst_dir_fd=self._handle)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=self._handle)


class _File:
    """A file that is open as long as this object lives. Its methods raise OSError or ValueError that name it."""

    def __init__(self, path: Path, handle: int | None = None) -> None:
        self.name = path.name
        self.file = path.open("rb", buffering=0) if handle is None else os.fdopen(handle, "rb", buffering=0)
        weakref.finalize(self, self.file.close)
        self.size = os.fstat(self.file.fileno()).st_size

    def start_of(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Where the data of the .npy file begin, which must be a whole array like this, in C order."""
        try:
            version = np.lib.format.read_magic(self.file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            found, in_fortran_order, found_dtype = read(self.file)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, self.name) from exc
        except Exception as exc:  # of a damaged header numpy makes SyntaxError, TokenError, TypeError and more
            raise ValueError(f"{self.name}: {exc}") from exc
        if found != shape or found_dtype != dtype or in_fortran_order:
            raise ValueError(f"{self.name} is {found_dtype} {found}{' in Fortran order' * in_fortran_order}")
        start = self.file.tell()
        if self.size < start + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{self.name} ends too early")
        return start

    def read(self, out: Sequence[NDArray[Any]], start: int) -> None:
        """Fill the arrays, each in C order, one after another."""
        try:
            got = os.preadv(self.file.fileno(), out, start)  # type: ignore[arg-type]
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, self.name) from exc
        if got != sum(array.nbytes for array in out):
            raise ValueError(f"{self.name} ends too early")


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
