"""Brings missing weight files to their places: space first, then each file whole and checked, or not at all.

A download grows in `models/.fetch/` and is renamed when its size, checksum and format are right; a stopped one goes on
from there the next time. A source that fails does not keep the others from being fetched.
"""

import errno
import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lipserve.errors import ModelsMissing, StorageFull
from lipserve.weights import hub, web
from lipserve.weights.check import Damaged, verify
from lipserve.weights.folder import State, look
from lipserve.weights.manifest import MODELS, HubFile, Model, WeightFile

PARTS = ".fetch"  # below the models folder, so that a rename suffices
RESERVE = 2**28  # bytes that stay free

Progress = Callable[[WeightFile, int, int | None], None]  # file, bytes there, bytes in all


@dataclass(frozen=True)
class Failure:
    file: WeightFile
    reason: str


def wanted(models: Sequence[Model], models_dir: Path) -> list[WeightFile]:
    """The files that are missing: of each part of the models the first file, unless another will do already.

    One of the wrong size stands for itself: it is in the list, so that nobody takes it for fetched.
    """
    return [
        part.files[0]
        for model in models
        for part in model.parts
        if not any(look(file, models_dir).state is State.THERE for file in part.files)
    ]


def find(name: str) -> Model | WeightFile:
    """A model of the manifest by its name, or a file by its place. Raises ModelsMissing."""
    for model in MODELS:
        if model.name == name:
            return model
        for file in model.files:
            if file.place == name:
                return file
    raise ModelsMissing(
        f"There is no model or file {name!r}.",
        f"Models: {', '.join(model.name for model in MODELS)}. Files are named as `lipserve models status` does.",
    )


def fetch(
    files: Sequence[WeightFile],
    models_dir: Path,
    progress: Progress = lambda file, done, total: None,
    replace: bool = False,
) -> None:
    """Put each file in its place. Files that are there are left alone; one of the wrong size only yields to `replace`.

    Raises StorageFull before the first byte if not all of them fit, and ModelsMissing, after all that could be fetched
    was, naming the others, why, and how to bring them by hand.
    """
    files = [file for file in files if look(file, models_dir).state is not State.THERE]
    _refuse_to_overwrite(files, models_dir, replace)
    models_dir.mkdir(parents=True, exist_ok=True)
    _require_space(files, models_dir)
    failures: list[Failure] = []
    with _alone(models_dir):
        dead: dict[str, str] = {}  # origin: why
        for file in files:
            try:
                if _origin(file) in dead:
                    raise web.DownloadFailed(dead[_origin(file)])
                _fetch_one(file, models_dir, progress)
            except web.DownloadFailed as exc:
                if exc.unreachable:
                    dead[_origin(file)] = str(exc)
                failures.append(Failure(file, str(exc)))
    if failures:
        _report(failures, models_dir)


def _fetch_one(file: WeightFile, models_dir: Path, progress: Progress) -> None:
    partial = _partial(file, models_dir)
    try:
        _download(file, partial, lambda done, total: progress(file, done, total))
        verify(file, partial)
        place = models_dir / file.place
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(place)
    except Damaged as exc:
        web.forget(partial)
        raise web.DownloadFailed(f"what came is not the file: {exc}") from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"The disk became full while {file.place} came.", _space_hint(models_dir)) from exc
        raise
    web.forget(partial)


def _download(file: WeightFile, partial: Path, progress: web.Progress) -> None:
    """Into the partial file. The Hub's addresses run out while a large file comes; then it is asked for a new one."""
    checked = file.sha256 is not None
    if not isinstance(file.source, HubFile):
        return web.download(file.source.url, partial, file.size, progress, checked=checked)
    while True:
        before = _size(partial)
        found = hub.locate(file.source)
        try:
            return web.download(found.url, partial, file.size, progress, found.headers, found.schemes, checked)
        except web.DownloadFailed as exc:
            if not exc.denied or _size(partial) <= before:
                raise


def _partial(file: WeightFile, models_dir: Path) -> Path:
    return models_dir / PARTS / file.place.replace("/", "--")


def _origin(file: WeightFile) -> str:
    """All files of one origin fail together when it cannot be reached."""
    return "Hugging Face" if isinstance(file.source, HubFile) else file.source.origin


def _refuse_to_overwrite(files: Sequence[WeightFile], models_dir: Path, replace: bool) -> None:
    wrong = [found for file in files if (found := look(file, models_dir)).state is State.WRONG_SIZE]
    if wrong and not replace:
        raise ModelsMissing(
            "These files are there, but have the wrong size: "
            + ", ".join(f"{found.file.place} ({found.size:,} instead of {found.file.size:,} bytes)" for found in wrong)
            + ".",
            "If they are not your own, fetch them again with --replace.",
        )


def _require_space(files: Sequence[WeightFile], models_dir: Path) -> None:
    needed = sum(file.size or 0 for file in files)
    there = sum(_size(_partial(file, models_dir)) for file in files)
    free = shutil.disk_usage(models_dir).free
    if needed - there + RESERVE > free:
        raise StorageFull(
            f"{(needed - there) / 1e9:.1f} GB are still to come, but {models_dir} has {free / 1e9:.1f} GB free.",
            _space_hint(models_dir),
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _space_hint(models_dir: Path) -> str:
    return (
        f"Make room on the disk of {models_dir.absolute()}, or point LIPSERVE_MODELS_DIR at a larger one; "
        "what has come is kept, and the next `lipserve models fetch` goes on from there."
    )


@contextmanager
def _alone(models_dir: Path) -> Iterator[None]:
    """Two processes never write the same partial file. The lock stays: removing it could take it from the next one."""
    (models_dir / PARTS).mkdir(exist_ok=True)
    with (models_dir / PARTS / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ModelsMissing(f"Another `lipserve models fetch` is at work in {models_dir}.", "Let it end.") from exc
        yield


def _report(failures: Sequence[Failure], models_dir: Path) -> NoReturn:
    lines = [f"  {failure.file.place}: {failure.reason}" for failure in failures]
    by_hand = [f"    {failure.file.source} -> {models_dir / failure.file.place}" for failure in failures]
    raise ModelsMissing(
        "\n".join([f"{len(failures)} of the files could not be fetched:", *lines]),
        "\n".join(["Try again later, or bring them by hand:", *by_hand, "  Then run: lipserve models verify"]),
    )
