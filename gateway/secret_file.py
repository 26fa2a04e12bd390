"""A secret of this service, kept in a file for its owner's eyes only. Whoever removes the file makes it void."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lipserve.errors import StorageForeign

SHORTEST = 24  # bytes; a shorter one can be guessed, and an empty one is none


def kept_secret(file: Path, make: Callable[[], bytes]) -> bytes:
    """What is in the file; made at the first call, whole or not at all, the same for all who ask at once.

    Raises StorageForeign if it is too short to be one.
    """
    with suppress(FileNotFoundError):
        return _read(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(make())
        out.flush()
        os.fsync(out.fileno())
    try:
        with suppress(FileExistsError):  # of another process, a moment ago
            os.link(draft, file)
    finally:
        draft.unlink()
    return _read(file)


def _read(file: Path) -> bytes:
    secret = file.read_bytes()
    if len(secret) < SHORTEST:
        raise StorageForeign(
            f"{file} holds no secret: {len(secret)} bytes.",
            "Remove it: a new one is made, and what the old one signed is void.",
        )
    return secret
