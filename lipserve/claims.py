"""Names of files in a folder that several processes, containers even, share: whose owner lives is told by a lock.

The owner holds a lock on a file of its own, which the kernel frees when the owner is killed. Process ids would not
tell: each container has its own. Knows folders and names, and nothing of what is in the files.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def claim(folder: Path, prefix: str, suffix: str = "") -> tuple[int, str]:
    """A new, empty file, open and locked, and its name, which nobody else has or had. Raises OSError."""
    while True:
        name = f"{prefix}{secrets.token_hex(6)}{suffix}"
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:  # else somebody's `abandoned` was between the two lines
                return handle, name
        except OSError:
            (folder / name).unlink(missing_ok=True)
            os.close(handle)
            raise
        os.close(handle)


def abandoned(folder: Path, pattern: str) -> Iterator[Path]:
    """The claimed files whose owners are gone: locked while the caller has them, then removed. Those of living ones, in
    this process or another, are left alone, and so is what belongs to another user."""
    for file in folder.glob(pattern):
        with suppress(OSError), _opened(file) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.unlink(missing_ok=True)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    handle = os.open(file, os.O_RDWR)
    try:
        yield handle
    finally:
        os.close(handle)
