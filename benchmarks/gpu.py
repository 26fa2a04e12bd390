"""What a card does with the networks: are its answers right, how much memory do they take, how fast are they.

    pip install -e '.[export,tensorrt]' \\
        --extra-index-url https://pypi.nvidia.com tensorrt-cu12-bindings==10.5.0 tensorrt-cu12-libs==10.5.0
    pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu
    python benchmarks/gpu.py --folder DIR [--minutes 9] [--batches 1,2,4,8,16] [--url HOST:PORT]

First the card: driver, ECC, free memory. Then the gates: each served graph, through ONNX Runtime's CUDA provider and
through TensorRT, is held to float32 at batches of 1, 4, 5, 8 and 16, every frame of them. Then the speed of UNet,
both decoders, and the two one after another: eager and compiled torch in plain FP16, as the reference runs it; ONNX
Runtime and TensorRT with the exported graphs and their float32 norms, the engine with one optimisation profile. With
--url a Triton that serves --profile is held to its reference (export.served) and timed (benchmarks/ensemble.py).

Random weights of MuseTalk's own architecture, since speed does not ask what they say. Each step runs in a process of
its own and has a share of the time that is left; what it had measured by then counts and is printed when it ends, and
what is missing says why. With --folder weights, graphs, engines, timing and compiler caches are kept, so that another
run of the same command goes on from there. torch with CUDA is needed by eager and compiled torch alone.

Prints tables in Markdown, and RESULT with JSON as the last line. Exit code 2 without a GPU, 1 where a gate refused.
`--rehearse` tries the script itself: small networks on the CPU.
"""

import argparse
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.gate import REFERENCE, Reference, bounds_of, gate_batches, measured
from lipserve import contract

Feeds = dict[str, NDArray[np.generic]]

STAGES = ("unet", "sd-vae", "sd-vae-lower", "taesd")  # what is timed
ENCODER = "encoder"  # is held to its bounds as well; it runs once per avatar
SUMS = "reference-sums"  # what the lower decoder takes of an avatar frame
MODELS = {
    "unet": contract.UNET,
    "sd-vae": contract.VAE_DECODER,
    "sd-vae-lower": contract.LOWER_DECODER,
    "taesd": contract.VAE_DECODER,
    ENCODER: contract.VAE_ENCODER,
    SUMS: contract.REFERENCE_SUMS,
}
BACKENDS = ("torch eager", "onnxruntime", "tensorrt", "torch.compile")
WARM_UP = 3  # runs that do not count
MEASURED_SECONDS = 0.7  # of each stage and batch, at least three runs
MIXED_SECONDS = 4.0  # of batches of all sizes, after which the memory is looked at again
CARD_SECONDS = 60.0  # until the driver must have answered
REPORT_SECONDS = 2.0  # that the last step leaves
SPARE = 0.05  # of a step's time, in which it ends by itself before it is ended
PROFILE = "musetalk-v15"
ENGINE_PROFILE = (1, 8)  # and the model's largest batch; production's three for the UNet take three times as long
COMPILED_FIRST = (8, 1, 16)  # batches: each is compiled anew, and there may be no time for all
OPERATIONS = "operations.json"  # in the folder: GFLOP of a frame by stage, written last of all weights
FRAMES = 4  # of the reference; larger batches repeat them
LOG_LINES = 6  # of a step that failed, shown

# Dense FP16 tensor rate with FP32 sums, TFLOP/s, from NVIDIA's data sheets: half of the figure "with sparsity". The
# first name that is part of the device's counts.
PEAKS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 6000 Ada": 364,
    "RTX A6000": 155,
    "RTX A5000": 111,
    "RTX A4500": 95,
    "RTX A4000": 77,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 4080": 97,
    "RTX 4070": 58,
    "RTX 3090": 71,
    "RTX 3080": 60,
    "A40": 150,
    "A10": 125,
    "V100": 125,
    "T4": 65,
}


@dataclass(frozen=True)
class Step:
    """What one process does. share: of the time, against the other steps'; what one leaves over goes to those after."""

    kind: str  # weights, reference, graphs, gate, speed, or a command of its own
    backend: str
    stages: tuple[str, ...]
    share: float

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.kind, self.backend, "+".join(self.stages))))


