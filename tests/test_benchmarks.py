"""The benchmarks' own arithmetic, and that each of them can be asked for help."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_gpu
import first_frame
import gpu
import host
import load
import numpy as np
import pytest
from musetalk_folder import stored_blend
from samples import ROOT, facts, pictures, smooth
from test_blend import BACKGROUND, BOX, CORNER_BOXES, ODD_BOXES, Box, soft_mask, stored

from export import tensorrt
from export.gate import Reference, gate_batches, repeated_frames
from lipserve import contract
from lipserve.avatar import Avatar
from lipserve.colour import planes_to_bgr
from lipserve.errors import Cancelled
from lipserve.media import Sound, VideoEncoding


@pytest.mark.parametrize("name", ["host", "load", "first_frame", "gpu", "stress", "decoders"])
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


# -- gpu --------------------------------------------------------------------------------------------------------------


def child(found: list[str], seconds: float, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """What comes of a step whose process runs this Python."""
    patch.setattr(gpu, "command", lambda *given: [sys.executable, "-c", "\n".join(found)])
    return gpu.child(gpu.Step("speed", "none", ("unet",), 1), SimpleNamespace(), folder, seconds)


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_every_step_has_a_share_of_the_time_that_is_left() -> None:
    steps, left = gpu.plan(list(gpu.BACKENDS), None), 540.0
    for number, step in enumerate(steps):
        seconds = gpu.share(steps[number:], left)
        assert seconds >= 5, step
        left -= seconds
    assert left == pytest.approx(0)
    assert [step.name for step in gpu.plan(["onnxruntime"], "localhost:8001")] == [
        "weights",
        "reference",
        "graphs encoder+taesd+sd-vae+sd-vae-lower+reference-sums",
        "gate onnxruntime encoder",
        "gate onnxruntime taesd",
        "gate onnxruntime sd-vae",
        "gate onnxruntime sd-vae-lower",
        "gate onnxruntime reference-sums",
        "graphs unet",
        "gate onnxruntime unet",
        "speed onnxruntime unet",
        "speed onnxruntime sd-vae",
        "speed onnxruntime sd-vae-lower",
        "speed onnxruntime taesd",
        "served",
        "ensemble",
    ]


def test_a_step_that_takes_too_long_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = ["import subprocess, time", "print('{\"ms\": 1}', flush=True)"]
    slow += ["print(subprocess.Popen(['sleep', '60']).pid, flush=True)", "time.sleep(60)"]
    started = time.monotonic()
    lines, why = child(slow, 2, tmp_path, monkeypatch)
    assert (lines, why) == ([{"ms": 1}], "out of time after 2 s")
    assert time.monotonic() - started < 10
    grandchild = int((tmp_path / "out").read_text().split()[-1])
    while alive(grandchild):
        assert time.monotonic() - started < 10
        time.sleep(0.02)


def test_a_step_that_fails_says_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = ["print('RESULT {\"fps\": 2.5}', flush=True)", "raise SystemExit('no CUDA provider')"]
    assert child(fails, 20, tmp_path, monkeypatch) == ([{"fps": 2.5}], "no CUDA provider")
    assert child(["import os", "os._exit(7)"], 20, tmp_path, monkeypatch) == ([], "ended with 7")
    assert child(["import os", "os.kill(os.getpid(), 11)"], 20, tmp_path, monkeypatch) == ([], "ended by signal 11")


def test_what_a_step_found_is_printed_and_what_is_missing_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"stage": "unet", "batch": 1, "ms": 12.34567}, {"stage": "unet", "left_out": [2, 4]}]
    lines += [{"stage": "taesd", "failed": "at batch 32: RuntimeError: out of memory"}]
    monkeypatch.setattr(gpu, "child", lambda *given: (lines, ""))
    (tmp_path / "log").write_text("its last words\n")
    found = gpu.Found({}, [], {})
    gpu.run_step(gpu.Step("speed", "tensorrt", ("unet",), 1), SimpleNamespace(), tmp_path, 30, found)
    reasons = "taesd at batch 32: RuntimeError: out of memory; no time for unet at [2, 4]"
    assert found.missing == {"speed tensorrt unet": reasons}
    assert found.of("speed") == [{"kind": "speed", "backend": "tensorrt", "stage": "unet", "batch": 1, "ms": 12.34567}]
    assert capsys.readouterr().out == (
        f"\nspeed tensorrt unet: 0 s of 30; {reasons}\n  stage unet, batch 1, ms 12.35\n  | its last words\n"
    )


def test_a_triton_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "musetalk-v15").mkdir()
    reference(4).save(tmp_path / "musetalk-v15")
    args = SimpleNamespace(url="127.0.0.1:1", metrics=None, profile="musetalk-v15", models_dir=tmp_path)
    found = gpu.Found({}, [], {})
    gpu.run_step(gpu.Step("served", "", (), 1), args, tmp_path, 60, found)
    assert found.missing["served"].startswith("refused: Triton at 127.0.0.1:1: unet: ")
    assert "refused: Triton at 127.0.0.1:1: unet: " in capsys.readouterr().out
    assert gpu.command(gpu.Step("ensemble", "", (), 1), args, tmp_path, 9)[1:] == [
        str(ROOT / "benchmarks/ensemble.py"),
        *("--url", "127.0.0.1:1", "--batch-size", "8", "--concurrency", "1,2,4"),
    ]


def reference(frames: int) -> Reference:
    rng = np.random.default_rng(1)
    tensors = (contract.CROPS, contract.AUDIO_FEATURES, contract.FACE_LATENTS, contract.LATENTS, contract.FACES)
    return Reference(*((10 * rng.standard_normal((frames, *t.shape))).astype(t.dtype) for t in tensors))


class Spoilt:
    """A runner whose answer is the reference's, but for one frame that is `error` off everywhere."""

    def __init__(self, known: Reference, frame: int, error: float) -> None:
        self.known, self.frame, self.error = known, frame, error

    def put(self, feeds: dict[str, Any]) -> None:
        self.n = len(feeds["latents"])
        assert (feeds["latents"] == self.known.latents[repeated_frames(4, self.n)]).all()

    def run(self) -> None: ...

    def get(self) -> Any:
        faces = self.known.faces[repeated_frames(4, self.n)]
        if self.frame < self.n:
            faces[self.frame] = np.where(faces[self.frame] < 128, faces[self.frame] + self.error, faces[self.frame])
        return faces.astype(np.uint8)


