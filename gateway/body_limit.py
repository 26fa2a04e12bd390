"""Refuses request bodies over a size, by their announced length or as soon as they have grown past it, and ones that
stop coming.

Only forms with files in them may be large: they go to the disk, all other bodies are read in memory and at once.
"""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lipserve.errors import LipserveError, PayloadTooLarge, UploadStalled

IDLE_SECONDS = 30.0  # between two parts of a body
MAX_PLAIN = 2_000_000  # bytes of a body that has no files in it
WITH_FILES = b"multipart/form-data"


class BodyLimit:
    """ASGI middleware. The error is raised where the body is read, so the application answers it like any other."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced, refusal = _header(scope, b"content-length"), self._refusal(scope)
        read, complete = 0, False

        async def limited() -> Message:
            nonlocal read, complete
            if complete:  # what comes now is the disconnect, whenever that is
                return await receive()
            if announced.isdigit() and int(announced) > refusal.most:
                raise refusal
            try:
                message = await asyncio.wait_for(receive(), IDLE_SECONDS)
            except TimeoutError as exc:
                raise BodyRefused(UploadStalled("The request's body stopped coming.", "Send it again.")) from exc
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                read += len(message.get("body", b""))
                if read > refusal.most:
                    raise refusal
            return message

        await self._app(scope, limited, send)

    def _refusal(self, scope: Scope) -> "TooLarge":
        """What to raise if it is more than its `most`."""
        kind = _header(scope, b"content-type").partition(b";")[0].strip().lower()
        if kind == WITH_FILES or self._max_bytes <= MAX_PLAIN:
            return TooLarge(self._max_bytes, "Send a smaller file, or raise LIPSERVE_MAX_UPLOAD_MB.")
        return TooLarge(MAX_PLAIN, "Send sounds and pictures as files: POST /audios and /images take them.")


class BodyRefused(HTTPException):
    """An HTTPException, because FastAPI turns every other error raised while a form is read into a 400."""

    def __init__(self, error: LipserveError) -> None:
        super().__init__(error.status)
        self.error = error


class TooLarge(BodyRefused):
    """`most`: bytes that would have been taken."""

    def __init__(self, most: int, hint: str) -> None:
        super().__init__(PayloadTooLarge(f"The request is larger than {most / 1e6:.0f} MB.", hint))
        self.most = most


def _header(scope: Scope, name: bytes) -> bytes:
    """The first of that name, as the application reads it; empty if there is none."""
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")
