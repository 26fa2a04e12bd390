"""Who comes in, and how often: API keys, signed links, limits. Asked before a byte of the body is read."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.key_limits import KeyLimits
from gateway.keys import Keys, presented
from gateway.links import is_signed
from lipserve.errors import LinkExpired, LipserveError, Unauthorized

# Without a key: what machines ask that have none, and the API's description.
OPEN = re.compile(
    r"/health(/live|/ready)?|/metrics|/docs(/oauth2-redirect)?|/redoc|/openapi\.json|/static-offline-docs/.*"
)
DOWNLOAD = re.compile(r"/jobs/[^/]+/result|/talks/[^/]+/audio")
CHALLENGE = 'Bearer realm="lipserve", Basic realm="lipserve"'


class Access:
    """ASGI middleware. Sets `request.state.owner`, the key's name or "", and `signed_path`, the path that a signed link
    has opened, or "". Jobs in progress are known to `app.state.active_jobs(owner)`, if it is there."""

    def __init__(
        self, app: ASGIApp, keys: Keys | None, limits: KeyLimits, answer: Callable[[Request, Exception], Response]
    ) -> None:
        """`keys` None: everybody may come in. `answer`: an error as JSON."""
        self._app, self._keys, self._limits, self._answer = app, keys, limits, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and self._keys is not None:
            await send({"type": "websocket.close", "code": 1008})  # nothing of ours; not past the keys, should it come
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        request.state.owner = request.state.signed_path = ""
        with ExitStack() as stack:
            try:
                self._let_in(request)
                stack.enter_context(self._limited(request))
            except LipserveError as exc:
                await self._answer(request, exc)(scope, receive, send)
                return
            await self._app(scope, receive, send)

    def _let_in(self, request: Request) -> None:
        """Raises Unauthorized or LinkExpired."""
        path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
        if OPEN.fullmatch(path):
            return
        owner = self._keys.owner(presented(request.headers)) if self._keys is not None else None
        if owner is not None:
            request.state.owner = owner
            structlog.contextvars.bind_contextvars(owner=owner)
        if request.method in ("GET", "HEAD") and is_signed(query):
            try:
                request.app.state.links.check(path, query)
                request.state.signed_path = path
            except LinkExpired:
                if owner is None:
                    raise
        elif owner is None and self._keys is not None:
            raise Unauthorized(
                "This service wants an API key, and no valid one was sent.",
                "Send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
            )

    def _limited(self, request: Request) -> AbstractContextManager[None]:
        """A block for as long as this request is in progress. Raises RateLimited."""
        owner, path = request.state.owner, request.scope["path"]
        if not owner or DOWNLOAD.fullmatch(path):
            return nullcontext()
        self._limits.count(owner)
        if request.method != "POST":
            return nullcontext()
        return self._limits.working(owner, getattr(request.app.state, "active_jobs", _none))


def _none(owner: str) -> int:
    return 0


def describe_keys(app: FastAPI) -> None:
    """The API's description says how to send a key, and where none is needed."""
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic", "description": "The key as user name or as password."},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    undescribed = app.openapi

    def openapi() -> dict[str, Any]:
        schema = undescribed()
        schema.setdefault("components", {})["securitySchemes"] = schemes
        schema["security"] = [{name: []} for name in schemes]
        for path, operations in schema["paths"].items():
            if OPEN.fullmatch(path):
                for operation in operations.values():
                    operation["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
