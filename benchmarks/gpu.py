"""How fast the networks are on this GPU, backend by backend: UNet, both decoders, and the two one after another.

    pip install -e '.[export]' tensorrt-cu12==10.5.0
    pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu
    python benchmarks/gpu.py --folder DIR [--minutes 9] [--batches 1,2,4,8,16]

Random weights of MuseTalk's own architecture, since speed does not ask what they say. Eager and compiled torch are
plain FP16, as the reference runs it; ONNX Runtime and TensorRT run the exported graphs with their float32 norms, the
engine with one optimisation profile. Each step runs in a process of its own, cheap ones first, and has a share of the
time that is left; what it had measured by then counts, and what is missing says why. With --folder weights, graphs,
engines, timing and compiler caches are kept, so that another run of the same command goes on from there.

Prints a table in Markdown, and RESULT with JSON as the last line. Exit code 2 without a GPU. `--rehearse` tries the
script itself: small networks on the CPU.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lipserve import contract

BACKENDS = ("torch eager", "onnxruntime", "tensorrt", "torch.compile")
# All steps in their order, and how they share the time: what one leaves over goes to those after it.
SHARES = {"weights": 2, "torch eager": 2, "graphs": 3, "onnxruntime": 2, "tensorrt": 4, "torch.compile": 3}
STAGES = ("unet", "sd-vae", "taesd")
WARM_UP = 3  # runs that do not count
MEASURED_SECONDS = 0.7  # of each stage and batch, at least three runs
PROFILE = "musetalk-v15"
ENGINE_PROFILES = ((1, 8, contract.UNET.max_batch_size),)  # production's three for the UNet take three times as long
COMPILED_FIRST = (8, 1, 16)  # batches: each is compiled anew, and there may be no time for all
OPERATIONS = "operations.json"  # in the folder: GFLOP of a frame by stage, written last of all weights

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop, at the latest")
    parser.add_argument("--batches", default="1,2,4,8,16")
    parser.add_argument("--rehearse", action="store_true", help="small networks on the CPU")
    parser.add_argument("--folder", type=Path, help="keeps what is made for another run; otherwise it is removed")
    parser.add_argument("--child", choices=tuple(SHARES), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batches.split(",")]
    device = "cpu" if args.rehearse else "cuda"
    if args.child == "weights":
        write_weights(args.folder, "small" if args.rehearse else "full")
        return
    if args.child == "graphs":
        write_graphs(args.folder)
        return
    if args.child:
        measure(args.child, args.folder, batches, device, args.seconds)
        return
    machine = describe(device)
    if machine is None:
        print("No NVIDIA GPU that torch can use is here: there is nothing to measure.", file=sys.stderr)
        raise SystemExit(2)
    orchestrate(args, machine, batches)


def describe(device: str) -> dict[str, Any] | None:
    """The card and what runs on it, or None without one."""
    try:
        import torch
    except ImportError:
        return None
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "gpu": "", "peak": None}
    if device == "cpu":
        return found | {"gpu": f"none, {platform.machine()} CPU"}
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((rate for part, rate in PEAKS.items() if part in name), None)
    return found | {"gpu": name, "peak": peak, "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9}


def orchestrate(args: argparse.Namespace, machine: dict[str, Any], batches: list[int]) -> None:
    deadline = time.monotonic() + 60 * args.minutes
    folder = args.folder or Path(tempfile.mkdtemp(prefix="lipserve-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    reasons: dict[str, str] = {}
    try:
        for step in SHARES:
            found, why = child(step, args, folder, share(step, deadline - time.monotonic()))
            rows += [row | {"backend": step} for row in found if "ms" in row]
            left_out = [f"{row['stage']} at {row['left_out']}" for row in found if row.get("left_out")]
            if why := why or (left_out and f"no time for {'; '.join(left_out)}"):
                reasons[step] = why
        if not (folder / OPERATIONS).is_file():
            print(f"The networks could not be made: {reasons.get('weights')}", file=sys.stderr)
            raise SystemExit(1)
        operations: dict[str, float] = json.loads((folder / OPERATIONS).read_text())
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    rows = with_ensembles(sorted(rows, key=lambda row: (BACKENDS.index(row["backend"]), STAGES.index(row["stage"]))))
    for row in rows:
        row["fps"] = 1000 * row["batch"] / row["ms"]
        gigas = sum(operations[stage] for stage in row["stage"].split(" + "))
        row["tflops"] = row["fps"] * gigas / 1000
        row["share"] = row["tflops"] / machine["peak"] if machine["peak"] else None
    report(machine, operations, rows, reasons)
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    result = {"machine": machine, "gflop_per_frame": operations, "rows": rounded, "missing": reasons}
    print("RESULT", json.dumps(result))


def share(step: str, left: float) -> float:
    """The seconds that a step may take of those that are left for it and all after it."""
    steps = list(SHARES)
    return left * SHARES[step] / sum(SHARES[other] for other in steps[steps.index(step) :])


def child(step: str, args: argparse.Namespace, folder: Path, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The JSON lines that a step's process printed, and why it did not print all of them."""
    command = [sys.executable, __file__, "--child", step, "--folder", str(folder), "--batches", args.batches]
    command += ["--seconds", f"{seconds:.1f}", *(["--rehearse"] if args.rehearse else [])]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str((folder / "inductor").resolve())}
    log = folder / "log"
    with log.open("wb") as errors, (folder / "out").open("w+b") as out:
        try:
            done = subprocess.run(command, stdout=out, stderr=errors, timeout=seconds, env=environment)
            why = "" if done.returncode == 0 else last_line(log) or f"ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            why = f"out of time after {seconds:.0f} s"
        out.seek(0)
        lines = [json.loads(line) for line in out.read().decode().splitlines() if line.startswith("{")]
    return lines, why


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


