"""Starts the real `lipserve up` as a process, talks to it, and looks at what runs and what is left."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from load import tree

from lipserve.settings import PLAIN_NAMES, PREFIX, Settings

START_TIMEOUT = 90.0  # seconds


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


def environment(settings: Settings, **more: object) -> dict[str, str]:
    """The process environment for these settings."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set} | more
    own = {PREFIX + name.upper(): str(value) for name, value in given.items()}
    others = {name for name in os.environ if name.startswith(PREFIX)} | PLAIN_NAMES.keys()
    return {name: value for name, value in os.environ.items() if name not in others} | own


class Service:
    """One running `lipserve up`."""

    def __init__(self, settings: Settings, log: Path, **more: object) -> None:
        self.port = free_port()
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lipserve", "up", "--port", str(self.port)],
                env=environment(settings, **more),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def is_ready(self) -> bool:
        try:
            return self.http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def children(self) -> list[int]:
        """Everything the service has started, itself not included: tritonserver and its stubs."""
        return tree(self.process.pid)[1:]

    def triton_pid(self) -> int:
        (pid,) = (pid for pid in self.children() if command_line(pid).split(b"\0")[0].endswith(b"bin/tritonserver"))
        return pid


@contextmanager
def service(settings: Settings, log: Path, **more: object) -> Iterator[Service]:
    running = Service(settings, log, **more)
    try:
        wait_for(running.is_ready, START_TIMEOUT, lambda: log.read_text())
        yield running
    finally:
        running.http.close()
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            running.process.wait(30)


def wait_for(condition: Callable[[], object], seconds: float, story: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {story()}")
        time.sleep(0.05)


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_running(pid: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
