"""How much memory of a GPU a target takes at most, computed from files and graphs, before there is a GPU.

    python -m export.memory --profile musetalk-v15 --target onnx [--card-gb 24]

Weights are the bytes of the files; activations are the peak of the tensors that are alive at once at a model's largest
batch, counted through the graph in its own order, no memory shared between input and output of a node, and for ONNX
Runtime times what its arena was measured to hold of it. What a driver and libraries take is an allowance, not a
measurement. It is held against what is free on this machine's card, or against an RTX A5000. Exit code 1 if it does not
fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto, helper, shape_inference
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export import cuda
from export.bundle import data_file
from export.errors import ExportError, GpuUnavailable, GraphUnfit
from export.repository import ONNX, TENSORRT, served_graphs, served_models
from export.triton_config import BATCH_PROFILES, CUDA_GRAPHS_SHARE, INSTANCES
from lipserve import contract

GB = 1e9
CARD = 23_028 << 20  # bytes of an RTX A5000 with ECC on; without ECC it has 24 564 MiB
ALLOWANCE = 1.5 * GB  # driver context, kernels of cuDNN and cuBLAS, Triton's pools: not counted, assumed
CONVOLUTION_WORKSPACE = 0.5 * GB  # per model, what cuDNN or a TensorRT tactic may ask for: assumed

# Times the tensors alive at once that ONNX Runtime's arena holds: by benchmarks/arena.py, in float32 and rounded up,
# since float32 islands in FP16 mix sizes; of the lower rows and the sums, which it does not measure, as of the decoder.
# What is free is too small where tensors grow, as they do in a decoder.
ARENA = {
    contract.UNET.name: 2.0,
    contract.VAE_DECODER.name: 2.0,
    contract.REFERENCE_SUMS.name: 2.0,
    contract.VAE_ENCODER.name: 1.1,
}

# Nodes whose output is their input's memory.
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}


@dataclass(frozen=True)
class Share:
    """What one model takes at a batch: bytes of weights, activations and workspace, of all its instances on one GPU."""

    model: str
    batch: int
    weights: float
    activations: float
    workspace: float

    @property
    def total(self) -> float:
        return self.weights + self.activations + self.workspace


def budget(files: Mapping[str, Path], target: str) -> list[Share]:
    """Each served model's share of a GPU's memory, at its largest batch. Raises GraphUnfit."""
    shares = []
    for model in served_models(files):
        path = files[model.name]
        # A TensorRT context is as large as the largest optimisation profile needs, and Triton keeps one per profile.
        contexts = len(BATCH_PROFILES[model.name]) if target == TENSORRT else 1
        activations = float(peak_activations(path, model.max_batch_size) * contexts * INSTANCES)
        activations *= 1 + CUDA_GRAPHS_SHARE if target == TENSORRT else ARENA[model.name]
        weights = (path.stat().st_size + _size(data_file(path))) * INSTANCES
        workspace = CONVOLUTION_WORKSPACE * INSTANCES
        shares.append(Share(model.name, model.max_batch_size, weights, activations, workspace))
    return shares


def total(shares: list[Share]) -> float:
    """Bytes of all models and the allowance."""
    return sum(share.total for share in shares) + ALLOWANCE


def peak_activations(path: Path, batch: int) -> int:
    """Bytes of the tensors that are alive at once, at most, when the graph runs a batch; weights are not among them."""
    return peak_of(onnx.load(path, load_external_data=False), batch)


def peak_of(model: onnx.ModelProto, batch: int) -> int:
    """The same of a graph in memory, whose batch axis becomes `batch`."""
    sizes = tensor_bytes(model, batch)
    constants = {constant.name for constant in model.graph.initializer}
    nodes = model.graph.node
    source: dict[str, str] = {}
    for node in nodes:
        if node.op_type in VIEWS:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            last[source.get(name, name)] = index
    for output in model.graph.output:
        last[source.get(output.name, output.name)] = len(nodes)
    alive = {value.name: sizes[value.name] for value in model.graph.input if value.name not in constants}
    now = peak = sum(alive.values())
    for index, node in enumerate(nodes):
        for name in node.output:
            if name and name not in source and name not in alive:
                alive[name] = sizes[name]
                now += sizes[name]
        peak = max(peak, now)
        for name in {source.get(name, name) for name in (*node.input, *node.output)}:
            if last.get(name, index) <= index and name in alive:
                now -= alive.pop(name)
    return peak


def tensor_bytes(model: onnx.ModelProto, batch: int) -> dict[str, int]:
    """Bytes of every tensor that a node makes, and of the inputs. The model's shapes are inferred anew, in place."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        axis.dim_value = batch
    inferred = shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)
    graph = inferred.graph
    return {value.name: _bytes(value) for value in (*graph.input, *graph.output, *graph.value_info)}


