"""What is in the models folder, by name and size, and files that lie a folder too deep put right.

The known trap: `hf download TMElyralab/MuseTalk --local-dir models/musetalkV15` keeps the repository's own folder, so
the UNet ends up in `models/musetalkV15/musetalkV15/unet.pth`, where nothing looks for it. Reads no file's content.
"""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from lipserve.weights.manifest import MODELS, Model, WeightFile

# Folders that hold a file under another name than MuseTalk's present layout: v1's first README called the VAE's so.
OLD_NAMES = {"sd-vae": ("sd-vae-ft-mse",)}


class State(Enum):
    THERE = "there"
    MISSING = "missing"
    WRONG_SIZE = "wrong size"
    WRONG_PLACE = "wrong place"


@dataclass(frozen=True)
class Found:
    """One file of the manifest, as it is on disk. `size` in bytes, None if it is nowhere.

    `at`: where it lies, below the models folder, if that is not its place; its size fits, or the right one is unknown.
    """

    file: WeightFile
    state: State
    size: int | None = None
    at: str | None = None


@dataclass(frozen=True)
class Move:
    """A file that lies in the wrong place and was moved, or why it was not."""

    source: str
    place: str
    refused: str = ""


def look(file: WeightFile, models_dir: Path) -> Found:
    """Where the file is, and whether its size is right."""
    size = _size(models_dir / file.place)
    if size is not None:
        return Found(file, State.THERE if _fits(file, size) else State.WRONG_SIZE, size)
    for candidate in wrong_places(file):
        size = _size(models_dir / candidate)
        if size is not None and _fits(file, size):
            return Found(file, State.WRONG_PLACE, size, candidate)
    return Found(file, State.MISSING)


def is_complete(model: Model, models_dir: Path) -> bool:
    """Whether of each part of the model one file is in its place, with the right size."""
    return all(any(look(file, models_dir).state is State.THERE for file in part.files) for part in model.parts)


def wrong_places(file: WeightFile) -> tuple[str, ...]:
    """Where else the file may lie, below the models folder, the likeliest first."""
    folder, name = PurePosixPath(file.place).parts
    tops = (folder, "models", *(top for top in _FOLDERS if top != folder))
    deeper = [f"{top}/{file.place}" for top in tops]
    return (*deeper, *(f"{old}/{name}" for old in OLD_NAMES.get(folder, ())))


def repair(models_dir: Path, files: tuple[WeightFile, ...] = ()) -> list[Move]:
    """Move every file of the manifest (or of `files`) that lies in a known wrong place to its own. Never overwrites.

    A file whose size is not right is left alone: it may be half a download.
    """
    moves = []
    for file in files or tuple(file for model in MODELS for file in model.files):
        for candidate in wrong_places(file):
            size = _size(models_dir / candidate)
            if size is None:
                continue
            refused = ""
            if not _fits(file, size):
                refused = f"it has {size:,} bytes, not {file.size:,}"
            elif not _move(models_dir / candidate, models_dir / file.place):
                refused = "there is a file already"
            moves.append(Move(candidate, file.place, refused))
    return moves


def _size(path: Path) -> int | None:
    """None if it is not a file; links are followed, as `hf download` used to make them."""
    return path.stat().st_size if path.is_file() else None


def _fits(file: WeightFile, size: int) -> bool:
    return file.size is None or size == file.size


def _move(source: Path, place: Path) -> bool:
    """False if something is at `place`. A symbolic link becomes one to the same file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.is_symlink():
            place.symlink_to(source.resolve())
        else:
            _link_or_rename(source, place)
    except FileExistsError:
        return False
    source.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: something else is there, too
        source.parent.rmdir()
    return True


def _link_or_rename(source: Path, place: Path) -> None:
    """Like rename, but FileExistsError if something is at `place`."""
    try:
        os.link(source, place)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(place):  # a file system without hard links
            raise FileExistsError(place) from exc
        source.rename(place)


_FOLDERS = tuple(dict.fromkeys(PurePosixPath(file.place).parts[0] for model in MODELS for file in model.files))