def test_every_frame_of_a_batch_is_held() -> None:
    known = reference(4)
    for batch in gate_batches(contract.VAE_DECODER):
        row = gpu.held(Spoilt(known, 99, 0), contract.VAE_DECODER, known, batch)
        assert row == {
            "batch": batch,
            "max_error": 0.0,
            "mean_error": 0.0,
            "bound": 8.0,
            "mean_bound": 2.0,
            "refused": False,
        }
    row = gpu.held(Spoilt(known, 13, 9), contract.VAE_DECODER, known, 16)
    dark = (known.faces[repeated_frames(4, 16)[13]] < 128).mean()
    assert (row["max_error"], row["mean_error"], row["refused"]) == (9.0, pytest.approx(9 * dark), True)
    assert not gpu.held(Spoilt(known, 13, 9), contract.VAE_DECODER, known, 8)["refused"]


def test_what_is_no_number_is_refused_and_json_can_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = reference(4)
    latents = known.latents.copy()
    latents[2, 0, 0, 0] = np.nan
    answer = SimpleNamespace(put=lambda feeds: None, run=lambda: None, get=lambda: latents)
    row = gpu.held(answer, contract.UNET, known, 4)  # type: ignore[arg-type]
    assert (row["max_error"], row["mean_error"], row["refused"]) == ("nan", "nan", True)


