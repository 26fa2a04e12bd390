"""Refuses request bodies over a size, by their announced length or as soon as they have grown past it, and ones that
stop coming."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lipserve.errors import LipserveError, PayloadTooLarge, UploadStalled

IDLE_SECONDS = 30.0  # between two parts of a body


class BodyLimit:
    """ASGI middleware. The error is raised where the body is read, so the application answers it like any other."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        read, complete = 0, False

        async def limited() -> Message:
            nonlocal read, complete
            if complete:  # what comes now is the disconnect, whenever that is
                return await receive()
            if announced.isdigit() and int(announced) > self._max_bytes:
                raise too_large(self._max_bytes)
            try:
                message = await asyncio.wait_for(receive(), IDLE_SECONDS)
            except asyncio.TimeoutError as exc:
                raise BodyRefused(UploadStalled("The request's body stopped coming.", "Send it again.")) from exc
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                read += len(message.get("body", b""))
                if read > self._max_bytes:
                    raise too_large(self._max_bytes)
            return message

        await self._app(scope, limited, send)


class BodyRefused(HTTPException):
    """An HTTPException, because FastAPI turns every other error raised while a form is read into a 400."""

    def __init__(self, error: LipserveError) -> None:
        super().__init__(error.status)
        self.error = error


def too_large(max_bytes: int) -> BodyRefused:
    message = f"The request is larger than {max_bytes / 1e6:.0f} MB."
    return BodyRefused(PayloadTooLarge(message, "Send a smaller file, or raise LIPSERVE_MAX_UPLOAD_MB."))
