"""Where a request's files come from: an upload, or a path below the configured media folder, and nothing else."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.datastructures import UploadFile

from lipserve.errors import InvalidParameter, PathNotAllowed, StorageFull


def take_input(name: str, upload: UploadFile | None, path: str | None, media_dir: Path | None, folder: Path) -> Path:
    """The file (or, from the media folder, the folder) to read; an upload is copied into `folder` under a name of ours.

    `name` is the form field's, for messages. Raises InvalidParameter or PathNotAllowed.
    """
    if (upload is None) == (path is None):
        raise InvalidParameter(
            f"Exactly one of {name} and {name}_path must be given.",
            f"Upload a file as {name}, or name one as {name}_path.",
        )
    if path is not None:
        return media_file(name, path, media_dir)
    assert upload is not None
    target = folder / name
    with target.open("wb") as out:
        shutil.copyfileobj(upload.file, out, 1 << 20)
    if target.stat().st_size == 0:
        raise InvalidParameter(f"The uploaded {name} is empty.", "Send the file's bytes.")
    return target


def media_file(name: str, path: str, media_dir: Path | None) -> Path:
    """`path` below `media_dir`, symbolic links resolved. Raises PathNotAllowed."""
    if media_dir is None:
        raise PathNotAllowed(
            f"{name}_path is not allowed: this server has no media folder.",
            "Upload the file, or set LIPSERVE_MEDIA_DIR.",
        )
    root = media_dir.resolve()
    try:
        resolved = (root / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        resolved = None
    if resolved is None or not resolved.is_relative_to(root) or not (resolved.is_file() or resolved.is_dir()):
        raise PathNotAllowed(f"{name}_path names nothing in the media folder.", "Give a path relative to it.")
    return resolved


def display_name(upload: UploadFile | None, path: str | None) -> str:
    """What the source is called, for people: printable, at most 200 characters."""
    return harmless_name((upload.filename if upload is not None else path) or "upload")


def harmless_name(name: str) -> str:
    """A file's name as somebody gave it, to be shown and never to be opened."""
    return "".join(c for c in Path(name).name if c.isprintable())[:200] or "upload"


@contextmanager
def full_disk_named() -> Iterator[None]:
    """Raises StorageFull where the block finds the disk, or the user's share of it, full."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFull("The disk is full.", "Free some space where lipserve keeps its files.") from exc
