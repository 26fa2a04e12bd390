"""The embedded Triton as a process: ports, logs, errors at start, no orphan and no shared memory left."""

import os
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from load import tree
from processes import is_running, wait_for

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
import sys, time
from pathlib import Path
from lipserve.embedded import EmbeddedTriton
root, run = map(Path, sys.argv[1:])
with EmbeddedTriton(root / "model_repository/cpu", root / "models", run) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_orphan_and_no_shared_memory_after_the_parent_is_gone(
    exported: Path, tmp_path: Path, how: signal.Signals
) -> None:
    command = [sys.executable, "-c", START_AND_SLEEP, str(exported), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert parent.stdout is not None
    triton = int(parent.stdout.readline())
    family = tree(parent.pid)[1:]
    assert triton in family
    assert len(family) >= 4  # the server and a stub for each of three models
    os.kill(parent.pid, how)
    parent.wait(30)
    wait_for(lambda: not any(is_running(pid) for pid in family), 20)
    regions = [r.name for r in Path("/dev/shm").glob(f"lipserve_{parent.pid}_*")]
    assert regions == []


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
