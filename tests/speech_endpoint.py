"""A speech endpoint on this host that answers as it is told, and remembers what it was asked."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Endpoint:
    url: str = ""
    status: int = 200
    body: bytes = b""
    delay: float = 0.0  # seconds before the answer
    repeat: int = 1  # how often the body is sent
    asked: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)  # path, authorization, body


@contextmanager
def speech_endpoint() -> Iterator[Endpoint]:
    told = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.asked.append((self.path, self.headers["authorization"], body))
            time.sleep(told.delay)
            self.send_response(told.status)
            self.send_header("location", told.url + "/elsewhere")
            self.end_headers()
            try:
                for _ in range(told.repeat):
                    self.wfile.write(told.body)
            except OSError:
                pass  # the client has heard enough

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
