"""A small HTTP server for downloads: a Hugging Face Hub with a CDN, and any other site, with their bad days."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Site:
    """Files by path, and what is to go wrong. Each GET request uses up one of `troubles` and `hang_ups`."""

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"one"'
    ranges: bool = True
    cdn: str = ""  # where the Hub's answers point to; empty: it sends the file itself
    redirects: dict[str, str] = field(default_factory=dict)
    troubles: deque[int] = field(default_factory=deque)  # status of the next answer; 200: none
    hang_ups: deque[int] = field(default_factory=deque)  # bytes after which the next body ends
    head_status: int = 200
    head_headers: dict[str, str] = field(default_factory=dict)
    extra_headers: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str, Message]] = field(default_factory=list)  # method, path, headers
    url: str = ""

    def ranges_asked(self) -> list[str | None]:
        return [headers["Range"] for method, _, headers in self.seen if method == "GET"]


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            site.seen.append(("HEAD", self.path, self.headers))
            content = site.files.get(self.path)
            status = site.head_status if content is not None else 404
            headers = {"X-Repo-Commit": REVISION, "ETag": site.etag, "Content-Length": str(len(content or b""))}
            if content is None:
                headers["X-Error-Code"] = "EntryNotFound"
            elif site.cdn:
                status = 302
                headers |= {"Location": site.cdn + self.path, "X-Linked-ETag": site.etag, "Content-Length": "0"}
                headers["X-Linked-Size"] = str(len(content))
            self.answer(status, headers | site.head_headers)

        def do_GET(self) -> None:
            site.seen.append(("GET", self.path, self.headers))
            content = site.files.get(self.path)
            if self.path in site.redirects:
                self.answer(302, {"Location": site.redirects[self.path], "Content-Length": "0"})
            elif content is None:
                self.answer(404, {"Content-Length": "0"})
            elif (status := site.troubles.popleft() if site.troubles else 200) != 200:
                self.answer(status, {"Content-Length": "0"})
            else:
                self.send(content)

        def send(self, content: bytes) -> None:
            first, status, headers = 0, 200, {"ETag": site.etag} if site.etag else {}
            asked = self.headers["Range"]
            if asked and site.ranges and self.headers["If-Range"] in (None, site.etag):
                first, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
                if first >= len(content):
                    self.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
                    return
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.answer(status, headers | {"Content-Length": str(len(content) - first)} | site.extra_headers)
            end = first + site.hang_ups.popleft() if site.hang_ups else len(content)
            self.wfile.write(content[first:end])
            self.close_connection = True

        def answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
