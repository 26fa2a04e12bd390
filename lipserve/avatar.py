"""The avatar folder: its files, how they are written whole or not at all, and how they are opened and checked.

    <id>/avatar.json    AvatarInfo: format version, source, parameters, fps, size, counts
         frames.yuv     uint8 (n, h·3/2, w): the source's pictures as I420, one after another
         latents.npy    float16 (n, 8, 32, 32): masked 4, then reference 4, times the VAE's scaling factor
         regions.npy    REGION (n,): the box of each face and the rectangle its blend touches
         masks.u8       uint8 (total,): the blend mask of each region, row-major, one after another
         preview.jpg    a picture for people

One record per frame in every array, so nothing can drift apart. Nothing here is pickled. A folder is written under a
hidden name and renamed; the one it replaces is kept until the new one stands.
"""

import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lipserve.colour import U8
from lipserve.contract import AVATAR_FORMAT, FACE_LATENTS, MAX_FPS
from lipserve.errors import AvatarBusy, AvatarDamaged, AvatarExists, AvatarNotFound, InvalidAvatarId, StorageFull
from lipserve.media import MAX_SIDE, ColourTags

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
            raise _damaged(folder.name, exc) from exc

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


class AvatarStore:
    """The folder of all avatars. Names from outside reach the disk only through `folder`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, avatar_id: str) -> Path:
        if not AVATAR_ID.fullmatch(avatar_id):
            raise InvalidAvatarId(
                "The avatar_id is not allowed.",
                "Use 1 to 64 letters, digits, '-' and '_', beginning with a letter or digit.",
            )
        return self.root / avatar_id

    def exists(self, avatar_id: str) -> bool:
        return self.folder(avatar_id).is_dir()

    def require_free(self, avatar_id: str, force: bool) -> None:
        """Raise AvatarExists if the avatar is there and must not be replaced."""
        if self.exists(avatar_id) and not force:
            raise AvatarExists(
                f"The avatar {avatar_id!r} exists already.", "Choose another id, or replace it with force=true."
            )

    def list(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and AVATAR_ID.fullmatch(p.name))

    def version(self, avatar_id: str) -> Version:
        """Changes whenever the avatar is prepared anew, or one of its files is touched. Raises AvatarNotFound."""
        folder = self.folder(avatar_id)
        if not folder.is_dir():
            raise self._not_found(avatar_id)
        stats = []
        for file in (folder, *(folder / name for name in FILES)):
            with suppress(FileNotFoundError):
                stats.append(file.stat())
        return tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)

    def open(self, avatar_id: str) -> Avatar:
        """All files of one version, though the avatar may be replaced meanwhile. Raises AvatarNotFound or
        AvatarDamaged."""
        while True:
            version = self.version(avatar_id)
            try:
                avatar = Avatar(self.folder(avatar_id))
            except AvatarDamaged:
                if self.version(avatar_id) == version:
                    raise
            else:
                if self.version(avatar_id) == version:
                    avatar.version = version
                    return avatar

    def info(self, avatar_id: str) -> AvatarInfo:
        """What avatar.json says, without a look at the other files. Raises AvatarNotFound or AvatarDamaged."""
        folder = self.folder(avatar_id)
        if not folder.is_dir():
            raise self._not_found(avatar_id)
        try:
            return AvatarInfo.model_validate_json((folder / "avatar.json").read_bytes())
        except (OSError, ValueError) as exc:
            raise _damaged(avatar_id, exc) from exc

    def delete(self, avatar_id: str) -> None:
        """Out of sight at once; whoever has it open goes on undisturbed. Also removes a damaged avatar."""
        folder = self.folder(avatar_id)
        hidden = self.root / f".deleted-{uuid.uuid4().hex}"
        try:
            folder.rename(hidden)
        except FileNotFoundError as exc:
            raise self._not_found(avatar_id) from exc
        shutil.rmtree(hidden, ignore_errors=True)

    @staticmethod
    def _not_found(avatar_id: str) -> AvatarNotFound:
        return AvatarNotFound(
            f"There is no avatar {avatar_id!r}.",
            f"Prepare it once: POST /prepare_avatar with avatar_id={avatar_id} and a video, or `lipserve prepare`.",
        )

    @contextmanager
    def writing(self, avatar_id: str, force: bool) -> Iterator[Path]:
        """An empty hidden folder to write the avatar into; it takes its place when the block ends without an error.

        Raises AvatarExists without `force`, and AvatarBusy while somebody else prepares the same avatar.
        """
        target = self.folder(avatar_id)
        self.root.mkdir(parents=True, exist_ok=True)
        draft = self.root / f".draft-{avatar_id}"
        with _lock(self.root / f".lock-{avatar_id}", avatar_id):
            self.require_free(avatar_id, force)
            shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
            draft.mkdir()
            try:
                yield draft
                self._publish(draft, target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def _publish(self, draft: Path, target: Path) -> None:
        for file in draft.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if not target.exists():
            draft.rename(target)
        elif not _exchange(draft, target):
            replaced = self.root / f".replaced-{target.name}"
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
            draft.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)

    def recover(self) -> None:
        """Put back what a process killed between the two renames of `_publish` had set aside, and clear up after it.

        Called at start-up; what another process is at work on is left alone.
        """
        for leftover in [*self.root.glob(".replaced-*"), *self.root.glob(".draft-*")]:
            kind, avatar_id = leftover.name.split("-", 1)
            target = self.root / avatar_id
            with suppress(AvatarBusy), _lock(self.root / f".lock-{avatar_id}", avatar_id):
                if kind == ".replaced" and leftover.exists() and not target.exists():
                    leftover.rename(target)
                else:
                    shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.root.glob(".deleted-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _damaged(avatar_id: str, reason: OSError | ValueError) -> AvatarDamaged:
    return AvatarDamaged(
        f"The stored avatar {avatar_id!r} is damaged ({_reason(reason)}).", "Prepare it again with force=true."
    )


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders' names in one step (Linux renameat2); False where the file system cannot."""
    at_working_directory, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:  # a C library without it
        return False
    done = renameat2(at_working_directory, os.fsencode(a), at_working_directory, os.fsencode(b), exchange)
    return bool(done == 0)


@contextmanager
def _lock(path: Path, avatar_id: str) -> Iterator[None]:
    """One preparation per avatar, across processes; the kernel frees the lock of a killed one."""
    import fcntl

    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise AvatarBusy(
                f"The avatar {avatar_id!r} is being prepared right now.", "Wait until it is done."
            ) from exc
        yield


def require_space(folder: Path, needed: int) -> None:
    """Raise StorageFull unless `needed` bytes, and a tenth more, are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise StorageFull(
            f"The avatar needs {needed / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free.",
            "Delete avatars, or send a shorter or smaller video.",
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