def test_an_engine_is_held_at_every_batch_and_its_memory_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a stand-in of CUDA and TensorRT, whose plan doubles half of the face latents; one reference frame differs."""
    card = fake_gpu.Gpu().install(monkeypatch, fake_gpu.nvml())
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", fake_gpu.tensorrt(card))
    monkeypatch.setattr(tensorrt, "build", lambda *given: fake_gpu.plan([(1, 8, 16)], scale=2))
    monkeypatch.setattr(gpu, "MIXED_SECONDS", 0.05)
    known = reference(4)
    latents = known.face_latents[:, 4:] * np.float16(2)
    latents[1] += np.float16(0.25)  # the reference's second frame is not what the plan makes
    folder = gpu.reference_folder(tmp_path, "unet")
    folder.mkdir()
    replace(known, latents=latents).save(folder)
    (tmp_path / "unet.onnx").touch()
    gpu.gate("tensorrt", tmp_path, "unet", "cuda", time.monotonic() + 60)
    *rows, mixed = map(json.loads, capsys.readouterr().out.splitlines())
    frame = 2 * (50 * 384 + 8 * 32 * 32 + 4 * 32 * 32)  # bytes of inputs and output
    assert [(row["batch"], row["gb"]) for row in rows] == [(n, n * frame / 1e9) for n in (16, 8, 5, 4, 1)]
    assert [row["max_error"] for row in rows] == pytest.approx([0.25] * 4 + [0.0], abs=0.02)
    assert [row["refused"] for row in rows] == [True] * 4 + [False]  # by the mean of one frame
    assert mixed["mixed_batches"] > 0 and mixed["gb"] * 1e9 % frame == pytest.approx(0, abs=1)
    assert [path.suffix for path in (tmp_path / "engines").iterdir()] == [".plan"]
    assert card.memory == {}


def test_rates_and_ensembles_by_hand() -> None:
    rows = [
        {"backend": "onnxruntime", "stage": "taesd", "batch": 8, "ms": 10.0, "gb": 0.5},
        {"backend": "onnxruntime", "stage": "unet", "batch": 8, "ms": 30.0, "gb": 2.0},
        {"backend": "torch eager", "stage": "unet", "batch": 1, "ms": 20.0, "gb": 1.7},
    ]
    found = gpu.with_rates(rows, {"unet": 178.0, "sd-vae": 622.0, "taesd": 35.0}, 100)
    assert [(row["backend"], row["stage"], row["batch"]) for row in found] == [
        ("torch eager", "unet", 1),
        ("onnxruntime", "unet", 8),
        ("onnxruntime", "taesd", 8),
        ("onnxruntime", "unet + taesd", 8),
    ]
    both = found[-1]
    assert (both["ms"], both["gb"], both["fps"]) == (40.0, 2.5, 200.0)
    assert (both["tflops"], both["share"]) == (pytest.approx(42.6), pytest.approx(0.426))
    assert gpu.with_rates(rows, {"unet": 1.0, "taesd": 1.0}, None)[0]["share"] is None


def test_the_card_is_described_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.Gpu(used=2 << 30).install(monkeypatch, fake_gpu.nvml(processes=((7, 10**9),)))
    found = gpu.describe("cuda")
    assert (found["gpu"], found["peak"], found["ecc"]) == ("NVIDIA RTX A5000", 111, True)
    assert found["said"].startswith(
        "NVIDIA driver 560.35.03, CUDA 12.6; NVIDIA RTX A5000, compute capability 8.6\n"
        "22.0 of 24.1 GB free, ECC on, other processes: 1 with 1.0 GB\npython 3."
    )
    fake_gpu.Gpu(cuda=0).install(monkeypatch)
    assert gpu.describe("cuda")["unavailable"] == (
        "no GPU can be used: there is no NVIDIA driver; driver 560 or later is needed"
    )


def test_without_a_gpu_there_is_nothing_to_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "child", lambda *given: ([{"unavailable": "no GPU can be used: …"}], ""))
    args = SimpleNamespace(url=None)
    assert gpu.orchestrate(args, tmp_path, time.monotonic() + 60) == 2  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "no GPU can be used: …\n")


@pytest.mark.parametrize(("refused", "code"), [(False, 0), (True, 1)])
def test_the_whole_way_from_the_card_to_the_result(
    refused: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On steps that find at once what is written here; compiled torch fails."""

    def child(step: gpu.Step, args: Any, folder: Path, seconds: float) -> Any:
        (folder / "log").write_text("no compiler\n")
        if step.kind == "card":
            return [{"gpu": "NVIDIA RTX A5000", "peak": 111, "said": "driver and card"}], ""
        if step.kind == "weights":
            (folder / gpu.OPERATIONS).write_text(
                '{"unet": 178.0, "sd-vae": 622.0, "sd-vae-lower": 447.0, "taesd": 35.0}'
            )
        if step.kind == "gate":
            row = {"stage": step.stages[0], "batch": 5, "max_error": 1.0, "mean_error": 0.00123456, "bound": 8.0}
            row |= {"mean_bound": 2.0, "refused": refused, "gb": 0.5}
            return [row, {"stage": step.stages[0], "mixed_batches": 70, "gb": 0.75}], ""
        if step.backend == "torch.compile":
            return [], "no compiler"
        if step.kind == "speed":
            return [{"stage": stage, "batch": 8, "ms": 20.0, "gb": 1.25} for stage in step.stages], ""
        return [], ""

    monkeypatch.setattr(gpu, "child", child)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name == "tensorrt_bindings" else name)
    args = SimpleNamespace(url=None)
    assert gpu.orchestrate(args, tmp_path, time.monotonic() + 600) == code  # type: ignore[arg-type]
    said = capsys.readouterr().out
    word = "**refused**" if refused else ""
    assert said.startswith("driver and card\n")
    assert f"\n| onnxruntime | taesd | 5 | 1 | 8 | 0.001235 | 2 | 0.50 | {word} |\n" in said
    assert "\n| onnxruntime | encoder | 70 | 0.75 |\n" in said
    assert "\n| torch eager | unet + sd-vae | 8 | 40.00 | 200.0 | 160.0 | 144% | 2.50 |\n" in said
    assert (
        "\n| tensorrt | is not installed |\n| speed torch.compile unet+sd-vae+sd-vae-lower+taesd | no compiler |\n"
        in said
    )
    result = json.loads(said.splitlines()[-1].removeprefix("RESULT "))
    assert [row["stage"] for row in result["gates"]] == [
        "encoder",
        "taesd",
        "sd-vae",
        "sd-vae-lower",
        "reference-sums",
        "unet",
    ]
    assert (len(result["memory"]), len(result["speed"]), result["ensemble"]) == (6, 14, [])
    assert result["gates"][0]["mean_error"] == 0.001235


