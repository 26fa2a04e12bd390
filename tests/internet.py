"""A small internet: names with addresses that may change, and every address leading to one real server on this machine.

Whatever a fetcher connects to arrives at that server, so a request that should not have been made is seen.
"""

import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpcore

PUBLIC = "93.184.216.34"
HERE = f"127.{random.randrange(1, 250)}.{random.randrange(250)}.7"  # where no other program looks for its own server


@dataclass
class Internet:
    """`names`: the addresses of a name, one list for each time it is asked; the last one holds on."""

    port: int = 0
    address: str = HERE
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)  # request line and headers
    unreachable: set[str] = field(default_factory=set)

    def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.names.get(host.removesuffix("."))
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    @property
    def network(self) -> httpcore.NetworkBackend:
        return _EverywhereIsHere(self)


class _EverywhereIsHere(httpcore.NetworkBackend):
    def __init__(self, internet: Internet) -> None:
        self._internet, self._tcp = internet, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        self._internet.connected.append((host, port))
        if host in self._internet.unreachable:
            raise httpcore.ConnectTimeout
        return self._tcp.connect_tcp(self._internet.address, self._internet.port, timeout)


Answer = Callable[[socket.socket], None]


def plain(body: bytes, head: str = "") -> Answer:
    """200 with `body` and more header lines."""
    lines = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{head}\r\n"
    return lambda connection: connection.sendall(lines.encode() + body)


def raw(content: bytes) -> Answer:
    return lambda connection: connection.sendall(content)


def redirect(to: str, status: int = 302) -> Answer:
    return raw(f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))


@contextmanager
def serving(answers: dict[str, Answer], tls: ssl.SSLContext | None = None, address: str = HERE) -> Iterator[Internet]:
    """A server that speaks to each path as told, and to others with a secret."""
    listener = socket.create_server((address, 0))
    internet = Internet(listener.getsockname()[1], address)
    threads: list[threading.Thread] = []

    def talk(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(20)
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                if not (received := connection.recv(4096)):
                    return
                head += received
            internet.requests.append(head)
            answers.get(head.split(b" ")[1].decode(), plain(b"secret of this machine"))(connection)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=talk, args=(connection,), daemon=True)
                thread.start()
                threads.append(thread)

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield internet
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join(5)
