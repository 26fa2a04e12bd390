"""The embedded Triton as a process: ports, logs, errors at start, no orphan and no shared memory left."""

import errno
import os
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from load import tree
from packaging.specifiers import SpecifierSet
from processes import command_line, is_running, wait_for

from lipserve import embedded as module
from lipserve.embedded import EmbeddedTriton, Ports
from lipserve.errors import ModelsMissing, TritonDidNotStart


def test_it_serves_on_the_ports_it_says_and_keeps_its_log(triton: EmbeddedTriton) -> None:
    assert len({triton.ports.http, triton.ports.grpc, triton.ports.metrics}) == 3
    ready = urllib.request.urlopen(f"http://127.0.0.1:{triton.ports.http}/v2/models/lipsync/ready")
    assert ready.status == 200
    assert "nv_inference_count" in urllib.request.urlopen(triton.metrics_url).read().decode()
    assert "Started GRPCInferenceService" in triton.log_file.read_text()


def test_a_port_in_use_is_an_error_before_anything_starts(triton: EmbeddedTriton, tmp_path: Path) -> None:
    with pytest.raises(TritonDidNotStart, match=str(triton.ports.grpc)):
        EmbeddedTriton(tmp_path, tmp_path, tmp_path, Ports(grpc=triton.ports.grpc))


def test_missing_files_are_named_with_the_command_that_brings_them(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelsMissing, match="lipserve setup"):
        EmbeddedTriton(exported / "model_repository/cpu", tmp_path, tmp_path).start()
    with pytest.raises(ModelsMissing, match="python -m export"):
        EmbeddedTriton(tmp_path, exported / "models", tmp_path).start()