def test_a_card_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    """Weights, references, a graph and its gate, in processes of their own; what was not written is named."""
    pytest.importorskip("torch")
    args = SimpleNamespace(batches="1", rehearse=True)
    steps = (
        ("weights", "", ()),
        ("reference", "", ()),
        ("graphs", "", ("taesd",)),
        ("gate", "onnxruntime", ("taesd",)),
    )
    weights, references, graph, gate = (gpu.child(gpu.Step(*step, 1), args, tmp_path, 120) for step in steps)  # type: ignore[arg-type]
    assert weights == ([], "")
    assert [(row["stage"], row["torch"]) for row in references[0]] == [
        (s, "float32 on cpu") for s in ("sd-vae", "sd-vae-lower", "taesd")
    ]
    assert all(row["deviation"] > 10 for row in references[0])  # flat faces prove little
    assert [(row["stage"], row.get("failed")) for row in graph[0]] == [("taesd", None)]
    rows, why = gate
    assert (why, [row.get("batch") for row in rows]) == ("", [16, 8, 5, 4, 1, None])
    assert all(0 < row["mean_error"] < row["max_error"] <= 2 and not row["refused"] for row in rows[:-1])
    assert rows[-1]["mixed_batches"] > 0
    rows, why = gpu.child(gpu.Step("speed", "onnxruntime", ("unet",), 1), args, tmp_path, 60)  # type: ignore[arg-type]
    assert (rows, why) == ([], "unet.onnx was not written: see the step that writes the graphs")
    rows, why = gpu.child(gpu.Step("speed", "onnxruntime", ("taesd",), 1), args, tmp_path, 60)  # type: ignore[arg-type]
    assert (why, [row["batch"] for row in rows]) == ("", [1])


def test_eager_torch_is_plain_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 1), torch.nn.GroupNorm(4, 8))
    monkeypatch.setattr(gpu, "stages", lambda folder: {"sd-vae": SimpleNamespace(module=network)})
    run = gpu.Eager(tmp_path, "sd-vae", "cpu")
    assert {tensor.dtype for tensor in run.module.state_dict().values()} == {torch.float16}
    run.put({"latents": np.zeros((2, 4, 8, 8), np.float16)})
    run.run()
    assert (run.get().shape, run.get().dtype) == ((2, 8, 8, 8), np.float16)
