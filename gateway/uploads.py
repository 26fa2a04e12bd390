"""Uploads that are kept for later calls: pictures, sounds and videos, each its owner's alone.

A file and its description lie side by side; the description comes last and goes first, so what has one is whole. Names
from outside never reach the disk: ids are ours and random, and a string that is none names nothing.
"""

import hashlib
import logging
import os
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel

from avatar_prep.source import Limits, StillPictures
from gateway.inputs import full_disk_named, harmless_name
from lipserve.errors import InvalidParameter, LipserveError, PayloadTooLarge, UploadNotFound
from lipserve.media import SoundReader, VideoReader, media_type

What = Literal["image", "audio", "video"]

_PREFIXES: dict[What, str] = {"image": "img", "audio": "aud", "video": "vid"}
_ID = re.compile(r"(?:img|aud|vid)_[0-9a-f]{32}")
_URL = re.compile(rf"lipserve://(image|audio|video)s/({_ID.pattern})")
_CHUNK = 1 << 20  # bytes
_DRAFT = ".new-"
_JSON = ".json"

log = logging.getLogger(__name__)


class Upload(BaseModel):
    """What is kept of an upload beside its bytes."""

    id: str
    what: What
    owner: str
    name: str  # as it was sent, for people
    size: int  # bytes
    sha256: str
    media_type: str
    created_at: datetime

    @property
    def url(self) -> str:
        return f"lipserve://{self.what}s/{self.id}"


class Uploads:
    """A folder of uploads, one gateway's own. Safe to use from several threads."""

    def __init__(
        self,
        folder: Path,
        retention_hours: float,
        max_bytes: int = 200_000_000,
        limits: Limits | None = None,
        max_audio_seconds: float = 900,
    ) -> None:
        """What an earlier process left half done is removed."""
        self._folder, self._retention, self._max_bytes = folder, timedelta(hours=retention_hours), max_bytes
        self._limits, self._max_audio_seconds = limits or Limits(), max_audio_seconds
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            described = file.suffix == _JSON or file.with_name(file.name + _JSON).exists()
            if file.name.startswith(_DRAFT) or (_ID.fullmatch(file.name) and not described):
                file.unlink(missing_ok=True)

    def keep(self, what: What, file: BinaryIO, filename: str, owner: str) -> Upload:
        """Store an upload, whole or not at all. Raises a kind of BadMedia, PayloadTooLarge, InvalidParameter or
        StorageFull."""
        upload_id = f"{_PREFIXES[what]}_{secrets.token_hex(16)}"
        draft = self._folder / f"{_DRAFT}{upload_id}"
        try:
            with full_disk_named():
                size, digest = self._copy(what, file, draft)
                self._require_readable(what, draft)
                upload = Upload(
                    id=upload_id,
                    what=what,
                    owner=owner,
                    name=harmless_name(filename),
                    size=size,
                    sha256=digest,
                    media_type=media_type(draft, what),
                    created_at=datetime.now(UTC),
                )
                self._publish(upload, draft)
        except BaseException:
            for leftover in (draft, self._folder / upload_id, self._folder / f"{_DRAFT}{upload_id}{_JSON}"):
                leftover.unlink(missing_ok=True)
            raise
        return upload

    def get(self, id_or_url: str, owner: str) -> Upload:
        """Raises UploadNotFound; that an upload is somebody else's is not told."""
        found = _URL.fullmatch(id_or_url)
        upload_id = found[2] if found else id_or_url
        upload = self._described(upload_id) if _ID.fullmatch(upload_id) else None
        if upload is None or upload.owner != owner or (found and found[1] != upload.what):
            raise UploadNotFound(
                "There is no such upload.", "Upload the file again; uploads are kept for a limited time."
            )
        return upload

    def open(self, id_or_url: str, owner: str) -> Path:
        """The file, to be read or copied at once: it may be deleted any time. Raises UploadNotFound."""
        return self._folder / self.get(id_or_url, owner).id

    def delete(self, id_or_url: str, owner: str) -> None:
        """Raises UploadNotFound."""
        self._remove(self.get(id_or_url, owner).id)

    def list(self) -> list[Upload]:
        """Everybody's, the oldest first. One with a damaged description is left out, and said in the log."""
        found = []
        for file in self._folder.glob(f"*{_JSON}"):
            upload_id = file.name.removesuffix(_JSON)
            try:
                upload = self._described(upload_id) if _ID.fullmatch(upload_id) else None
            except LipserveError as exc:
                log.warning("%s", exc)
                continue
            if upload is not None:
                found.append(upload)
        return sorted(found, key=lambda upload: upload.created_at)

    def remove(self, upload: Upload) -> None:
        """Whoever owns it, as the service itself may do to make room."""
        self._remove(upload.id)

    def expire(self, older_than: datetime | None = None) -> int:
        """Delete what is older than the retention, or than a given time; how many that were."""
        limit = older_than or datetime.now(UTC) - self._retention
        old = [upload for upload in self.list() if upload.created_at < limit]
        for upload in old:
            self._remove(upload.id)
        return len(old)

    def _copy(self, what: What, file: BinaryIO, draft: Path) -> tuple[int, str]:
        """Bytes and sha256."""
        size, digest = 0, hashlib.sha256()
        with draft.open("xb") as out:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > self._max_bytes:
                    raise PayloadTooLarge(
                        f"The {what} is larger than {self._max_bytes / 1e6:g} MB.", "Send a shorter or smaller file."
                    )
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if not size:
            raise InvalidParameter(f"The uploaded {what} is empty.", "Send the file's bytes.")
        return size, digest.hexdigest()

    def _require_readable(self, what: What, draft: Path) -> None:
        """As far as its beginning shows; the rest is read, and may be refused, when it is used."""
        if what == "image":
            StillPictures([draft], self._limits)
        elif what == "video":
            with VideoReader(draft, 25, self._limits.seconds, self._limits.pixels):
                pass
        else:
            with SoundReader(draft, self._max_audio_seconds):
                pass

    def _publish(self, upload: Upload, draft: Path) -> None:
        draft.rename(self._folder / upload.id)
        description = self._folder / f"{_DRAFT}{upload.id}{_JSON}"
        with description.open("x") as out:
            out.write(upload.model_dump_json())
            out.flush()
            os.fsync(out.fileno())
        description.rename(self._folder / f"{upload.id}{_JSON}")

    def _described(self, upload_id: str) -> Upload | None:
        try:
            upload = Upload.model_validate_json((self._folder / f"{upload_id}{_JSON}").read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise LipserveError(f"The description of the upload {upload_id} is damaged.", "Delete it.") from exc
        return upload if upload.id == upload_id else None

    def _remove(self, upload_id: str) -> None:
        for name in (f"{upload_id}{_JSON}", upload_id):
            with suppress(FileNotFoundError):
                (self._folder / name).unlink()
