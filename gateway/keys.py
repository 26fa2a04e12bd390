"""API keys: a JSON file of names and hashes, written by `lipserve keys`, read again whenever it has changed.

A key is 256 random bits, so a plain SHA-256 of it can neither be guessed nor reversed; slow hashes are for passwords.
The key itself is nowhere: not in the file, not in a log, not in an error.
"""

import binascii
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
from base64 import b64decode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers

from lipserve.errors import InvalidParameter

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
MARK = "lip_"  # what keys begin with, so that scanners for leaked secrets know them
MAX_KEY_CHARS = 512  # what is longer is no key, and is not hashed


class Key(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME.pattern}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    added_at: str  # ISO 8601, UTC


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    format: Literal[1] = 1
    keys: list[Key]


class Keys:
    """The keys in use. Used by the event loop's thread only."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._version: tuple[int, ...] | None = None
        self._keys: list[Key] = []
        self._read_again()

    def owner(self, candidates: Iterable[str]) -> str | None:
        """The name of the first of these keys that is known."""
        self._read_again()
        for candidate in candidates:
            digest = _hash(candidate)
            found = None
            for key in self._keys:  # all of them, so that the time taken says nothing
                if hmac.compare_digest(digest, key.sha256):
                    found = key.name
            if found is not None:
                return found
        return None

    def _read_again(self) -> None:
        """If the file has changed. Without a file that can be read there is no key, and nobody comes in."""
        version: tuple[int, ...] = ()
        try:
            stat = self._file.stat()
            version = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size)
        except OSError:
            pass
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = read(self._file)
        except InvalidParameter as exc:
            self._keys = []
            log.error("nobody is let in: %s", exc)
            return
        if self._keys:
            log.info("%d API keys in %s", len(self._keys), self._file)
        else:
            log.error("nobody is let in: %s has no keys. Make one with `lipserve keys add NAME`.", self._file)


def presented(headers: Headers) -> Iterator[str]:
    """Whatever in the headers may be a key: a bearer token, `X-API-Key`, or either half of Basic credentials.

    After `Basic`, clients of D-ID's API send the key, or user:key, without encoding it.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        yield value
    if scheme.lower() == "basic":
        for credentials in (value, _decoded(value)):
            user, _, password = credentials.partition(":")
            yield from filter(None, (password, user))
    if "x-api-key" in headers:
        yield headers["x-api-key"].strip()


def _decoded(value: str) -> str:
    try:
        return b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _hash(key: str) -> str:
    """Of an over-long key: of nothing, which no stored key has."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass") if len(key) <= MAX_KEY_CHARS else b"").hexdigest()


# -- the file ---------------------------------------------------------------------------------------------------------


def read(file: Path) -> list[Key]:
    """None if it is not there. Raises InvalidParameter."""
    try:
        return _File.model_validate_json(file.read_bytes()).keys
    except FileNotFoundError:
        return []
    except ValidationError as exc:
        raise InvalidParameter(f"{file} is no file of keys: {exc.errors()[0]['msg']}.", "Put it right.") from exc
    except OSError as exc:
        raise InvalidParameter(f"{file} cannot be read: {exc.strerror}.", "Let the gateway's user read it.") from exc


def add(file: Path, name: str) -> str:
    """A new key, which is returned and not kept. Raises InvalidParameter."""
    if not NAME.fullmatch(name):
        raise InvalidParameter(
            "The name is not allowed.", "Use 1 to 64 letters, digits and '._@-', beginning with a letter or digit."
        )
    with _locked(file):
        keys = read(file)
        if any(key.name == name for key in keys):
            raise InvalidParameter(f"There is a key {name!r} already.", "Choose another name, or remove it first.")
        secret = MARK + secrets.token_urlsafe(32)
        added_at = datetime.now(UTC).isoformat(timespec="seconds")
        _write(file, [*keys, Key(name=name, sha256=_hash(secret), added_at=added_at)])
    return secret


def remove(file: Path, name: str) -> None:
    """Raises InvalidParameter."""
    with _locked(file):
        keys = read(file)
        rest = [key for key in keys if key.name != name]
        if len(rest) == len(keys):
            raise InvalidParameter(f"There is no key {name!r}.", "`lipserve keys list` shows all.")
        _write(file, rest)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One change at a time, across processes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write(file: Path, keys: list[Key]) -> None:
    """Whole or not at all, for its owner's eyes only."""
    draft = file.with_name(f".{file.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(_File(keys=keys).model_dump_json(indent=2) + "\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
