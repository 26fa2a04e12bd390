"""A local HTTP server that takes webhooks and videos, and what sends webhooks there."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from lipserve.errors import FetchFailed, UrlNotAllowed


class Receiver:
    """Answers as told, then 204; keeps what it has got. Redirects lead to itself."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.methods: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.methods.append(self.command)
                receiver.got.append((dict(self.headers.items()), body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("location", "/elsewhere")
                self.end_headers()

            do_PUT = do_POST

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/hook"


class LocalPoster:
    """Sends wherever it is told to."""

    def check(self, url: str) -> None:
        if not url.startswith("http://"):
            raise UrlNotAllowed("Not there.", "")

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        if "refused" in url:
            raise UrlNotAllowed("Not there.", "")
        try:
            return httpx.post(url, content=body, headers=dict(headers)).status_code
        except httpx.TransportError as exc:
            raise FetchFailed("No answer.", "") from exc


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()
