"""All avatars of a service: one folder each, written whole or not at all, replaced in one step, listed, deleted.

An avatar is written under a hidden name and renamed; the one it replaces is kept until the new one stands. Several
processes may share the folder. Knows names and files, not what is in them: that is lipserve.avatar.
"""

import ctypes
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lipserve.avatar import AVATAR_ID, FILES, Avatar, AvatarInfo, Version, damaged
from lipserve.errors import AvatarBusy, AvatarDamaged, AvatarExists, AvatarNotFound, InvalidAvatarId, StorageFull


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

    def lock_file(self, avatar_id: str) -> Path:
        """Held by whoever writes the avatar; stays when it is deleted."""
        return self.root / f".lock-{avatar_id}"

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
            raise damaged(avatar_id, exc) from exc

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
        with _lock(self.lock_file(avatar_id), avatar_id):
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
        if not (target.exists() and _exchange(draft, target)):
            self._rename_over(draft, target)

    def _rename_over(self, draft: Path, target: Path) -> None:
        """Where there is nothing to swap with, or names cannot be swapped: two renames, the first one undone if the
        second fails."""
        replaced = self.root / f".replaced-{target.name}"
        if target.exists():  # else what was set aside may be all there is
            shutil.rmtree(replaced, ignore_errors=True)
            with suppress(FileNotFoundError):  # deleted meanwhile
                target.rename(replaced)
        try:
            draft.rename(target)
        except BaseException:
            with suppress(OSError):  # there was none, or `recover` does it
                replaced.rename(target)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    def recover(self) -> None:
        """Put back what a process killed between the two renames of `_publish` had set aside, and clear up after it.

        Called at start-up; what another process is at work on is left alone.
        """
        for leftover in [*self.root.glob(".replaced-*"), *self.root.glob(".draft-*")]:
            kind, avatar_id = leftover.name.split("-", 1)
            target = self.root / avatar_id
            with suppress(AvatarBusy), _lock(self.lock_file(avatar_id), avatar_id):
                if kind == ".replaced" and leftover.exists() and not target.exists():
                    leftover.rename(target)
                else:
                    shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.root.glob(".deleted-*"):
            shutil.rmtree(leftover, ignore_errors=True)


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
