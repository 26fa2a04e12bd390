"""Counts every answered request by its endpoint and its outcome."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.metrics import Metrics

NOT_COUNTED = ("health", "live", "ready", "metrics")  # asked by machines every few seconds: they would drown the others


class RequestCount:
    """ASGI middleware. A path that no endpoint has counts as `other`, whatever it is."""

    def __init__(self, app: ASGIApp, metrics: Metrics, endpoints: frozenset[str]) -> None:
        self._app, self._metrics, self._endpoints = app, metrics, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # what an unexpected error is answered with, further out

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            name = getattr(scope.get("route"), "name", None)
            if name not in NOT_COUNTED:
                self._metrics.answered(name if name in self._endpoints else "other", status)
