"""The embedded Triton: the real `tritonserver` as a supervised child process.

It is started on given or free ports, waited for, started again if it dies, and stopped. It never outlives this process:
the kernel ends it when its parent is gone (PR_SET_PDEATHSIG), and its Python stubs watch it in turn. What it prints is
kept in a log file. What is left when both are killed at once, or of a server that hung then, the next start removes.
Knows nothing of models beyond the folder they are in, and whether all are loaded at first or none.
"""

import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lipserve.claims import abandoned, claim
from lipserve.errors import LipserveError, ModelsMissing, TritonDidNotStart
from lipserve.fetch import TRITONSERVER

log = logging.getLogger(__name__)

READY_TIMEOUT = 120.0  # seconds
STOP_TIMEOUT = 10.0  # seconds, then SIGKILL
DYING = b"Signal ("  # begins the line that a server prints when it crashes
RESTART_DELAYS = (0.5, 1, 2, 5, 10)  # seconds before the n-th restart in a row; the last one repeats
STABLE_AFTER = 60.0  # seconds of life after which a crash counts as the first again
KEEP_LOG_BYTES = 20_000_000  # an older log beyond this is set aside as .1
STUBS = ("3.11", "3.12", "3.13")  # the Python versions that both we and the wheel's Python backend run on
SHARED_MEMORY = Path("/dev/shm")
PREFIX = "lipserve_"  # of our Tritons' regions, before what is one server's own
CLAIM = ".lock"  # ends the name of the file whose lock says that a server's regions have an owner