def plan(backends: list[str], url: str | None) -> list[Step]:
    """All steps in their order: what decides first, cheap ones before dear ones."""
    small = (ENCODER, "taesd", "sd-vae", "sd-vae-lower", SUMS)  # in this order: the VAE's FP16 takes its float32 along
    steps = [
        Step("weights", "", (), 10),  # everything else needs them
        Step("reference", "", (), 8),
        Step("graphs", "", small, 10),
        *(Step("gate", "onnxruntime", (stage,), 2) for stage in small),
        Step("graphs", "", ("unet",), 12),
        Step("gate", "onnxruntime", ("unet",), 2),
        Step("speed", "torch eager", STAGES, 4),
        *(Step("speed", "onnxruntime", (stage,), 1.5) for stage in STAGES),
        *(Step("gate", "tensorrt", (stage,), 5) for stage in (*small, "unet")),
        *(Step("speed", "tensorrt", (stage,), 1) for stage in STAGES),
        Step("speed", "torch.compile", STAGES, 6),
    ]
    steps = [step for step in steps if step.backend in ("", *backends)]
    return steps if url is None else [*steps, Step("served", "", (), 3), Step("ensemble", "", (), 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop, at the latest")
    parser.add_argument("--batches", default="1,2,4,8,16", help="to be timed; the gates have their own")
    parser.add_argument("--rehearse", action="store_true", help="small networks on the CPU")
    parser.add_argument("--folder", type=Path, help="keeps what is made for another run; otherwise it is removed")
    parser.add_argument("--url", help="gRPC address of a Triton to hold and to time")
    parser.add_argument("--metrics", help="metrics address of that Triton")
    parser.add_argument("--profile", default=PROFILE, help="that this Triton serves")
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="has the reference of this profile")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--backend", default="", help=argparse.SUPPRESS)
    parser.add_argument("--stages", default="", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        be_child(args)
        return
    ends = time.monotonic() + 60 * args.minutes - REPORT_SECONDS
    folder = args.folder or Path(tempfile.mkdtemp(prefix="lipserve-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        raise SystemExit(orchestrate(args, folder, ends))
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


# -- the parent -------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """All that was measured, as it comes."""

    machine: dict[str, Any]
    rows: list[dict[str, Any]]
    missing: dict[str, str]  # by the step's name

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == kind]


def orchestrate(args: argparse.Namespace, folder: Path, ends: float) -> int:
    """Run all steps, print what they find, return the exit code."""
    seconds = min(CARD_SECONDS, ends - time.monotonic())
    described, why = child(Step("card", "", (), 0), args, folder, seconds)
    if not described or "unavailable" in described[0]:
        print(described[0]["unavailable"] if described else f"The card is unknown: {why}", file=sys.stderr)
        return 2
    machine = described[0]
    print(machine.pop("said"), flush=True)
    installed = {"onnxruntime": find_spec("onnxruntime"), "tensorrt": find_spec("tensorrt_bindings")}
    found = Found(machine, [], {name: "is not installed" for name, spec in installed.items() if spec is None})
    steps = plan([backend for backend in BACKENDS if backend not in found.missing], args.url)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for number, step in enumerate(steps):
            seconds = share(steps[number:], ends - time.monotonic())
            if seconds <= 0:
                found.missing[step.name] = "no time"
                continue
            run_step(step, args, folder, seconds, found)
            if not (folder / OPERATIONS).is_file():
                print("Without networks there is nothing to measure.", file=sys.stderr)
                return 1
    except KeyboardInterrupt:
        found.missing["the rest"] = "interrupted"
    if not (folder / OPERATIONS).is_file():
        return 1
    report(found, json.loads((folder / OPERATIONS).read_text()))
    return 1 if "served" in found.missing or any(row.get("refused", False) for row in found.rows) else 0


def share(steps: list[Step], left: float) -> float:
    """The seconds that the first of these steps may take of those that are left for all of them."""
    return left * steps[0].share / sum(step.share for step in steps)


def run_step(step: Step, args: argparse.Namespace, folder: Path, seconds: float, found: Found) -> None:
    """Run a step and print what it found."""
    started = time.monotonic()
    lines, why = child(step, args, folder, seconds)
    rows = [{"kind": step.kind, "backend": step.backend, **line} for line in lines]
    failed = [f"{row.get('stage', '')} {row['failed']}".strip() for row in rows if "failed" in row]
    left_out = [f"no time for {row['stage']} at {row['left_out']}" for row in rows if "left_out" in row]
    if reasons := "; ".join(filter(None, (why, *failed, *left_out))):
        found.missing[step.name] = reasons
    rows = [row for row in rows if "failed" not in row and "left_out" not in row]
    found.rows += rows
    print(f"\n{step.name}: {time.monotonic() - started:.0f} s of {seconds:.0f}{f'; {reasons}' if reasons else ''}")
    for row in rows:
        print("  " + ", ".join(f"{key} {short(value)}" for key, value in row.items() if key not in ("kind", "backend")))
    if step.kind == "served":
        print((folder / "out").read_text())
    if why or failed:
        print("\n".join(f"  | {line}" for line in log_lines(folder / "log")[-LOG_LINES:]))
    sys.stdout.flush()


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def child(step: Step, args: argparse.Namespace, folder: Path, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The JSON lines that a step's process printed, and why it did not print all of them."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str((folder / "inductor").resolve()), "COLUMNS": "1000"}
    log = folder / "log"
    with log.open("wb") as errors, (folder / "out").open("w+b") as out:
        started = subprocess.Popen(
            command(step, args, folder, seconds), stdout=out, stderr=errors, env=environment, start_new_session=True
        )
        try:
            code = started.wait(seconds)
            words = log_lines(log) or log_lines(folder / "out") or [f"ended with {code}"]
            why = f"ended by signal {-code}" if code < 0 else words[-1] if code else ""
        except subprocess.TimeoutExpired:
            why = f"out of time after {seconds:.0f} s"
        finally:
            end(started)
        out.seek(0)
        printed = out.read().decode(errors="replace").splitlines()
    return [json.loads(line) for line in map(bare, printed) if line.startswith("{")], why


def command(step: Step, args: argparse.Namespace, folder: Path, seconds: float) -> list[str]:
    if step.kind == "served":
        served = ["-m", "export.served", "--url", args.url, "--profile", args.profile]
        return [sys.executable, *served, "--models-dir", str(args.models_dir)]
    if step.kind == "ensemble":
        timed = [str(Path(__file__).with_name("ensemble.py")), "--url", args.url, "--batch-size", "8"]
        return [
            sys.executable,
            *timed,
            "--concurrency",
            "1,2,4",
            *(["--metrics", args.metrics] if args.metrics else []),
        ]
    words = ["--child", step.kind, "--backend", step.backend, "--stages", ",".join(step.stages)]
    words += ["--folder", str(folder), "--batches", args.batches, "--until", str(time.monotonic() + seconds)]
    return [sys.executable, __file__, *words, *(["--rehearse"] if args.rehearse else [])]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a step with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def bare(line: str) -> str:
    """The JSON of a line; another benchmark's begins with RESULT."""
    return line.removeprefix("RESULT ")


def log_lines(log: Path) -> list[str]:
    return [line[:300] for line in log.read_text(errors="replace").splitlines() if line.strip()]


# -- in a child -------------------------------------------------------------------------------------------------------


def be_child(args: argparse.Namespace) -> None:
    now, device = time.monotonic(), "cpu" if args.rehearse else "cuda"
    until = args.until - SPARE * max(0.0, args.until - now)
    stages = [stage for stage in args.stages.split(",") if stage]
    batches = [int(batch) for batch in args.batches.split(",")]
    if args.child == "card":
        say(**describe(device))
    elif args.child == "weights":
        write_weights(args.folder, "narrow" if args.rehearse else "full")
    elif args.child == "reference":
        write_references(args.folder, device)
    elif args.child == "graphs":
        write_graphs(args.folder, stages)
    elif args.child == "gate":
        for stage in stages:
            gate(args.backend, args.folder, stage, device, until)
    else:
        measure(args.backend, args.folder, stages, batches, device, until)


def say(**row: Any) -> None:
    """One finding, for the parent."""
    print(json.dumps(row), flush=True)


def describe(device: str) -> dict[str, Any]:
    """The card and what runs on it; `said` are lines to print, `unavailable` says why there is no card."""
    from export import cuda
    from export.errors import GpuFailed, GpuUnavailable

    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), "peak": None, **versions()}
    software = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if device == "cpu":
        model = f"none, {platform.machine()} CPU"
        return found | {"gpu": model, "said": f"{model}; {software}"}
    try:
        card = cuda.card()
    except (GpuUnavailable, GpuFailed) as error:
        return found | by_torch(software, error)
    figures = {"driver": card.driver.version, "cuda": card.driver.cuda, "ecc": card.ecc}
    figures |= {"total_gb": card.total / 1e9, "free_gb": card.free / 1e9, "others": card.others}
    return found | {"gpu": card.name, "peak": peak(card.name), **figures, "said": f"{card}\n{software}"}


def by_torch(software: str, error: Exception) -> dict[str, Any]:
    """Without cuda-bindings the name and the memory, as torch has them; nothing else stands in for a driver."""
    why = {"unavailable": str(error)}
    if not isinstance(error.__cause__, ImportError) or find_spec("torch") is None:
        return why
    import torch

    if not torch.cuda.is_available():
        return why
    name, (free, total) = torch.cuda.get_device_name(), torch.cuda.mem_get_info()
    memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    said = (
        f"{error}. What follows is torch's: driver, ECC and other processes are unknown\n{name}, {memory}\n{software}"
    )
    return {"gpu": name, "peak": peak(name), "total_gb": total / 1e9, "free_gb": free / 1e9, "said": said}


def peak(name: str) -> int | None:
    return next((rate for part, rate in PEAKS.items() if part in name), None)


def versions() -> dict[str, str]:
    """Of what is compared, by the name of its package; empty where it is not installed."""
    found = {}
    for package in ("torch", "onnxruntime-gpu", "onnxruntime", "tensorrt-cu12-bindings", "diffusers", "onnx"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def write_weights(folder: Path, size: str) -> None:
    """Weights, and the operations of a frame in GFLOP."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from export import musetalk

    if (folder / OPERATIONS).is_file():
        return
    musetalk.write_random_weights(folder, 0, size, PROFILE)
    operations = {}
    for stage, graph in stages(folder).items():
        module = graph.module.to("meta")
        feeds = [torch.zeros(2, *t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in graph.model.inputs]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*feeds)
        operations[stage] = counter.get_total_flops() / 2e9
    (folder / OPERATIONS).write_text(json.dumps(operations))


def write_references(folder: Path, device: str) -> None:
    """What float32 makes of drawn faces, and of noise in the place of speech: torch, a frame at a time. On the GPU if
    torch can, since a few cores need minutes for it; without TF32, which would not be float32."""
    import torch

    if (reference_folder(folder, STAGES[-1]) / REFERENCE).is_file():
        return
    device = device if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    started, found = time.monotonic(), stages(folder)
    noise = np.random.default_rng(0).standard_normal((FRAMES, *contract.AUDIO_FEATURES.shape)).astype(np.float16)
    pictures = faces()

    def computed(stage: str, *inputs: torch.Tensor) -> torch.Tensor:
        module = found[stage].module.to(device)
        with torch.inference_mode():
            return torch.cat([module(*(t[i : i + 1].to(device) for t in inputs)).cpu() for i in range(FRAMES)])

    face_latents = computed(ENCODER, torch.from_numpy(pictures))
    latents = computed("unet", torch.from_numpy(noise), face_latents)
    sums = computed(SUMS, face_latents[:, contract.LATENT_CHANNELS :])
    for stage in STAGES[1:]:
        lower = MODELS[stage] is contract.LOWER_DECODER
        drawn = computed(stage, latents, *([sums] if lower else []))
        made = (pictures, noise, face_latents.numpy(), latents.numpy(), drawn.numpy())
        kept = Reference(*made, sums.numpy() if lower else None)
        reference_folder(folder, stage).mkdir(exist_ok=True)
        kept.save(reference_folder(folder, stage))
        say(
            stage=stage,
            torch=f"float32 on {device}",
            seconds=time.monotonic() - started,
            deviation=float(drawn.float().std()),
        )


def reference_folder(folder: Path, stage: str) -> Path:
    """Encoder and UNet are in all references; what the decoders draw differs, and one has the sums that it takes."""
    kept = "sd-vae-lower" if stage == SUMS else stage if stage in STAGES[1:] else STAGES[1]
    return folder / f"reference-{kept}"


def faces() -> NDArray[np.uint8]:
    """Drawn people: uint8 (4, 256, 256, 3), BGR."""
    from export.portrait import BUNDLED, Mouth, Portrait

    people = [Portrait(person, contract.FACE_SIZE) for person in BUNDLED.values()]
    opened = np.linspace(0, 1, FRAMES)
    return np.stack([people[i % len(people)].render(mouth=Mouth(open=gap)) for i, gap in enumerate(opened)])


def write_graphs(folder: Path, names: list[str]) -> None:
    """Graphs as production has them, each there whole or not at all: the encoder's in float32, the others' in FP16."""
    for stage in names:
        path = folder / f"{stage}.onnx"
        if path.is_file():
            continue
        started = time.monotonic()
        try:
            write_one(folder, stage, path)
        except Exception as error:  # whatever another torch's exporter fails with is this graph's alone
            say(stage=stage, failed=f"{type(error).__name__}: {first_line(error)}")
        else:
            say(stage=stage, seconds=time.monotonic() - started)


def write_one(folder: Path, stage: str, path: Path) -> None:
    from export.arena import write_for_onnxruntime
    from export.bundle import data_file
    from export.half import halve
    from export.onnx_graphs import write_graph
    from export.plain import fold_timestep, write_attention_out

    graph, fresh = stages(folder).pop(stage), folder / "fresh" / path.name
    fresh.parent.mkdir(exist_ok=True)
    if stage == "unet":
        fold_timestep(graph.module.unet)
    write_attention_out(graph.module)
    if stage != ENCODER:
        halve(graph.module)
    write_graph(graph, fresh, "random", folded=True)
    write_for_onnxruntime(fresh, served(path))  # as the target onnx has it
    if data_file(fresh).is_file():
        data_file(fresh).replace(data_file(path))
    fresh.replace(path)


def served(path: Path) -> Path:
    return path.with_name(f"{path.stem}-served.onnx")


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


@cache
def stages(folder: Path) -> dict[str, Any]:
    """What is measured, by stage: a graph with its module, float32. Read once; who takes one out has it alone."""
    from export import musetalk
    from export.lower import LowerDecoder, NormSums
    from export.modules import FaceDecoder, FaceEncoder, UNetStep
    from export.onnx_graphs import Graph

    networks = musetalk.load(folder, PROFILE, "taesd")
    assert networks.decoder is not None
    modules = {
        "unet": UNetStep(networks.unet),
        "sd-vae": FaceDecoder(networks.vae),
        "sd-vae-lower": LowerDecoder(networks.vae),
        "taesd": FaceDecoder(networks.decoder),
        ENCODER: FaceEncoder(networks.vae),
        SUMS: NormSums(networks.vae),
    }
    return {stage: Graph(MODELS[stage], module) for stage, module in modules.items()}


# -- gates ------------------------------------------------------------------------------------------------------------


def gate(backend: str, folder: Path, stage: str, device: str, until: float) -> None:
    """Say how far a graph is from float32 at every batch, the largest first as it is warmed when it serves, and what
    memory it holds then and after a while of mixed batches."""
    reference = Reference.load(reference_folder(folder, stage))
    before = free(device)
    run = opened(backend, folder, stage, device)
    batches = sorted(gate_batches(MODELS[stage]), reverse=True)
    for place, batch in enumerate(batches):
        if place and time.monotonic() > until:
            say(stage=stage, left_out=batches[place:])
            break
        try:
            row = held(run, MODELS[stage], reference, batch)
        except Exception as error:  # no memory for a batch says nothing of a smaller one
            say(stage=stage, failed=f"at batch {batch}: {type(error).__name__}: {first_line(error)}")
        else:
            say(stage=stage, **row, gb=(before - free(device)) / 1e9)
    sizes, runs = np.random.default_rng(0), 0
    until = min(until, time.monotonic() + MIXED_SECONDS)
    while time.monotonic() < until:
        frames = reference.repeated(int(sizes.integers(1, batches[0] + 1)))
        run.put(frames.feeds(MODELS[stage]))
        run.run()
        runs += 1
    say(stage=stage, mixed_batches=runs, gb=(before - free(device)) / 1e9)


def held(run: "Runner", model: contract.Model, reference: Reference, batch: int) -> dict[str, Any]:
    """Of a batch's frames the largest error and the largest mean error against the reference's, and the bounds."""
    frames = reference.repeated(batch)
    run.put(frames.feeds(model))
    run.run()
    (tensor,), expected = model.outputs, frames.output(model)
    check = measured(model.name, tensor, expected, run.get(), bounds_of(model, expected))
    found = {"max_error": number(check.maximum), "mean_error": number(check.mean)}
    found |= {"bound": check.bound, "mean_bound": check.mean_bound}
    return {"batch": batch, **found, "refused": not check.passed}


def number(value: float) -> float | str:
    """JSON knows no infinity, and no number that is none."""
    return value if np.isfinite(value) else str(value)


# -- speed ------------------------------------------------------------------------------------------------------------


def measure(backend: str, folder: Path, names: list[str], batches: list[int], device: str, until: float) -> None:
    """Say for every stage and batch: median milliseconds, and GPU memory of the process in GB.

    Every stage has its part of the time; batches that it has none left for are said to be left out.
    """
    before = free(device)
    if backend == "torch.compile":
        batches = sorted(batches, key=lambda batch: (*COMPILED_FIRST, batch).index(batch))
    for place, stage in enumerate(names):
        now = time.monotonic()
        try:
            measure_stage(backend, folder, stage, batches, device, now + (until - now) / (len(names) - place), before)
        except Exception as error:  # is this stage's alone
            say(stage=stage, failed=f"{type(error).__name__}: {first_line(error)}")
        if "torch" in backend and device == "cuda":
            import torch

            torch.cuda.empty_cache()


def measure_stage(
    backend: str, folder: Path, stage: str, batches: list[int], device: str, until: float, before: int
) -> None:
    run = opened(backend, folder, stage, device)
    for place, batch in enumerate(batches):
        if place and time.monotonic() > until:
            say(stage=stage, left_out=batches[place:])
            break
        milliseconds = 1000 * timed(run, MODELS[stage], batch)
        say(stage=stage, batch=batch, ms=milliseconds, gb=(before - free(device)) / 1e9)


def timed(run: "Runner", model: contract.Model, batch: int) -> float:
    """Median seconds of a batch that is on the device already."""
    rng = np.random.default_rng(batch)
    run.put({t.name: rng.standard_normal((batch, *t.shape)).astype(t.dtype) for t in model.inputs})
    times: list[float] = []
    until = time.perf_counter() + 1e9
    while len(times) < WARM_UP + 3 or time.perf_counter() < until:
        if len(times) == WARM_UP:
            until = time.perf_counter() + MEASURED_SECONDS
        started = time.perf_counter()
        run.run()
        times.append(time.perf_counter() - started)
    return float(np.median(times[WARM_UP:]))


# -- backends ---------------------------------------------------------------------------------------------------------


class Runner(Protocol):
    """A stage on a device: inputs go there, a run returns when the output is there, and the output comes back."""

    def put(self, feeds: Feeds) -> None: ...
    def run(self) -> None: ...
    def get(self) -> NDArray[np.generic]: ...


def opened(backend: str, folder: Path, stage: str, device: str) -> Runner:
    opens: dict[str, Callable[[Path, str, str], Runner]] = {
        "torch eager": Eager,
        "torch.compile": Compiled,
        "onnxruntime": OnnxRuntime,
        "tensorrt": TensorRt,
    }
    return opens[backend](folder, stage, device)


class Eager:
    """Everything in FP16, norms too, as the reference loads its networks."""

    def __init__(self, folder: Path, stage: str, device: str) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise SystemExit(f"torch {torch.__version__} has no CUDA that this driver takes: torch is not compared")
        self.device = device
        self.module = stages(folder).pop(stage).module.half().to(device).eval()

    def put(self, feeds: Feeds) -> None:
        import torch

        self.inputs = [torch.from_numpy(values).to(self.device) for values in feeds.values()]

    def run(self) -> None:
        import torch

        with torch.inference_mode():
            self.output = self.module(*self.inputs)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def get(self) -> NDArray[np.generic]:
        answer: NDArray[np.generic] = self.output.cpu().numpy()
        return answer


class Compiled(Eager):
    def __init__(self, folder: Path, stage: str, device: str) -> None:
        import torch

        super().__init__(folder, stage, device)
        self.module = torch.compile(self.module, dynamic=False)


class OnnxRuntime:
    """As the target onnx runs it."""

    def __init__(self, folder: Path, stage: str, device: str) -> None:
        load_cuda_libraries()
        import onnxruntime

        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise SystemExit(
                "this onnxruntime has no CUDA provider, or another one lies over it: "
                "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
            )
        settings = onnxruntime.SessionOptions()
        settings.enable_mem_pattern = False
        options = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        graph = served(existing(folder, stage))
        self.session = onnxruntime.InferenceSession(
            graph, settings, providers=[(provider, options if device == "cuda" else {})]
        )
        if self.session.get_providers()[0] != provider:
            raise SystemExit("onnxruntime could not load its CUDA provider: are cuDNN and cuBLAS of its version there?")
        self.onnxruntime, self.device, self.model = onnxruntime, device, MODELS[stage]

    def put(self, feeds: Feeds) -> None:
        new = self.onnxruntime.OrtValue
        self.inputs = {name: new.ortvalue_from_numpy(values, self.device, 0) for name, values in feeds.items()}
        (tensor,), n = self.model.outputs, len(next(iter(feeds.values())))
        kind = np.dtype(tensor.dtype).type
        self.output = new.ortvalue_from_shape_and_type((n, *tensor.shape), kind, self.device, 0)

    def run(self) -> None:
        binding = self.session.io_binding()
        for name, values in self.inputs.items():
            binding.bind_ortvalue_input(name, values)
        binding.bind_ortvalue_output(self.model.outputs[0].name, self.output)
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def get(self) -> NDArray[np.generic]:
        answer: NDArray[np.generic] = self.output.numpy()
        return answer


def load_cuda_libraries() -> None:
    """NVIDIA's packages of CUDA libraries, wherever they are installed; ONNX Runtime looks only beside itself."""
    spec = find_spec("nvidia")
    for name in ("cudart", "nvrtc", "cublasLt", "cublas", "cufft", "curand", "cudnn"):
        for folder in spec.submodule_search_locations or () if spec else ():
            for library in sorted(Path(folder).glob(f"*/lib/lib{name}.so.*")):
                ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


class TensorRt:
    """An engine with one optimisation profile, built where the folder has none."""

    def __init__(self, folder: Path, stage: str, device: str) -> None:
        from export.cuda import DeviceArray
        from export.tensorrt import Engine, keep, kept_or_built

        self.model, self.arrays = MODELS[stage], DeviceArray
        graph = existing(folder, stage)
        profiles = ((*ENGINE_PROFILE, self.model.max_batch_size),)
        path, plan = kept_or_built(folder / "engines", self.model, graph, profiles, lambda words: None)
        keep(path, plan)
        self.engine = Engine(self.model, plan)

    def put(self, feeds: Feeds) -> None:
        self.inputs = {name: self.arrays.of(values) for name, values in feeds.items()}
        (tensor,), n = self.model.outputs, len(next(iter(feeds.values())))
        self.output = self.arrays((n, *tensor.shape), tensor.dtype)

    def run(self) -> None:
        self.engine.run_on_gpu(self.inputs, self.output)

    def get(self) -> NDArray[np.generic]:
        return self.output.numpy()


def existing(folder: Path, stage: str) -> Path:
    path = folder / f"{stage}.onnx"
    if not path.is_file():
        raise SystemExit(f"{path.name} was not written: see the step that writes the graphs")
    return path


def free(device: str) -> int:
    """Bytes of the GPU's memory that nobody uses."""
    if device == "cpu":
        return 0
    from export import cuda
    from export.errors import GpuUnavailable

    try:
        return cuda.free_memory()
    except GpuUnavailable:  # no cuda-bindings, which the card's line has said
        import torch

        return int(torch.cuda.mem_get_info()[0])


# -- the report -------------------------------------------------------------------------------------------------------


def with_ensembles(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and after them UNet and decoder one after the other, as Triton's ensemble runs one batch."""
    found = {(row["backend"], row["stage"], row["batch"]): row for row in rows}
    both = []
    for (backend, stage, batch), row in found.items():
        unet = found.get((backend, "unet", batch))
        if stage == "unet" or unet is None:
            continue
        sums = {"ms": unet["ms"] + row["ms"], "gb": unet["gb"] + row["gb"]}
        both.append({"backend": backend, "stage": f"unet + {stage}", "batch": batch, **sums})
    return rows + both


def with_rates(rows: list[dict[str, Any]], operations: dict[str, float], peak: float | None) -> list[dict[str, Any]]:
    """The rows in the tables' order, with frames per second, TFLOP/s, and that as a share of the card's peak."""
    rows = with_ensembles(sorted(rows, key=lambda row: (BACKENDS.index(row["backend"]), STAGES.index(row["stage"]))))
    for row in rows:
        row["fps"] = 1000 * row["batch"] / row["ms"]
        row["tflops"] = row["fps"] * sum(operations[stage] for stage in row["stage"].split(" + ")) / 1000
        row["share"] = row["tflops"] / peak if peak else None
    return rows


def report(found: Found, operations: dict[str, float]) -> None:
    speed = with_rates(found.of("speed"), operations, found.machine["peak"])
    gates = [row for row in found.of("gate") if "batch" in row]
    memory = [row for row in found.of("gate") if "mixed_batches" in row]
    print(f"\n{found.machine['gpu']}, peak {found.machine['peak'] or 'unknown'} TFLOP/s dense FP16")
    print("GFLOP per frame, counted: " + ", ".join(f"{stage} {value:.1f}" for stage, value in operations.items()))
    print("\n| held to float32 | stage | batch | max error | bound | mean error | bound | GB | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in gates:
        errors = (row["max_error"], row["bound"], row["mean_error"], row["mean_bound"])
        cells = (row["backend"], row["stage"], row["batch"], *map(short, errors), f"{row['gb']:.2f}")
        print(line(*cells, "**refused**" if row["refused"] else ""))
    print("\n| memory | stage | mixed batches | GB after them |\n|---|---|---|---|")
    for row in memory:
        print(line(row["backend"], row["stage"], row["mixed_batches"], f"{row['gb']:.2f}"))
    print("\n| speed | stage | batch | ms | fps | TFLOP/s | of peak | GB |\n|---|---|---|---|---|---|---|---|")
    for row in speed:
        rates = (f"{row['ms']:.2f}", f"{row['fps']:.1f}", f"{row['tflops']:.1f}")
        part = "" if row["share"] is None else f"{row['share']:.0%}"
        print(line(row["backend"], row["stage"], row["batch"], *rates, part, f"{row['gb']:.2f}"))
    print("\n| missing | why |\n|---|---|")
    for name, why in found.missing.items():
        print(line(name, why.replace("|", "/")))
    rows = {"gates": gates, "memory": memory, "speed": speed, "ensemble": found.of("ensemble")}
    for row in found.rows:
        row.pop("kind")
    result = {"machine": found.machine, "gflop_per_frame": operations, **rows, "missing": found.missing}
    print("\nRESULT", json.dumps(rounded(result)))


def line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