# -- in a child -------------------------------------------------------------------------------------------------------


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


def write_graphs(folder: Path) -> None:
    """FP16 graphs as production has them, each there whole or not at all."""
    from export.bundle import data_file
    from export.half import halve
    from export.onnx_graphs import write_graph

    for stage, graph in stages(folder).items():
        path = folder / f"{stage}.onnx"
        if path.is_file():
            continue
        fresh = folder / "fresh" / path.name
        fresh.parent.mkdir(exist_ok=True)
        halve(graph.module)
        write_graph(graph, fresh, "random", folded=True)
        if data_file(fresh).is_file():
            data_file(fresh).replace(data_file(path))
        fresh.replace(path)


@cache
def stages(folder: Path) -> dict[str, Any]:
    """What is measured, by stage: a graph with its module, float32. Read once; who takes one out has it alone."""
    from export import musetalk
    from export.modules import FaceDecoder, UNetStep
    from export.onnx_graphs import Graph

    networks = musetalk.load(folder, PROFILE, "taesd")
    assert networks.decoder is not None
    unet = Graph(contract.UNET, UNetStep(networks.unet))
    decoders = [Graph(contract.VAE_DECODER, FaceDecoder(vae)) for vae in (networks.vae, networks.decoder)]
    return dict(zip(STAGES, (unet, *decoders), strict=True))


def measure(backend: str, folder: Path, batches: list[int], device: str, seconds: float) -> None:
    """Print a line of JSON for every stage and batch: median milliseconds, and GPU memory of the process in GB.

    Every stage has its part of the seconds; batches that it has none left for are printed as left out.
    """
    import torch

    deadline = time.monotonic() + seconds
    before = used(device)
    opened = {"torch eager": eager, "torch.compile": compiled, "onnxruntime": onnx_cuda, "tensorrt": engine}[backend]
    if backend == "torch.compile":
        batches = sorted(batches, key=lambda batch: (*COMPILED_FIRST, batch).index(batch))
    for number, stage in enumerate(STAGES):
        model = contract.UNET if stage == "unet" else contract.VAE_DECODER
        ends = time.monotonic() + (deadline - time.monotonic()) / (len(STAGES) - number)
        run = opened(folder, stage, model, device)
        for place, batch in enumerate(batches):
            if place and time.monotonic() > ends:
                print(json.dumps({"stage": stage, "left_out": batches[place:]}), flush=True)
                break
            row = {"stage": stage, "batch": batch, "ms": 1000 * timed(run, model, batch, device)}
            print(json.dumps(row | {"gb": (used(device) - before) / 1e9}), flush=True)
        del run
        if device == "cuda":
            torch.cuda.empty_cache()


def timed(run: "Runner", model: contract.Model, batch: int, device: str) -> float:
    """Median seconds of a batch."""
    import torch

    rng = np.random.default_rng(batch)
    feeds = {
        t.name: torch.from_numpy(rng.standard_normal((batch, *t.shape)).astype(t.dtype)).to(device)
        for t in model.inputs
    }
    times: list[float] = []
    until = time.perf_counter() + 1e9
    while len(times) < WARM_UP + 3 or time.perf_counter() < until:
        if len(times) == WARM_UP:
            until = time.perf_counter() + MEASURED_SECONDS
        started = time.perf_counter()
        run(feeds)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return float(np.median(times[WARM_UP:]))