# Becomes tritonserver after asking the kernel to be ended together with its parent, whose pid is the first argument.
_TIE_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Ports:
    """TCP ports on 127.0.0.1; 0 asks for a free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0

    def filled(self) -> "Ports":
        """Zeros replaced by ports that are free now."""
        with suppress(OSError):
            sockets = [socket.create_server(("127.0.0.1", port)) for port in (self.http, self.grpc, self.metrics)]
            ports = [s.getsockname()[1] for s in sockets]
            for s in sockets:
                s.close()
            return Ports(*ports)
        raise TritonDidNotStart(
            f"One of the ports {self.http}, {self.grpc}, {self.metrics} is in use.",
            "Choose others with LIPSERVE_TRITON_HTTP_PORT, _GRPC_PORT and _METRICS_PORT, or 0 for free ones.",
        )


class EmbeddedTriton:
    """Use as a context manager: entering returns when every model is ready, leaving stops the server.

    With `explicit`, no model is loaded before a client asks Triton to, and it is ready without any.
    """

    def __init__(
        self,
        model_repository: Path,
        models_dir: Path,
        run_dir: Path,
        ports: Ports | None = None,
        explicit: bool = False,
    ) -> None:
        self._repository = model_repository.resolve()
        self._files = (models_dir / TRITONSERVER.folder).resolve()
        self._run_dir = run_dir.resolve()
        self._explicit = explicit
        self.ports = (ports or Ports()).filled()
        self.log_file = self._run_dir / "triton.log"
        self._log_start = 0  # byte where this server's own lines begin
        self._process: subprocess.Popen[bytes] | None = None
        self._claim: tuple[int, str] | None = None  # handle and name, from start to stop
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="triton-supervisor", daemon=True)

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int | None:
        """Of the running tritonserver."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Raises ModelsMissing, or TritonDidNotStart with the end of its log."""
        self._require_files()
        self._run_dir.mkdir(parents=True, exist_ok=True)
        if self.log_file.exists() and self.log_file.stat().st_size > KEEP_LOG_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        remove_stale()
        try:
            self._claim = claim(SHARED_MEMORY, f"{PREFIX}{os.getpid()}_{self.ports.grpc}_", CLAIM)
        except OSError as exc:
            raise TritonDidNotStart(
                f"Triton's Python backend needs {SHARED_MEMORY}, where no file can be made: {exc.strerror}.",
                "Mount a tmpfs there that this user may write to, and that is not full.",
            ) from exc
        self._supervisor.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join(STOP_TIMEOUT + 5)
        if self._claim is not None and not self._supervisor.is_alive():
            handle, name = self._claim
            self._claim = None
            (SHARED_MEMORY / name).unlink(missing_ok=True)
            os.close(handle)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- the child ----------------------------------------------------------------------------------------------------

    def _require_files(self) -> None:
        if not TRITONSERVER.is_there(self._files.parent):
            raise ModelsMissing(f"There is no tritonserver in {self._files}.", "Run `lipserve setup` once.")
        if not list(self._repository.glob("*/config.pbtxt")):
            raise ModelsMissing(
                f"There is no model in {self._repository}.",
                "Make them: python -m export --target cpu --profile demo",
            )
        self._backends()
        self._libraries()

    def _backends(self) -> Path:
        """The backend folder for this Python: the backend's library, and beside it the stub of our minor version."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = self._files / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.is_file():
            raise ModelsMissing(
                f"The embedded Triton's Python backend has no stub for Python {version}.",
                f"Use Python {' or '.join(STUBS)}, or a Triton elsewhere: LIPSERVE_TRITON_URL.",
            )
        folder = self._files / f"backends-{version}" / "python"
        folder.mkdir(parents=True, exist_ok=True)
        for target in (stub, *(self._files / "python_backend").iterdir()):
            with suppress(FileExistsError):
                (folder / target.name).symlink_to(target)
        return folder.parent

    def _libraries(self) -> str:
        """LD_LIBRARY_PATH: the wheel's libraries and libpython, which the stub is linked with."""
        folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
        if ".so" not in str(name):
            raise ModelsMissing(
                "This Python was built without a shared libpython, which Triton's Python backend needs.",
                "Use the Python of Debian, Ubuntu, uv or conda, or pyenv's with PYTHON_CONFIGURE_OPTS=--enable-shared.",
            )
        return f"{self._files / 'lib'}:{folder}"

    def _command(self) -> list[str]:
        ports = self.ports
        options = {
            "model-repository": self._repository,
            "model-control-mode": "explicit" if self._explicit else "none",
            "backend-directory": self._backends(),
            "http-address": "127.0.0.1",
            "http-port": ports.http,
            "grpc-address": "127.0.0.1",
            "grpc-port": ports.grpc,
            "metrics-address": "127.0.0.1",
            "metrics-port": ports.metrics,
            "exit-timeout-secs": 5,
            "allow-gpu-metrics": "false",
            "backend-config": f"python,shm-region-prefix-name={self._shared_memory_prefix()}",
        }
        return [
            *(sys.executable, "-c", _TIE_TO_PARENT, str(os.getpid())),
            # The stub's interpreter ignores PYTHONPATH; it finds our packages through the first python3 in PATH.
            *("env", f"LD_LIBRARY_PATH={self._libraries()}", f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"),
            str(self._files / "bin" / "tritonserver"),
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def _shared_memory_prefix(self) -> str:
        assert self._claim is not None
        return _prefix(self._claim[1])

    def _supervise(self) -> None:
        """The thread that starts the child must live as long as it: PR_SET_PDEATHSIG looks at the thread."""
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                what = f"ended with {self._run()}"
            except (OSError, LipserveError) as exc:
                what = f"could not be started: {exc}"
                if self._process is None:  # the very first one, for which `start` waits
                    log.error("tritonserver %s", what)
                    return
            if self._stopping.is_set():
                return
            failures = 1 if time.monotonic() - started > STABLE_AFTER else failures + 1
            delay = RESTART_DELAYS[min(failures, len(RESTART_DELAYS)) - 1]
            log.error("tritonserver %s; starting it again in %s s", what, delay)
            self._stopping.wait(delay)

    def _run(self) -> int:
        """Start the child, stay until it has ended, by itself or because of `stop`, and return its exit code. Raises
        OSError or LipserveError if it cannot be started."""
        with self.log_file.open("ab") as out, self.log_file.open("rb") as said:
            said.seek(0, os.SEEK_END)
            self._process = process = subprocess.Popen(
                self._command(), stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )
            heard = b""
            while DYING not in heard and process.poll() is None and not self._stopping.wait(0.1):
                heard = heard[-len(DYING) :] + said.read()  # a line may come in pieces
        if process.poll() is None:
            self._end(process)
        self._clean_up_after(process)
        return process.returncode

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """One that crashes wants to say where, for which it needs memory: after a damaged heap it hangs, for ever."""
        if self._stopping.is_set():
            process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            log.error("tritonserver hangs at its end; it is killed")
            process.kill()
            process.wait()

    def _clean_up_after(self, process: subprocess.Popen[bytes]) -> None:
        """What a killed server leaves: stubs that wait for it for ever, if it died in the middle of a request, and
        their shared memory. The server is gone, so its process group holds nothing but its stubs."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _remove_regions(self._shared_memory_prefix())

    def _wait_until_ready(self) -> None:
        """A crash is forgiven once, the supervisor starts it again: on a busy machine the Python backend was seen to
        abort over a lock it shares with its stubs."""
        deadline = time.monotonic() + READY_TIMEOUT
        crashed: subprocess.Popen[bytes] | None = None
        while time.monotonic() < deadline:
            if not self._supervisor.is_alive():
                raise self._did_not_start("could not be started")
            process = self._process
            if process is not None and process is not crashed and process.poll() is not None:
                if process.returncode >= 0 or crashed is not None:
                    raise self._did_not_start(f"ended with {_exit_name(process.returncode)}")
                crashed = process
            if self._is_ready():
                return
            time.sleep(0.1)
        raise self._did_not_start(f"was not ready after {READY_TIMEOUT:.0f} s")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.http, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _did_not_start(self, what: str) -> TritonDidNotStart:
        tail = ""
        if self.log_file.exists():
            with self.log_file.open("rb") as handle:
                handle.seek(self._log_start)
                lines = handle.read().decode(errors="replace").splitlines()
            errors = [line for line in lines if line.startswith(("E", "error:")) and "CUDA" not in line.upper()]
            tail = "\n".join((errors or lines)[-10:])
        return TritonDidNotStart(f"tritonserver {what}.", f"From {self.log_file}:\n{tail}")


def remove_stale() -> None:
    """End what runs, and remove the regions, of servers that were killed or hung when their parents were killed."""
    for file in abandoned(SHARED_MEMORY, f"{PREFIX}*{CLAIM}"):
        prefix = _prefix(file.name)
        _kill_left(prefix)
        _remove_regions(prefix)


def _prefix(claimed: str) -> str:
    """Of the names of the regions that a claimed file stands for."""
    return f"{claimed.removesuffix(CLAIM)}_"


def _remove_regions(prefix: str) -> None:
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        with suppress(OSError):
            region.unlink()


def _kill_left(prefix: str) -> None:
    """A server's command line ends with the prefix of its regions, a stub's names its region, and no other server's
    begin like it. Those in other containers are not seen."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            handle = os.pidfd_open(int(folder.name))  # before the look at it: a process id may be another's by then
            try:
                program, *arguments = (folder / "cmdline").read_bytes().split(b"\0")
                stub = any(argument.startswith(prefix.encode()) for argument in arguments)
                server = any(argument.endswith(f"={prefix}".encode()) for argument in arguments)
                if (stub and program.endswith(b"triton_python_backend_stub")) or (
                    server and program.endswith(b"bin/tritonserver")
                ):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def _exit_name(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
