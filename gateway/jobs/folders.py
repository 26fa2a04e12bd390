"""The storage folder, which one gateway owns, and each job's own folder in it: its inputs and its result."""

import fcntl
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from gateway.jobs.model import JOB_ID, RESULT
from lipserve.errors import StorageInUse


class StorageLock:
    """Held as long as this process lives, however it ends."""

    def __init__(self, storage_dir: Path) -> None:
        """Raises StorageInUse."""
        storage_dir.mkdir(parents=True, exist_ok=True)
        self._handle = (storage_dir / ".lock").open("w")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._handle.close()
            raise StorageInUse(
                f"Another gateway works in {storage_dir}.", "Stop it, or give this one its own LIPSERVE_STORAGE_DIR."
            ) from exc

    def release(self) -> None:
        self._handle.close()


class JobFolders:
    """Names come from ids of the form that we give out, never from a request."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, job_id: str) -> Path:
        assert JOB_ID.fullmatch(job_id), job_id
        return self._root / job_id

    def result(self, job_id: str) -> Path:
        return self.folder(job_id) / RESULT

    def create(self, job_id: str) -> Path:
        folder = self.folder(job_id)
        folder.mkdir()
        return folder

    def remove(self, job_id: str) -> None:
        shutil.rmtree(self.folder(job_id), ignore_errors=True)

    def drop_results(self, job_id: str) -> None:
        """Of an attempt that did not end well, parts of one included."""
        folder = self.folder(job_id)
        for file in [folder / RESULT, *folder.glob(".*")]:
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)

    def keep_only(self, known: Collection[str]) -> list[str]:
        """Remove the folders of jobs that nobody knows; returns their names."""
        unknown = [path.name for path in self._root.iterdir() if JOB_ID.fullmatch(path.name) and path.name not in known]
        for job_id in unknown:
            self.remove(job_id)
        return unknown

    def size(self, job_id: str) -> int:
        """Bytes on disk. An upload that others link to as well counts for its share."""
        total = 0
        for path in self.folder(job_id).rglob("*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                total += found.st_blocks * 512 // (found.st_nlink if path.is_file() else 1)
        return total


def flush(folder: Path) -> None:
    """The folder's files are on the disk, not only on their way there."""
    for path in [folder, *(path for path in folder.rglob("*") if path.is_file())]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