def _bytes(value: onnx.ValueInfoProto) -> int:
    if not value.type.HasField("tensor_type"):
        raise GraphUnfit(f"The tensor {value.name!r}", "is a sequence, as in graphs that are not folded: not counted")
    tensor = value.type.tensor_type
    width = 1 if tensor.elem_type == TensorProto.BOOL else helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    return int(prod(axis.dim_value for axis in tensor.shape.dim)) * int(width)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def card() -> tuple[float, str]:
    """Bytes that are free on this machine's GPU, and words about it; without one, of the smallest card that this is
    made for. Raises GpuFailed."""
    try:
        found = cuda.card()
    except GpuUnavailable as error:
        return float(CARD), f"an RTX A5000 with ECC, {CARD / GB:.1f} GB, since {error}"
    return float(found.free), str(found)


def print_budget(console: Console, files: Mapping[str, Path], target: str, size: float | None = None) -> bool:
    """The table, and a line if that is too much; whether it fits. size: bytes, by default those free on this card."""
    if size is None:
        size, words = card()
        console.print(f"held against {escape(words)}")
    shares = budget(files, target)
    console.print(budget_table(shares, target, size))
    fits = total(shares) <= size
    if not fits:
        console.print(f"[red]does not fit[/red] into {size / GB:.1f} GB; {_less(files, target, total(shares))}")
    return fits


def _less(files: Mapping[str, Path], target: str, needed: float) -> str:
    """What would take less than `needed` bytes."""
    other = ONNX if target == TENSORRT else TENSORRT
    least = total(budget(files, other))
    words = "TAESD is the smaller decoder (--decoder taesd)"
    return f"{words}, and the target {other} takes {least / GB:.1f} GB" if least < needed else words


def budget_table(shares: list[Share], target: str, card: float = CARD) -> Table:
    """The shares for the terminal, in GB."""
    table = Table(title=f"GPU memory of target {target} at the largest batches, GB, computed")
    for column in ("model", "batch", "weights", "activations", "workspace", "sum"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for share in shares:
        figures = (share.weights, share.activations, share.workspace, share.total)
        table.add_row(share.model, str(share.batch), *(f"{value / GB:.2f}" for value in figures))
    table.add_row("driver, libraries, pools", "", "", "", "", f"{ALLOWANCE / GB:.2f}")
    table.add_row("of the card's", "", "", "", f"{card / GB:.1f}", f"{total(shares) / GB:.2f}")
    return table


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m export.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="musetalk-v15")
    parser.add_argument("--target", default="onnx", choices=("onnx", TENSORRT))
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    parser.add_argument("--card-gb", type=float, help="of 10^9 bytes; by default what is free on the card that is here")
    args = parser.parse_args(words)
    console = Console()
    try:
        files = served_graphs(args.models_dir, args.profile, args.target)
        fits = print_budget(console, files, args.target, args.card_gb and args.card_gb * GB)
    except ExportError as error:
        console.print(f"[red]refused:[/red] {escape(str(error))}")
        raise SystemExit(1) from error
    if not fits:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
