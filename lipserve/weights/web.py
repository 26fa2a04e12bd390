"""One file over HTTP into a partial file beside its place, taken up again where it stopped.

Knows nothing of weights. The partial file has a note with the server's mark (ETag) of the version it belongs to; a
server that has another version, or does not do ranges, makes the download start anew. Where the server has no mark, a
part is only continued if a checksum will tell a mixture afterwards.
"""

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

CHUNK = 2**18  # bytes
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the next attempt, doubled each time
PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses worth another attempt
MAX_UNKNOWN = 2**30  # bytes of a file whose size nobody has said

Progress = Callable[[int, int | None], None]  # bytes there, bytes in all


class DownloadFailed(Exception):
    """The message says why. `unreachable`: the server as a whole, so that another file of it need not be tried.

    `denied`: it refused this request; an address that is good for some minutes only does so when they are over.
    """

    def __init__(self, reason: str, unreachable: bool = False, denied: bool = False) -> None:
        super().__init__(reason)
        self.unreachable, self.denied = unreachable, denied


class _Again(Exception):
    """Worth another attempt."""


def download(
    url: str,
    partial: Path,
    size: int | None,
    progress: Progress = lambda done, total: None,
    headers: Mapping[str, str] | None = None,
    schemes: Collection[str] = ("https",),
    checked: bool = False,
) -> None:
    """The whole of `url` in `partial`: exactly `size` bytes if that is given, else at most MAX_UNKNOWN.

    `schemes` holds for every redirect, too. `checked`: the caller compares a checksum when it is whole. Raises
    DownloadFailed, and OSError if the disk cannot take it; the partial file is then kept for the next time.
    """
    _refuse_scheme(url, schemes)
    opener = urllib.request.build_opener(_Redirects(schemes))
    partial.parent.mkdir(parents=True, exist_ok=True)
    failures, reason = 0, ""
    while failures < ATTEMPTS:
        before = _length(partial)
        try:
            return _attempt(opener, url, partial, size, progress, dict(headers or {}), checked)
        except _Again as exc:
            reason = str(exc)
        failures = 0 if _length(partial) > before else failures + 1
        if failures < ATTEMPTS:
            time.sleep(PAUSE * 2 ** max(failures - 1, 0))
    raise DownloadFailed(reason, unreachable=True)


def forget(partial: Path) -> None:
    """Remove a partial file and its note."""
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)


def _attempt(
    opener: urllib.request.OpenerDirector,
    url: str,
    partial: Path,
    size: int | None,
    progress: Progress,
    headers: dict[str, str],
    checked: bool,
) -> None:
    offset, mark = _length(partial), _read(_note(partial))
    if size is not None and offset == size:
        return
    if offset and (mark or checked) and (size is None or offset < size):
        headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": mark} if mark else {})
    else:
        offset = 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "lipserve"} | headers)
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            if response.status == 206 and not _continues(response.headers, offset):
                raise DownloadFailed("the server sent another part than the one asked for")
            _receive(response, partial, offset if response.status == 206 else 0, size, progress)
    except urllib.error.HTTPError as exc:
        with exc:
            _explain(exc, partial)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as exc:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        raise _Again(f"{urlsplit(url).netloc} cannot be reached or hung up: {reason or type(reason).__name__}") from exc


def _receive(response: Any, partial: Path, offset: int, size: int | None, progress: Progress) -> None:
    """Append the body from `offset` on. A body that ends early is worth another attempt."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadFailed("the server sent it compressed, unasked")
    announced = response.headers.get("Content-Length")
    total = offset + int(announced) if announced and announced.isdigit() else None
    limit = MAX_UNKNOWN if size is None else size
    if (total or 0) > limit or (size is not None and total not in (None, size)):
        raise DownloadFailed(f"the server has {total:,} bytes, {'at most' if size is None else 'not'} {limit:,}")
    _note(partial).write_text(_mark(response.headers))
    with partial.open("r+b" if offset else "wb") as out:
        out.seek(offset)
        out.truncate()
        done = offset
        while chunk := _read_chunk(response):
            if done + len(chunk) > limit:
                raise DownloadFailed(f"the server sent more than {limit:,} bytes")
            out.write(chunk)
            done += len(chunk)
            progress(done, total or size)
    if done < (total or size or 0):
        raise _Again(f"the connection ended after {done:,} of {total or size:,} bytes")


def _read_chunk(response: Any) -> bytes:
    """What is there already rather than a full chunk: the bytes before a broken connection count, too."""
    chunk: bytes = response.read1(CHUNK)
    return chunk


def _explain(exc: urllib.error.HTTPError, partial: Path) -> None:
    if exc.code == 416:  # what is there is no beginning of what the server has
        forget(partial)
        raise _Again("the file on the server changed") from exc
    if exc.code in PASSING:
        raise _Again(f"the server answered {exc.code} {exc.reason}") from exc
    raise DownloadFailed(f"the server answered {exc.code} {exc.reason}", denied=exc.code in (401, 403)) from exc


def _continues(headers: Message, offset: int) -> bool:
    return headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _mark(headers: Message) -> str:
    """What tells this version of the file from others; empty if the server says nothing that is sure."""
    etag = str(headers.get("ETag", ""))
    return "" if etag.startswith("W/") else etag


def _note(partial: Path) -> Path:
    return partial.with_name(partial.name + ".etag")


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _refuse_scheme(url: str, schemes: Collection[str]) -> None:
    if urlsplit(url).scheme not in schemes:
        raise DownloadFailed(f"{url} is not {' or '.join(sorted(schemes))}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the schemes; what proves who we are stays with the host it was meant for."""

    def __init__(self, schemes: Collection[str]) -> None:
        self._schemes = schemes

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _refuse_scheme(newurl, self._schemes)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request
