"""The benchmarks' own arithmetic, and that each of them can be asked for help."""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import first_frame
import host
import load
import numpy as np
import pytest
from musetalk_folder import stored_blend
from samples import ROOT, facts, pictures, smooth
from test_blend import BACKGROUND, BOX, CORNER_BOXES, ODD_BOXES, Box, soft_mask, stored

from lipserve.avatar import Avatar
from lipserve.colour import planes_to_bgr
from lipserve.errors import Cancelled
from lipserve.media import Sound, VideoEncoding


@pytest.mark.parametrize("name", ["host", "load", "first_frame", "stress"])
def test_help(name: str) -> None:
    command = [sys.executable, f"benchmarks/{name}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "RESULT" in done.stdout


# -- host -------------------------------------------------------------------------------------------------------------


def case(avatar: Avatar, frames: int) -> host.Case:
    sound = Sound(np.zeros((1, 16000), np.float32), 16000)
    return host.Case(avatar, host.noisy_faces(avatar, [0] * frames), [0] * frames, sound, VideoEncoding())


@pytest.mark.parametrize("box", [BOX, *ODD_BOXES, *CORNER_BOXES])
def test_the_references_blend_is_musetalks(box: Box, tmp_path: Path) -> None:
    """To the bit, with the box and the mask that the avatar has, also where the crop reaches past the picture."""
    avatar = stored(tmp_path, BACKGROUND, box, soft_mask(box))
    face = np.ascontiguousarray(smooth(256, 256)[::-1])
    picture = planes_to_bgr(avatar.frames[0], "bt601")
    assert (host.pillow_blend(host.Stored.of(avatar, 0), face) == stored_blend(avatar, 0, picture, face)).all()


def test_the_references_blend_of_a_frame_without_a_face(tmp_path: Path) -> None:
    avatar = stored(tmp_path, BACKGROUND, None, None)
    shown = host.pillow_blend(host.Stored.of(avatar, 0), smooth(256, 256))
    assert (shown == planes_to_bgr(avatar.frames[0], "bt601")).all()


def test_ours_and_the_bound_make_all_frames(tmp_path: Path) -> None:
    one = case(stored(tmp_path / "a", BACKGROUND, BOX, soft_mask(BOX)), 25)
    costs = host.our_way(one, tmp_path / "ours.mp4", one.encoding)
    made = facts(tmp_path / "ours.mp4")
    assert (made["frames"], made["audio_codec"]) == (25, "aac")
    assert all(cost.wall > 0 and cost.cpu > 0 for cost in costs.values())
    pictures = one.pictures()
    cost, count = host.encoder_alone(host.ready(pictures), 25, one.encoding)
    assert cost.cpu > 0
    assert 0 < count < (tmp_path / "ours.mp4").stat().st_size
    assert host.psnr(tmp_path / "ours.mp4", pictures) > 40


def test_faces_are_seeded_and_change(tmp_path: Path) -> None:
    avatar = stored(tmp_path, BACKGROUND, BOX, soft_mask(BOX))
    faces = host.noisy_faces(avatar, [0, 0])
    assert (faces == host.noisy_faces(avatar, [0, 0])).all()
    assert np.abs(faces[0].astype(int) - faces[1]).mean() > 5


def test_cpu_of_children_counts() -> None:
    costs: dict[str, host.Cost] = {}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with host.measured(costs, "child"):
        subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert costs["child"].cpu >= child > 0


def test_a_clip_is_scaled_until_it_covers(tmp_path: Path) -> None:
    file = host.cover(ROOT / "demo/lisa.mp4", (96, 160), tmp_path / "a.mp4")
    assert (facts(file)["size"], facts(file)["frames"]) == ((96, 160), facts(ROOT / "demo/lisa.mp4")["frames"])
    small, large = pictures(1, file)[0], pictures(1)[0]
    assert abs(small[:160].mean() - large[:512, 102:410].mean()) < 2


def test_a_sliding_picture_loses_nothing() -> None:
    still = np.stack([np.arange(48 * 3 // 2 * 64, dtype=np.uint32).astype(np.uint8).reshape(72, 64)] * 3)
    moved = host.sliding(still.copy())
    assert (np.roll(moved[2, :48], -8, axis=1) == still[2, :48]).all()
    assert (moved[0] == still[0]).all()


# -- first frame ------------------------------------------------------------------------------------------------------


def test_a_request_is_watched_to_its_25th_frame_and_cancelled(tmp_path: Path) -> None:
    def lip_sync(request: Any, audio: Path, output: Path, progress: Any, cancelled: threading.Event) -> None:
        for frame in range(1, 1000):
            time.sleep(0.002)
            progress("render", frame, 1000)
            if cancelled.is_set():
                raise Cancelled("")

    first, last = first_frame.wait(SimpleNamespace(lip_sync=lip_sync), tmp_path, tmp_path)  # type: ignore[arg-type]
    assert 0.002 <= first < last
    assert last >= 25 * 0.002


# -- load -------------------------------------------------------------------------------------------------------------


def test_fairness_and_percentiles() -> None:
    found = load.summary([1.0, 2.0, 3.0, 4.0, 10.0])
    assert (found["p50"], found["slowest_over_median"]) == (3.0, 10 / 3)
    assert found["p95"] == pytest.approx(8.8)
    assert found["p99"] == pytest.approx(9.76)


TAKES_MORE = """
import sys, threading, time
print(flush=True)
sys.stdin.readline()
until = time.process_time() + 0.1
while time.process_time() < until:
    pass
held, block = open("/dev/null"), b"1" * 50_000_000
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
sys.stdin.readline()
"""


def test_the_usage_of_a_process() -> None:
    """Of another one, so that nothing of this one's own counts."""
    command = [sys.executable, "-c", TAKES_MORE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        before = load.usage(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        after = load.usage(child.pid)
        child.kill()
    assert after.threads == before.threads + 1
    assert after.files == before.files + 1
    assert after.rss - before.rss >= 0.9 * 50_000_000
    assert after.cpu - before.cpu >= 0.09  # the kernel counts in hundredths


def test_shared_memory_that_is_mapped_is_seen() -> None:
    """By its name, once, however many pieces of it are mapped."""
    file = Path(f"/dev/shm/lipserve_test_{os.getpid()}")
    file.write_bytes(bytes(8192))
    try:
        maps = [np.memmap(file, np.uint8, "r+") for _ in range(2)]
        assert str(file) in load.usage(os.getpid()).regions
        both = load.usage(os.getpid()) + load.usage(os.getpid())
        assert len(both.regions) == len(load.usage(os.getpid()).regions)
        del maps
    finally:
        file.unlink()
    assert str(file) not in load.usage(os.getpid()).regions


def test_a_process_that_has_ended_uses_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert load.usage(child.pid) == load.Usage()


def test_children_belong_to_the_tree() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in load.tree(os.getpid())
        assert load.tritonserver(child.pid) is None
        child.communicate(b"\n")


def test_frames_by_tenths() -> None:
    progress = [(0.0, 0.0), *((float(at), 10.0 * at) for at in range(1, 101))]
    assert load.rates(progress, 10) == pytest.approx([10.0] * 10)
    assert load.rates(progress[:1], 10) == []


@pytest.mark.parametrize("seconds", [1.0, 2.5])
def test_speech_of_a_length(seconds: float) -> None:
    audio = load.spoken(seconds)
    assert (audio[:4], load.frames_of(audio)) == (b"RIFF", int(25 * seconds))


class Stub:
    """A service that renders 2000 frames per second and keeps 40 MB from its 50th second on, in this process."""

    def __init__(self) -> None:
        self.gateway, self.triton, self.done, self.kept = os.getpid(), None, 0.0, np.empty(0)
        self.http = SimpleNamespace()

    def sync(self, audio: bytes) -> tuple[float, int]:
        start = time.monotonic()
        for frame in range(0, load.frames_of(audio), 50):
            if frame == 50 * 25:
                self.kept = np.ones(40_000_000, np.uint8)
            time.sleep(50 / 2000)
            self.done += 50
        return time.monotonic() - start, 1

    def frames(self) -> float:
        return self.done


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(load, "SAMPLE_EVERY", 0.02)
    monkeypatch.setattr(load, "settled", lambda sampler: sampler.now())
    yield Stub()


def test_one_long_request(stub: Any, tmp_path: Path) -> None:
    with load.Sampler(stub) as sampler:
        found = load.long_request(stub, sampler, 1.5)
    assert 30 < found["gateway_mb_grown"] < 80  # counted from half of the way on, since it lasts less than two minutes
    assert found["minutes"] == 1.5
    assert len(found["fps_by_tenths"]) == 10
    sampler.write(tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == len(sampler.samples) + 1 > 10


def test_many_clients(stub: Any) -> None:
    args = SimpleNamespace(seconds=1.0, rounds=2, clients="1,3", requests=5)
    with load.Sampler(stub) as sampler:
        found: dict[str, Any] = load.load(stub, sampler, args)  # type: ignore[arg-type]
    assert [row["clients"] for row in found["levels"]] == [1, 3]
    assert all(row["slowest_over_median"] < 3 and row["fps"] > 0 for row in found["levels"])
    assert found["leaks"]["requests"] == 5
    assert found["leaks"]["gateway_threads"][0] == found["leaks"]["gateway_threads"][1]
