"""Refuses request bodies over a size, by their announced length or as soon as they have grown past it."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lipserve.errors import PayloadTooLarge


class BodyLimit:
    """ASGI middleware. The error is raised where the body is read, so the application answers it like any other."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        read = 0

        async def limited() -> Message:
            nonlocal read
            if announced.isdigit() and int(announced) > self._max_bytes:
                raise BodyTooLarge(self._max_bytes)
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._max_bytes:
                    raise BodyTooLarge(self._max_bytes)
            return message

        await self._app(scope, limited, send)


class BodyTooLarge(HTTPException):
    """An HTTPException, because FastAPI turns every other error raised while a form is read into a 400."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(PayloadTooLarge.status)
        self.error = PayloadTooLarge(
            f"The request is larger than {max_bytes / 1e6:.0f} MB.",
            "Send a smaller file, or raise LIPSERVE_MAX_UPLOAD_MB.",
        )