Runner = Callable[[dict[str, Any]], Any]


def eager(folder: Path, stage: str, model: contract.Model, device: str) -> Runner:
    """Everything in FP16, norms too, as the reference loads its networks."""
    import torch

    module = stages(folder).pop(stage).module.half().to(device).eval()

    def run(feeds: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return module(*feeds.values())

    run.module = module  # type: ignore[attr-defined]
    return run


def compiled(folder: Path, stage: str, model: contract.Model, device: str) -> Runner:
    import torch

    module = torch.compile(eager(folder, stage, model, device).module, dynamic=False)  # type: ignore[attr-defined]

    def run(feeds: dict[str, Any]) -> Any:
        with torch.no_grad():
            return module(*feeds.values())

    return run


def onnx_cuda(folder: Path, stage: str, model: contract.Model, device: str) -> Runner:
    """As the target onnx runs it."""
    import onnxruntime
    import torch

    from export.arena import write_unnamed

    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise SystemExit(
            "this onnxruntime has no CUDA provider, or another one lies over it: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        )
    graph, served = folder / f"{stage}.onnx", folder / f"{stage}-served.onnx"
    write_unnamed(graph, served)
    settings = onnxruntime.SessionOptions()
    settings.enable_mem_pattern = False
    options = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    session = onnxruntime.InferenceSession(
        served, settings, providers=[(provider, options if device == "cuda" else {})]
    )
    if session.get_providers()[0] != provider:
        raise SystemExit("onnxruntime's CUDA provider could not be loaded: are cuDNN and cuBLAS of its version there?")
    (tensor,) = model.outputs

    def run(feeds: dict[str, Any]) -> Any:
        binding = session.io_binding()
        n = len(next(iter(feeds.values())))
        output = torch.empty((n, *tensor.shape), dtype=getattr(torch, tensor.dtype), device=device)
        for name, values in feeds.items():
            binding.bind_input(name, device, 0, np.float16, tuple(values.shape), values.data_ptr())
        binding.bind_output(tensor.name, device, 0, np.dtype(tensor.dtype).type, tuple(output.shape), output.data_ptr())
        session.run_with_iobinding(binding)
        return output

    return run


def engine(folder: Path, stage: str, model: contract.Model, device: str) -> Runner:
    from export.tensorrt import PACKAGE, Engine, keep, kept_or_built

    try:
        import tensorrt  # noqa: F401
    except ImportError:
        raise SystemExit(f"tensorrt is not installed: pip install {PACKAGE}") from None
    path, plan = kept_or_built(folder / "engines", model, folder / f"{stage}.onnx", ENGINE_PROFILES, lambda words: None)
    keep(path, plan)
    return Engine(model, plan).run_on_gpu


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def used(device: str) -> float:
    """Bytes of the GPU's memory in use, by everyone."""
    import torch

    if device == "cpu":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return float(total - free)


# -- the report -------------------------------------------------------------------------------------------------------


def with_ensembles(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and after them UNet and decoder one after the other, as Triton's ensemble runs one batch."""
    found = {(row["backend"], row["stage"], row["batch"]): row for row in rows}
    both = []
    for (backend, stage, batch), row in found.items():
        unet = found.get((backend, "unet", batch))
        if stage == "unet" or unet is None:
            continue
        sums = {"ms": unet["ms"] + row["ms"], "gb": max(unet["gb"], row["gb"])}
        both.append({"backend": backend, "stage": f"unet + {stage}", "batch": batch, **sums})
    return rows + both


def report(
    machine: dict[str, Any], operations: dict[str, float], rows: list[dict[str, Any]], reasons: dict[str, str]
) -> None:
    peak = f"{machine['peak']} TFLOP/s dense FP16" if machine["peak"] else "peak not in the table"
    print(f"{machine['gpu']} ({peak}), torch {machine['torch']}, Python {machine['python']}\n")
    counted = ", ".join(f"{stage} {value:.1f}" for stage, value in operations.items())
    print(f"GFLOP per frame, counted: {counted}\n")
    print("| backend | stage | batch | ms | fps | TFLOP/s | of peak | GB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        share = f"{row['share']:.0%}" if row["share"] is not None else ""
        print(
            f"| {row['backend']} | {row['stage']} | {row['batch']} | {row['ms']:.2f} | {row['fps']:.1f} | "
            f"{row['tflops']:.1f} | {share} | {row['gb']:.2f} |"
        )
    for step, why in reasons.items():
        print(f"| {step} | {why.replace('|', '/')} | | | | | | |")
    print()


if __name__ == "__main__":
    main()