def test_a_python_without_a_stub_is_refused_and_those_with_one_are_named(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    there = {path.name for path in (exported / "models/tritonserver/python_backend_stubs").iterdir()}
    assert set(module.STUBS) == {version for version in there if version in SpecifierSet(project["requires-python"])}
    server = EmbeddedTriton(exported / "model_repository/cpu", exported / "models", tmp_path)
    monkeypatch.setattr(module, "sys", SimpleNamespace(version_info=SimpleNamespace(major=3, minor=14)))
    with pytest.raises(ModelsMissing, match=r"no stub for Python 3\.14") as caught:
        server.start()
    assert caught.value.hint == "Use Python 3.11 or 3.12 or 3.13, or a Triton elsewhere: LIPSERVE_TRITON_URL."
    assert server.pid is None and not server.log_file.exists()


def test_a_model_that_cannot_load_fails_the_start_with_the_log(exported: Path, tmp_path: Path) -> None:
    model = tmp_path / "models/broken"
    (model / "1").mkdir(parents=True)
    (model / "1/model.py").write_text("raise RuntimeError('this model is broken on purpose')\n")
    (model / "config.pbtxt").write_text('name: "broken"\nbackend: "python"\n')
    server = EmbeddedTriton(tmp_path / "models", exported / "models", tmp_path / "run")
    with pytest.raises(TritonDidNotStart) as caught:
        server.start()
    assert "broken" in str(caught.value)
    assert server.pid is None


START_AND_SLEEP = """
import signal, sys, time
from pathlib import Path
from lipserve.embedded import EmbeddedTriton
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, tests too, has it ignored
root, run = map(Path, sys.argv[1:])
with EmbeddedTriton(root / "model_repository/cpu", root / "models", run) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


@contextmanager
def parent_of_triton(exported: Path, run_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, list[int]]]:
    """A process with an embedded Triton that is ready, the server's id, and the ids of all below the process."""
    command = [sys.executable, "-c", START_AND_SLEEP, str(exported), str(run_dir)]
    story = run_dir / "parent.log"
    with story.open("wb") as out:
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, start_new_session=True)
    try:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        assert line, story.read_text()
        family = tree(parent.pid)[1:]
        assert int(line) in family
        assert len(family) >= 4  # the server and a stub for each of three models
        yield parent, int(line), family
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def regions(pid: int) -> list[str]:
    """Of the Triton of a process, without the file that says whose they are."""
    return [file.name for file in Path("/dev/shm").glob(f"lipserve_{pid}_*") if file.suffix != ".lock"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_orphan_and_no_shared_memory_after_the_parent_is_gone(
    exported: Path, tmp_path: Path, how: signal.Signals
) -> None:
    with parent_of_triton(exported, tmp_path) as (parent, _, family):
        assert regions(parent.pid)
        os.kill(parent.pid, how)
        parent.wait(60)
        wait_for(lambda: not any(is_running(pid) for pid in family), 60)
        wait_for(lambda: not regions(parent.pid), 10)
        if how == signal.SIGINT:
            assert not list(Path("/dev/shm").glob(f"lipserve_{parent.pid}_*"))


def test_the_next_start_removes_what_both_left_when_killed_at_once(exported: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        parent, triton, family = stack.enter_context(parent_of_triton(exported, tmp_path))
        stub = next(pid for pid in family if b"triton_python_backend_stub" in command_line(pid).split(b"\0")[0])
        stack.callback(end, stub)
        os.kill(stub, signal.SIGSTOP)  # as one that waits for its server for ever
        os.kill(parent.pid, signal.SIGSTOP)  # or it would still clean up after the server
        os.kill(triton, signal.SIGKILL)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(60)
        wait_for(lambda: not is_running(triton), 60)
        assert regions(parent.pid) and is_running(stub)
        with (
            parent_of_triton(exported, tmp_path) as (other, _, _),  # removes it
            EmbeddedTriton(exported / "model_repository/cpu", exported / "models", tmp_path / "second"),
        ):
            assert not list(Path("/dev/shm").glob(f"lipserve_{parent.pid}_*"))
            wait_for(lambda: not is_running(stub), 10)
            assert regions(other.pid)  # of one that lives


class FakeTriton(EmbeddedTriton):
    """A process that sleeps in the server's place."""

    def _require_files(self) -> None:
        pass

    def _command(self) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(600)"]

    def _is_ready(self) -> bool:
        return self.pid is not None


class HangingTriton(FakeTriton):
    """A process that says that it crashes, and does not end, whatever it is asked; as Triton with a damaged heap."""

    def _command(self) -> list[str]:
        hang = "import signal, time; signal.signal(15, signal.SIG_IGN); print('Signal (11) received.', flush=True)"
        return [sys.executable, "-c", f"{hang}; time.sleep(600)"]


def test_a_server_that_hangs_at_its_end_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RESTART_DELAYS", (0.01,))
    monkeypatch.setattr(module, "STOP_TIMEOUT", 0.5)
    with HangingTriton(tmp_path, tmp_path, tmp_path) as server:
        first = server.pid
        assert first is not None
        wait_for(lambda: server.pid not in (None, first), 20)
        assert not is_running(first)
    assert server.pid is None
    assert "tritonserver ended with -9; starting it again in 0.01 s" in caplog.text


def test_a_server_that_hung_when_its_parent_was_killed_is_ended_by_the_next_start(
    exported: Path, tmp_path: Path
) -> None:
    with parent_of_triton(exported, tmp_path) as (parent, triton, _):
        os.kill(triton, signal.SIGSTOP)  # so that it does not end at its parent's end
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(60)
        assert is_running(triton)
        module.remove_stale()
        wait_for(lambda: not is_running(triton), 10)
        assert not list(Path("/dev/shm").glob(f"lipserve_{parent.pid}_*"))


def fail_starts(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> list[int]:
    """Let these Popen calls, counted from 0, fail for want of memory; returns the list of all calls that follow."""
    real, calls = subprocess.Popen, []

    def popen(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        calls.append(len(calls))
        if calls[-1] in numbers:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(*args, **options)

    monkeypatch.setattr(module.subprocess, "Popen", popen)
    return calls


def test_a_restart_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RESTART_DELAYS", (0.01,))
    calls = fail_starts(monkeypatch, 1, 2)
    with FakeTriton(tmp_path, tmp_path, tmp_path) as server:
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: server.pid not in (None, first), 20)
        assert calls == [0, 1, 2, 3]
    assert server.pid is None
    assert caplog.text.count("could not be started") == 2


def test_a_first_start_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fail_starts(monkeypatch, 0)
    server = FakeTriton(tmp_path, tmp_path, tmp_path)
    with pytest.raises(TritonDidNotStart, match="could not be started"):
        server.start()
    assert calls == [0]
    assert not list(Path("/dev/shm").glob(f"lipserve_{os.getpid()}_{server.ports.grpc}_*"))


def test_shared_memory_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path / "missing")
    with pytest.raises(TritonDidNotStart, match="missing"):
        FakeTriton(tmp_path, tmp_path, tmp_path).start()


def test_a_killed_server_is_started_again_on_the_same_ports(exported: Path, tmp_path: Path) -> None:
    """One that crashes before it was ready, and one later."""
    server = EmbeddedTriton(exported / "model_repository/cpu", exported / "models", tmp_path)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.start)
        wait_for(lambda: server.pid, 20)
        aborted = server.pid
        assert aborted is not None
        os.kill(aborted, signal.SIGABRT)
        starting.result()
    try:
        first, ports = server.pid, server.ports
        assert first is not None and first != aborted
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: server.pid not in (None, first), 20)

        def ready() -> bool:
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{ports.http}/v2/health/ready").status == 200
            except OSError:
                return False

        wait_for(ready, 60)
        assert server.ports == ports
        second = server.pid
    finally:
        server.stop()
    assert second is not None
    assert not is_running(second)
