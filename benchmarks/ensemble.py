"""Triton's own perf_analyzer against the ensemble, at growing concurrency, and the batches that its metrics show.

    lipserve setup --perf-analyzer
    python benchmarks/ensemble.py [--batch-size 1] [--concurrency 1,2,4,8] [--seconds 5] [--url HOST:PORT --metrics URL]

Without --url it starts the embedded Triton. Ratios are against concurrency 1 of the same run.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lipserve.contract import AUDIO_FEATURES, FACE_LATENTS, LIPSYNC, MODELS
from lipserve.embedded import EmbeddedTriton
from lipserve.fetch import PERF_ANALYZER, TRITONSERVER
from lipserve.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=1, help="frames in one request")
    parser.add_argument("--concurrency", default="1,2,4,8")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--url", help="gRPC address of a running Triton")
    parser.add_argument("--metrics", help="metrics address of that Triton")
    args = parser.parse_args()
    settings = Settings()
    if not PERF_ANALYZER.is_there(settings.models_dir):
        parser.error("perf_analyzer is not there: run `lipserve setup --perf-analyzer`")
    with server(settings, args.url, args.metrics) as (url, metrics), tempfile.TemporaryDirectory() as scratch:
        rows = [
            measure(settings, url, metrics, args.batch_size, int(level), args.seconds, Path(scratch))
            for level in args.concurrency.split(",")
        ]
    report(rows, args.batch_size)


@contextmanager
def server(settings: Settings, url: str | None, metrics: str | None) -> Iterator[tuple[str, str]]:
    if url is not None:
        yield url, metrics or f"http://{url.split(':')[0]}:8002/metrics"
        return
    with EmbeddedTriton(settings.model_repository, settings.models_dir, settings.work_dir) as triton:
        yield triton.grpc_url, triton.metrics_url


def libraries(settings: Settings, scratch: Path) -> Path:
    """perf_analyzer needs libb64 and the CUDA runtime by their plain names; the server's own copies serve."""
    source = (settings.models_dir / TRITONSERVER.folder / "lib").resolve()
    folder = scratch / "lib"
    folder.mkdir(exist_ok=True)
    for name, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12*")):
        link = folder / name
        if not link.exists():
            (target,) = source.glob(pattern)
            link.symlink_to(target)
    return folder


def measure(
    settings: Settings, url: str, metrics: str, batch_size: int, concurrency: int, seconds: float, scratch: Path
) -> dict[str, float]:
    """One row: frames per second, latencies in ms, and frames per executed batch of each model."""
    table = scratch / f"{concurrency}.csv"
    command = [str((settings.models_dir / PERF_ANALYZER.folder / "perf_analyzer").resolve())]
    command += ["-m", LIPSYNC.name, "-i", "grpc", "-u", url, "-b", str(batch_size), "-f", str(table)]
    command += ["--concurrency-range", str(concurrency), "--measurement-interval", str(int(seconds * 1000))]
    # three windows in a row this close, in percent: shared machines never get the default 10
    command += ["--percentile", "95", "--max-trials", "10", "--stability-percentage", "60"]
    for tensor in (AUDIO_FEATURES, FACE_LATENTS):
        command += ["--shape", f"{tensor.name}:{','.join(map(str, tensor.shape))}"]
    before = counters(metrics)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries(settings, scratch))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not table.exists():
        raise SystemExit(f"perf_analyzer failed:\n{done.stdout}\n{done.stderr}")
    after = counters(metrics)
    with table.open() as handle:
        found = next(csv.DictReader(handle))
    row = {
        "concurrency": concurrency,
        # perf_analyzer counts inferences, that is frames, whatever the batch size
        "fps": float(found["Inferences/Second"]),
        "p50_ms": float(found["p50 latency"]) / 1000,
        "p95_ms": float(found["p95 latency"]) / 1000,
    }
    for model in MODELS:
        frames, batches = (b - a for a, b in zip(before[model.name], after[model.name], strict=True))
        if batches and model is not LIPSYNC:
            row[f"{model.name}_batch"] = frames / batches
    return row


def counters(metrics: str) -> dict[str, tuple[float, float]]:
    """Per model: frames inferred, batches executed."""
    values: dict[str, dict[str, float]] = {model.name: {} for model in MODELS}
    for line in urllib.request.urlopen(metrics).read().decode().splitlines():
        for model in MODELS:
            if f'model="{model.name}"' in line:
                values[model.name][line.split("{")[0]] = float(line.rsplit(" ", 1)[1])
    names = ("nv_inference_count", "nv_inference_exec_count")
    return {model: (found.get(names[0], 0.0), found.get(names[1], 0.0)) for model, found in values.items()}


def report(rows: list[dict[str, float]], batch_size: int) -> None:
    headers = ("concurrency", "fps", "ratio", "p50 ms", "p95 ms", "frames/batch unet", "frames/batch decoder")
    table = Table(*headers, title=f"ensemble, {batch_size} frames per request")
    for row in rows:
        row["ratio"] = row["fps"] / rows[0]["fps"]
        numbers = (row["fps"], row["ratio"], row["p50_ms"], row["p95_ms"], row["unet_batch"], row["vae_decoder_batch"])
        table.add_row(str(int(row["concurrency"])), *(f"{n:.2f}" for n in numbers))
    Console().print(table)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    rounded = [{name: round(value, 3) for name, value in row.items()} for row in rows]
    print("RESULT", json.dumps({"machine": machine, "batch_size": batch_size, "rows": rounded}))


if __name__ == "__main__":
    main()
