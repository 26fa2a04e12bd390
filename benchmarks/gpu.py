"""How fast the networks are on this GPU, backend by backend: UNet, both decoders, and the two one after another.

    pip install -e '.[export]' onnxruntime-gpu tensorrt-cu12==10.5.0
    python benchmarks/gpu.py [--minutes 9] [--batches 1,2,4,8,16,32]

Random weights of MuseTalk's own architecture, since speed does not ask what they say. Each backend runs in a process
of its own, which is ended when the time is up; what it had measured by then counts, and what is missing says why.
Prints a table in Markdown, and RESULT with JSON as the last line. Exit code 2 without a GPU. `--rehearse` tries the
script itself: small networks on the CPU.
"""

import argparse
import json
import platform
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
STAGES = ("unet", "sd-vae", "taesd")
WARM_UP = 3  # runs that do not count
MEASURED_SECONDS = 0.7  # of each stage and batch, at least three runs
PROFILE = "musetalk-v15"

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
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--rehearse", action="store_true", help="small networks on the CPU")
    parser.add_argument("--child", choices=("prepare", *BACKENDS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batches.split(",")]
    device = "cpu" if args.rehearse else "cuda"
    if args.child == "prepare":
        prepare(args.folder, "small" if args.rehearse else "full")
        return
    if args.child:
        measure(args.child, args.folder, batches, device)
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
    with tempfile.TemporaryDirectory(prefix="lipserve-gpu-") as folder:
        lines, why = child("prepare", args, folder, deadline)
        if why:
            print(f"The networks could not be made: {why}", file=sys.stderr)
            raise SystemExit(1)
        operations: dict[str, float] = lines[0]
        rows: list[dict[str, Any]] = []
        reasons: dict[str, str] = {}
        for backend in BACKENDS:
            found, why = child(backend, args, folder, deadline)
            rows += [row | {"backend": backend} for row in found]
            if why:
                reasons[backend] = why
    rows = with_ensembles(rows)
    for row in rows:
        row["fps"] = 1000 * row["batch"] / row["ms"]
        gigas = sum(operations[stage] for stage in row["stage"].split(" + "))
        row["tflops"] = row["fps"] * gigas / 1000
        row["share"] = row["tflops"] / machine["peak"] if machine["peak"] else None
    report(machine, operations, rows, reasons)
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    result = {"machine": machine, "gflop_per_frame": operations, "rows": rounded, "missing": reasons}
    print("RESULT", json.dumps(result))


def child(name: str, args: argparse.Namespace, folder: str, deadline: float) -> tuple[list[dict[str, Any]], str]:
    """The JSON lines that a child printed, and why it did not print all of them."""
    left = deadline - time.monotonic()
    if left < 5:
        return [], "out of time"
    command = [sys.executable, __file__, "--child", name, "--folder", folder, "--batches", args.batches]
    command += ["--rehearse"] if args.rehearse else []
    log = Path(folder) / "log"
    with log.open("wb") as errors, (Path(folder) / "out").open("w+b") as out:
        try:
            code = subprocess.run(command, stdout=out, stderr=errors, timeout=left).returncode
            why = "" if code == 0 else last_line(log) or f"ended with {code}"
        except subprocess.TimeoutExpired:
            why = "out of time"
        out.seek(0)
        lines = [json.loads(line) for line in out.read().decode().splitlines() if line.startswith("{")]
    return lines, why


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


# -- in a child -------------------------------------------------------------------------------------------------------


def prepare(folder: Path, size: str) -> None:
    """Weights, FP16 graphs, and the operations of a frame, which are printed in GFLOP."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from export import musetalk
    from export.half import halve
    from export.onnx_graphs import write_graph

    musetalk.write_random_weights(folder, 0, size, PROFILE)
    operations = {}
    for stage, graph in stages(folder).items():
        halve(graph.module)
        write_graph(graph, folder / f"{stage}.onnx", "random", folded=True)
        module = graph.module.to("meta")
        feeds = [torch.zeros(2, *t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in graph.model.inputs]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*feeds)
        operations[stage] = counter.get_total_flops() / 2e9
    print(json.dumps(operations))


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


def measure(backend: str, folder: Path, batches: list[int], device: str) -> None:
    """Print a line of JSON for every stage and batch: median milliseconds, and GPU memory of the process in GB."""
    import torch

    before = used(device)
    opened = {"torch eager": eager, "torch.compile": compiled, "onnxruntime": onnx_cuda, "tensorrt": engine}[backend]
    for stage in STAGES:
        model = contract.UNET if stage == "unet" else contract.VAE_DECODER
        run = opened(folder, stage, model, device)
        for batch in batches:
            rng = np.random.default_rng(batch)
            feeds = {
                t.name: torch.from_numpy(rng.standard_normal((batch, *t.shape)).astype(t.dtype)).to(device)
                for t in model.inputs
            }
            times = []
            until = time.perf_counter() + 1e9
            while len(times) < WARM_UP + 3 or time.perf_counter() < until:
                if len(times) == WARM_UP:
                    until = time.perf_counter() + MEASURED_SECONDS
                started = time.perf_counter()
                run(feeds)
                synchronize(device)
                times.append(time.perf_counter() - started)
            row = {"stage": stage, "batch": batch, "ms": 1000 * float(np.median(times[WARM_UP:]))}
            print(json.dumps(row | {"gb": (used(device) - before) / 1e9}), flush=True)
        del run
        if device == "cuda":
            torch.cuda.empty_cache()


Runner = Callable[[dict[str, Any]], Any]


def eager(folder: Path, stage: str, model: contract.Model, device: str) -> Runner:
    import torch

    from export.half import halve

    module = stages(folder).pop(stage).module
    halve(module)
    module = module.to(device).eval()

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
    import onnxruntime
    import torch

    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise SystemExit("this onnxruntime has no CUDA provider: pip install onnxruntime-gpu")
    options = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    session = onnxruntime.InferenceSession(
        folder / f"{stage}.onnx", providers=[(provider, options if device == "cuda" else {})]
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
    from export.tensorrt import PACKAGE, Engine, build, nearest_profile

    try:
        import tensorrt  # noqa: F401
    except ImportError:
        raise SystemExit(f"tensorrt is not installed: pip install {PACKAGE}") from None
    runner = Engine(model, build(model, folder / f"{stage}.onnx", folder / "timing"))
    return lambda feeds: runner.run_on_gpu(feeds, nearest_profile(model, len(next(iter(feeds.values())))))


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
    for backend, why in reasons.items():
        print(f"| {backend} | {why.replace('|', '/')} | | | | | | |")
    print()


if __name__ == "__main__":
    main()
