"""The whole way at MuseTalk's own size, without its weights: random ones of its architecture, in its files.

    python benchmarks/full_size.py [--folder DIR] [--decoder taesd] [--skip-triton]

Weight files (4 GB) → networks → FP16 graphs, held to float32 → the ensemble in the embedded Triton on the CPU, held to
the same, both in a batch of every size that serves. Minutes to tens of minutes, up to 9 GB of memory without Triton, 10
GB of disk. Prints what each step took, and RESULT with JSON as the last line.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from export import musetalk, pipeline
from export.bundle import find_graphs
from export.gate import Check, Reference, error_table, gate_batches, hold
from export.memory import budget, budget_table, total
from export.profiles import DECODERS, FP16
from export.repository import CPU, ONNX, ensemble, served_models, write_repository
from export.served import ask
from lipserve import contract
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

PROFILE = "musetalk-v15"
PSNR = 25.0  # dB, in the place of the gate's: what is random in the upper rows reaches the lower ones more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keeps what is made; otherwise it is removed")
    parser.add_argument("--decoder", choices=DECODERS, action="append", help="only this one; all by default")
    parser.add_argument("--size", choices=tuple(musetalk.SIZES), default="full", help="small tries the script itself")
    parser.add_argument("--skip-triton", action="store_true")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="lipserve-full-"))
    try:
        run(folder, args.decoder or list(DECODERS), args.size, args.skip_triton)
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, decoders: list[str], size: str, skip_triton: bool) -> None:
    console = Console()
    seconds: dict[str, float] = {}
    errors: dict[str, dict[str, float]] = {}
    with timed("write weights", seconds):
        if not (folder / "taesd/config.json").is_file():
            musetalk.write_random_weights(folder, 0, size, PROFILE)
    for decoder in decoders:
        with timed(f"{decoder}: read weights", seconds):
            networks = musetalk.load(folder, PROFILE, decoder)
        with timed(f"{decoder}: export and check", seconds):
            graphs = folder / PROFILE
            written = pipeline.write_graphs(networks, graphs, lambda words: console.log(words), FP16, psnr=PSNR)
        del networks
        console.print(error_table(check for graph in written for check in graph.checks))
        for graph in written:
            errors[f"{decoder}: {graph.graph}"] = worst(graph.checks)
        files, _ = find_graphs(graphs, FP16)
        files = {model.name: files[model.name] for model in served_models(files)}
        reference = Reference.load(graphs)
        errors[f"{decoder}: faces, grey levels"] = {"deviation": float(reference.faces.std())}  # flat ones prove little
        shares = budget(files, ONNX)
        console.print(budget_table(shares, ONNX))
        errors[f"{decoder}: GPU memory, GB, computed"] = {"sum": total(shares) / 1e9}
        if not skip_triton:
            with timed(f"{decoder}: Triton", seconds):
                checks = through_triton(folder, files, reference)
            console.print(error_table(checks, "the embedded Triton against torch"))
            errors[f"{decoder}: through Triton"] = worst(checks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # without Triton's processes
    console.print({name: round(value, 1) for name, value in seconds.items()}, errors, f"peak memory {peak:.1f} GB")
    print("RESULT", json.dumps({"size": size, "seconds": seconds, "errors": errors, "peak_memory_gb": peak}))


def worst(checks: list[Check]) -> dict[str, float]:
    """The largest errors of any frame in any batch."""
    return {"max": max(check.maximum for check in checks), "mean": max(check.mean for check in checks)}


def through_triton(folder: Path, files: dict[str, Path], reference: Reference) -> list[Check]:
    """The FP16 graphs in the embedded Triton, whose Python backend runs them on the CPU."""
    settings = Settings()
    repository = write_repository(folder / "repository", CPU, files, "full-size")
    for model in (contract.VAE_ENCODER, contract.REFERENCE_SUMS):  # not asked for here, and they would take memory
        shutil.rmtree(repository / model.name, ignore_errors=True)
    with EmbeddedTriton(repository, settings.models_dir, folder / "run") as server:
        checks = []
        model = ensemble(files)
        for batch in gate_batches(model):
            frames = reference.repeated(batch)
            answer = ask(server.grpc_url, model, frames.feeds(model))
            checks.append(hold(contract.VAE_DECODER, frames.faces, answer, contract.LIPSYNC.name))
    return checks


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started


if __name__ == "__main__":
    main()
