"""Fetches URLs that strangers name, and sends to them: only to and from the public internet, in bounded time and size.

Which URLs and addresses those are stands in gateway.urls. Here a name is resolved once for a connection, every address
of the answer is checked, and the connection goes to an address that was checked; TLS still proves the name. No proxy,
cookie or credential takes part. The only module that imports httpcore.
"""

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import BinaryIO

import httpcore

from gateway.inputs import full_disk_named
from gateway.urls import Location, allowed_hosts, is_public, literal, location, redirected
from lipserve.errors import Cancelled, FetchFailed, UrlNotAllowed
from lipserve.settings import Settings

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
CONNECT_SECONDS = 10.0  # for one address, and for TLS after it
MAX_ADDRESSES = 4  # of a name that are tried
SLICE = 0.25  # seconds between two looks at whether somebody still waits
MAX_ANSWER = 2**16  # bytes of an answer to what was sent that are read before it is thrown away
PIECE = 2**16  # bytes sent at once

_HINT = "Check the URL in a browser, or upload the file."

Resolver = Callable[[str, int], list[str]]  # host, port: its addresses; raises socket.gaierror
Sent = Callable[[int, int], None]  # bytes, of so many


@dataclass(frozen=True)
class Fetched:
    size: int  # bytes
    url: str  # where it was in the end


