"""Thousands of spoilt media files: each is read or refused by a kind of BadMedia; none crashes, hangs or leaks.

More of them: `pytest tests/test_fuzz.py --fuzz-cases 100000 --fuzz-seed 7`. A failure says how to read its file again.
"""

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mutations import mutated, seeds

WORKER = Path(__file__).parent / "fuzz_worker.py"
CASE_SECONDS = 30.0  # no case takes one; machines that do something else do
START_SECONDS = 120.0


def run(folder: Path, seed: int, first: int, count: int) -> dict[str, Any]:
    """The worker's report. Fails the test if it dies, or if one file takes too long."""
    folder.mkdir()
    paths = os.pathsep.join([str(WORKER.parent.parent), str(WORKER.parent)])
    command = [sys.executable, "-X", "faulthandler", str(WORKER), str(folder), str(seed), str(first), str(count)]
    environment = {**os.environ, "PYTHONPATH": paths}
    with (folder / "errors").open("wb") as errors:
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_pass_on, args=(worker, lines))
    reader.start()
    last, limit = "before the first", START_SECONDS
    try:
        while (line := lines.get(timeout=limit)) is not None:
            last, limit = line.strip(), CASE_SECONDS
    except queue.Empty:
        worker.send_signal(signal.SIGABRT)  # says where it is
        with suppress(subprocess.TimeoutExpired):
            worker.wait(5)
        _fail(f"no end after {limit:g} s", seed, last, folder)
    finally:
        worker.kill()
        worker.wait()
        reader.join()
    if not last.startswith("{"):
        _fail(f"the process ended with {worker.returncode}", seed, last, folder)
    report: dict[str, Any] = json.loads(last)
    return report


def _pass_on(worker: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert worker.stdout is not None
    with worker.stdout:
        for line in worker.stdout:
            lines.put(line)
    worker.wait()
    lines.put(None)


def _fail(what: str, seed: int, last: str, folder: Path) -> None:
    errors = (folder / "errors").read_text(errors="replace")[-3000:]
    again = f"{WORKER.name} FOLDER {seed} {last.split()[0]} 1"
    pytest.fail(f"{what}: seed {seed}, case {last}\nthe file: {folder / 'case'}; again: {again}\n{errors}")


def test_spoilt_media_is_read_or_refused(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    count, seed = request.config.getoption("--fuzz-cases"), request.config.getoption("--fuzz-seed")
    report = run(tmp_path / "fuzz", seed, 0, count)
    print(f"seed {seed}: {report}")
    assert not report["failures"], f"seed {seed}\n" + "\n".join(report["failures"])
    outcomes = report["outcomes"]
    assert sum(outcomes.values()) == count
    assert report["new_handles"] <= 0
    assert report["left"] == []
    assert report["grown_mb"] < 60 + count / 500  # allocators settle; a leak of one picture a case would be 200
    if count >= 2000:  # the files are neither all dead nor all well
        assert outcomes["read"] > 0.15 * count
        for kind in ("not_a_video", "video_damaged", "not_audio", "audio_damaged", "video_too_large"):
            assert outcomes[kind], f"{kind} never happened"


def test_a_case_can_be_made_again(tmp_path: Path) -> None:
    originals = list(seeds(tmp_path).values())
    first, second = (mutated(originals[0], originals, random.Random("0 17")) for _ in range(2))
    assert first == second
    assert first[0] != originals[0]


@pytest.mark.parametrize(
    ("does", "said"), [("os.kill(os.getpid(), signal.SIGSEGV)", "ended with -11"), ("time.sleep(60)", "no end after")]
)
def test_the_watchdog_bites(does: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a worker that dies, and one that hangs, at its second case."""
    bad = tmp_path / "worker.py"
    bad.write_text(
        f"import os, signal, time\nprint('0 a.wav flip', flush=True)\nprint('1 b.wav cut', flush=True)\n{does}\n"
    )
    monkeypatch.setattr("test_fuzz.WORKER", bad)
    monkeypatch.setattr("test_fuzz.CASE_SECONDS", 1.0)
    with pytest.raises(pytest.fail.Exception, match=f"{said}.*case 1 b.wav cut"):
        run(tmp_path / "fuzz", 0, 0, 2)
