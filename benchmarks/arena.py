"""How much ONNX Runtime's arena holds for a graph, against the tensors that are alive at once in it (export.memory).

    python benchmarks/arena.py [--size full] [--model vae_decoder] [--decoder taesd] [--largest 4] [--folder DIR]

The target `onnx` lets the arena extend as requested: it then holds a region for every tensor that fitted into none that
was free, and never gives one back. Memory patterns, the order of the batches and whether the batch axis has a name
(export/arena.py) decide how many. All of that is ONNX Runtime's own and the same on a CPU, where this runs: MuseTalk's
architecture with random weights, warmed in an order, then given a mix of other batches. In float32, since a CPU casts
around whatever is FP16. A tensor's size is proportional to the batch, so a largest batch of 4 stands for a model's own;
what convolutions borrow is the CPU's, not cuDNN's. At full size minutes a model. Prints a table, and RESULT with JSON.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lipserve import contract

PROFILE = "musetalk-v15"
MODELS = (contract.UNET.name, contract.VAE_DECODER.name, contract.VAE_ENCODER.name)
TOTAL = re.compile(r"Total allocated bytes: (\d+)")
MARK = "arena mark"  # a line of the log between two phases


@dataclass(frozen=True)
class Way:
    """How a model is configured, warmed and written."""

    ascending: bool
    patterns: bool
    named: bool

    def __str__(self) -> str:
        words = ("1 first" if self.ascending else "largest first", "patterns" if self.patterns else "no patterns")
        return ", ".join((*words, "named axis" if self.named else "unnamed axis"))


WAYS = (Way(True, True, True), Way(False, False, True), Way(False, False, False))


@dataclass(frozen=True)
class Row:
    """One measurement, in MB; alive: of tensors at once, at the largest batch."""

    model: str
    way: str
    alive: float
    warm: float
    mixed: float

    @property
    def ratio(self) -> float:
        return self.mixed / self.alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--model", choices=MODELS, action="append", help="only this one; all by default")
    parser.add_argument("--decoder", default="sd-vae", choices=("sd-vae", "taesd"))
    parser.add_argument("--largest", type=int, default=4, help="batch in the place of a model's largest")
    parser.add_argument("--folder", type=Path, help="keeps weights and graphs; otherwise they are removed")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        graph, *values = args.child
        child(Path(graph), *map(json.loads, values))
        return
    folder = args.folder or Path(tempfile.mkdtemp(prefix="lipserve-arena-"))
    try:
        rows = [row for name in args.model or MODELS for row in measured(folder, args.size, args.decoder, name, args)]
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    table = Table(
        "model", "way", "alive, MB", "after warm-up", "after mixed batches", "ratio", title=f"{args.size} size"
    )
    for row in rows:
        table.add_row(row.model, row.way, f"{row.alive:.0f}", f"{row.warm:.0f}", f"{row.mixed:.0f}", f"{row.ratio:.2f}")
    Console().print(table)
    facts = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "decoder": args.decoder}
    print("RESULT", json.dumps(facts | {"largest": args.largest, "rows": [asdict(row) for row in rows]}))


def measured(folder: Path, size: str, decoder: str, name: str, args: argparse.Namespace) -> list[Row]:
    """A model's rows, one for each of `WAYS`."""
    from export.arena import write_for_onnxruntime
    from export.memory import peak_activations

    named = prepared(folder, size, decoder, name)
    unnamed = named.with_name(f"unnamed-{named.name}")
    write_for_onnxruntime(named, unnamed)
    alive = peak_activations(named, args.largest) / 1e6
    # Of the largest, in sixteenths: what warms the models of 16, those of 8 as if they had a half of theirs as well.
    sizes = sorted({max(1, args.largest * share // 16) for share in (1, 8, 16)})
    mixed = [max(1, args.largest * share // 16) for share in (3, 10, 8, 16, 6, 12, 4, 14, 16, 1)]
    rows = []
    for way in WAYS:
        order = sizes if way.ascending else sizes[::-1]
        warm, after = held(named if way.named else unnamed, order, mixed, way.patterns)
        rows.append(Row(name, str(way), alive, warm, after))
        print(rows[-1], file=sys.stderr)
    return rows


def prepared(folder: Path, size: str, decoder: str, name: str) -> Path:
    """The float32 graph of a model with random weights; written once."""
    from export import musetalk
    from export.onnx_graphs import graphs, write_graph

    path = folder / f"graphs-{decoder}/{name}.onnx"
    if not path.is_file():
        if not (folder / "taesd/config.json").is_file():
            musetalk.write_random_weights(folder, 0, size, PROFILE)
        (graph,) = [graph for graph in graphs(musetalk.load(folder, PROFILE, decoder)) if graph.name == name]
        path.parent.mkdir(exist_ok=True)
        write_graph(graph, path, "random", folded=True)
    return path


def held(graph: Path, warm: list[int], mixed: list[int], patterns: bool) -> tuple[float, float]:
    """MB that the arena has for activations after the warm-up and after the mix, weights taken off."""
    command = [sys.executable, __file__, "--child", str(graph)]
    command += [json.dumps(value) for value in (warm, mixed, patterns)]
    log = subprocess.run(command, stderr=subprocess.PIPE, check=True).stderr.decode(errors="replace")
    totals = [0]
    for phase in log.split(MARK)[:-1]:
        totals.append(max([totals[-1], *map(int, TOTAL.findall(phase))]))
    weights, warmed, after = totals[1:]
    return (warmed - weights) / 1e6, (after - weights) / 1e6


def child(graph: Path, warm: list[int], mixed: list[int], patterns: bool) -> None:
    """Run the batches with an arena that extends as requested; it logs every extension to stderr."""
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(0)
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, 1, -1, -1))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.disable_prepacking", "1")  # a CPU's own
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # no layouts of a CPU
    options.enable_mem_pattern = patterns
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (model,) = [model for model in contract.MODELS if graph.stem.endswith(model.name)]
    for batches in ([], warm, mixed):
        for batch in batches:
            session.run(None, {tensor.name: np.zeros((batch, *tensor.shape), tensor.dtype) for tensor in model.inputs})
        os.write(2, f"\n{MARK}\n".encode())


if __name__ == "__main__":
    main()