class UrlFetcher:
    """Safe to use from several threads; a connection lives for one request.

    `resolve`, `network` and `trust` are the system's DNS, TCP and certificate authorities, for tests to replace.
    """

    def __init__(
        self,
        settings: Settings,
        resolve: Resolver | None = None,
        network: httpcore.NetworkBackend | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._on, self._seconds = settings.fetch_urls, settings.fetch_timeout_seconds
        self._allow = allowed_hosts(settings.fetch_allow)
        self._resolve, self._network = resolve or _system_resolve, network or httpcore.SyncBackend()
        self._trust = trust or httpcore.default_ssl_context()

    def check(self, url: str) -> None:
        """What can be said of a URL without the network. Raises UrlNotAllowed."""
        self._location(url)

    def fetch(self, url: str, target: Path, max_bytes: int, cancelled: Event | None = None) -> Fetched:
        """The body of `url` in the file `target`, whole or not there. Blocks for at most the settings' seconds.

        Raises UrlNotAllowed, FetchFailed, Cancelled or StorageFull.
        """
        where, clock = self._location(url), _Clock(self._seconds, cancelled)
        for _ in range(MAX_REDIRECTS + 1):
            with self._request("GET", where, clock, {"accept": "*/*"}) as response:
                if response.status not in REDIRECTS:
                    return Fetched(_received(response, target, max_bytes), str(where))
                where = redirected(where, _header(response, b"location"), self._allow)
        raise FetchFailed(f"The URL redirects more than {MAX_REDIRECTS} times.", _HINT)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send `body`; the answer's status. No redirect is followed. Raises UrlNotAllowed or FetchFailed."""
        where, clock = self._location(url), _Clock(self._seconds, None)
        with self._request("POST", where, clock, headers, body) as response:
            return _status(response, clock)

    def put(self, url: str, file: Path, headers: Mapping[str, str], sent: Sent, cancelled: Event | None = None) -> int:
        """Send a file, piece by piece; the answer's status. No redirect is followed. `sent` is called with the bytes
        that are on their way and those of the file, and may raise. Blocks for at most the settings' seconds.

        Raises UrlNotAllowed, FetchFailed or Cancelled.
        """
        where, clock = self._location(url), _Clock(self._seconds, cancelled)
        with file.open("rb") as body:
            size = os.fstat(body.fileno()).st_size
            announced = {**headers, "content-length": str(size)}  # stores that sign URLs take no chunks
            with self._request("PUT", where, clock, announced, _pieces(body, size, sent)) as response:
                return _status(response, clock)

    def _location(self, url: str) -> Location:
        if not self._on:
            raise UrlNotAllowed("This server follows no URLs.", "Upload the file, or set LIPSERVE_FETCH_URLS=true.")
        return location(url, self._allow)

    @contextmanager
    def _request(
        self,
        method: str,
        where: Location,
        clock: "_Clock",
        headers: Mapping[str, str],
        body: bytes | Iterator[bytes] | None = None,
    ) -> Iterator[httpcore.Response]:
        """One request on a connection of its own. Raises UrlNotAllowed, FetchFailed or Cancelled, in the block, too."""
        network = _CheckedNetwork(where, clock, self._resolve, self._network)
        url = httpcore.URL(scheme=where.scheme, host=where.host, port=where.port, target=where.target)
        sent: dict[bytes | str, bytes | str] = {
            "host": where.host_header,
            "user-agent": "lipserve",
            "accept-encoding": "identity",
        }
        sent.update(headers)
        with (
            _translated(clock),
            httpcore.ConnectionPool(ssl_context=self._trust, network_backend=network, max_connections=1) as pool,
            pool.stream(method, url, headers=sent, content=body) as response,
        ):
            yield response


class _Clock:
    """How long one fetch may still take, and whether somebody still waits for it."""

    def __init__(self, seconds: float, cancelled: Event | None) -> None:
        self.seconds, self._cancelled = seconds, cancelled
        self._end = time.monotonic() + seconds

    def left(self, limit: float) -> float:
        """Seconds, at most `limit`. Raises FetchFailed or Cancelled when there are none."""
        if self._cancelled is not None and self._cancelled.is_set():
            raise Cancelled("The request was cancelled while a URL was fetched.")
        left = self._end - time.monotonic()
        if left <= 0:
            raise FetchFailed(f"The URL took longer than {self.seconds:g} seconds.", _HINT)
        return min(left, limit)


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to `where`, at an address that was checked, and to nothing else."""

    def __init__(self, where: Location, clock: _Clock, resolve: Resolver, network: httpcore.NetworkBackend) -> None:
        self._where, self._clock, self._resolve, self._network = where, clock, resolve, network

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        assert (host, port) == (self._where.host, self._where.port)
        for address in self._addresses()[:MAX_ADDRESSES]:
            try:
                stream = self._network.connect_tcp(address, port, self._clock.left(CONNECT_SECONDS))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
            return _TimedStream(stream, self._clock)
        raise httpcore.ConnectError

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.NetworkStream:
        raise UrlNotAllowed("Sockets of this machine are not fetched from.")

    def sleep(self, seconds: float) -> None:
        raise NotImplementedError("nothing is tried again here")

    def _addresses(self) -> list[str]:
        """All checked. Raises UrlNotAllowed; whether an inner name exists is not to be told from what is said."""
        if literal(self._where.host) is not None:
            return [self._where.host]
        # With the dot, no name of the internet becomes one of a search domain inside.
        found = self._resolved(self._where.host if self._where.allowed else self._where.host + ".")
        addresses = [literal(address) for address in found]
        public = [address is not None and is_public(address) for address in addresses]
        if not found or not (self._where.allowed or all(public)):
            raise UrlNotAllowed("The URL's host has no address, or not a public one.", _HINT)
        return found

    def _resolved(self, host: str) -> list[str]:
        """Asked once. A name server that does not answer is not waited for longer than the clock says."""
        answer: Future[list[str]] = Future()
        Thread(target=_answer, args=(answer, self._resolve, host, self._where.port), daemon=True).start()
        while True:
            try:
                return answer.result(self._clock.left(SLICE))
            except TimeoutError:
                continue
            except socket.gaierror as exc:
                if exc.errno == socket.EAI_AGAIN:
                    raise FetchFailed("The URL's host cannot be resolved at the moment.", "Try again later.") from exc
                return []


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every wait ends with the clock, however slowly bytes come."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            limit = self._clock.left(SLICE)
            with suppress(httpcore.ReadTimeout):
                return self._stream.read(max_bytes, limit)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), PIECE):  # small pieces, each with the clock's leave
            self._stream.write(buffer[start : start + PIECE], self._clock.left(CONNECT_SECONDS))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._clock.left(CONNECT_SECONDS)
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, left), self._clock)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


@contextmanager
def _translated(clock: _Clock) -> Iterator[None]:
    """httpcore's errors as ours, without what a server said."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
        if isinstance(exc.__context__, ssl.SSLCertVerificationError):
            raise FetchFailed("The URL's server has no certificate that is valid for its name.", _HINT) from exc
        clock.left(0)
        raise FetchFailed("The URL's server cannot be reached.", _HINT) from exc
    except (httpcore.TimeoutException, httpcore.NetworkError) as exc:
        clock.left(0)
        raise FetchFailed("The connection to the URL's server broke.", _HINT) from exc
    except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as exc:
        raise FetchFailed("The URL's server did not answer in proper HTTP, or not to the end.", _HINT) from exc


def _pieces(body: BinaryIO, size: int, sent: Sent) -> Iterator[bytes]:
    done = 0
    while piece := body.read(PIECE):
        yield piece
        done += len(piece)
        sent(done, size)


def _status(response: httpcore.Response, clock: _Clock) -> int:
    """Of an answer to what was sent; what it says is of no interest."""
    read = 0
    with suppress(FetchFailed), _translated(clock):
        for chunk in response.iter_stream():
            read += len(chunk)
            if read > MAX_ANSWER:
                break
    return int(response.status)


def _received(response: httpcore.Response, target: Path, max_bytes: int) -> int:
    """The body in `target`, or no file; its size in bytes."""
    if response.status != 200:
        raise FetchFailed(f"The URL's server answered {response.status}.", _HINT)
    if _header(response, b"content-encoding").lower() not in ("", "identity"):
        raise FetchFailed("The URL's server sent the file compressed, unasked.", _HINT)
    announced = _header(response, b"content-length")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    with full_disk_named(), target.open("wb") as out:
        try:
            return _written(response, out, max_bytes)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _written(response: httpcore.Response, out: BinaryIO, max_bytes: int) -> int:
    size = 0
    for chunk in response.iter_stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        out.write(chunk)
    out.flush()
    if not size:
        raise FetchFailed("The URL's server sent an empty file.", _HINT)
    return size


def _too_large(max_bytes: int) -> FetchFailed:
    return FetchFailed(f"The URL's file is larger than {max_bytes / 1e6:g} MB.", "Send a shorter or smaller file.")


def _header(response: httpcore.Response, name: bytes) -> str:
    """Empty if it is not there."""
    return next((value.decode("latin-1").strip() for key, value in response.headers if key.lower() == name), "")


def _answer(answer: "Future[list[str]]", resolve: Resolver, host: str, port: int) -> None:
    try:
        answer.set_result(resolve(host, port))
    except BaseException as exc:
        answer.set_exception(exc)


def _system_resolve(host: str, port: int) -> list[str]:
    """In the order in which the system prefers them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
