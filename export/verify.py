"""Does an exported graph compute what its torch module computes?

Each graph runs in ONNX Runtime on the CPU against torch, on seeded inputs, at a batch of 1 and of 3: neither is the
batch it was traced with. Knows what inputs are plausible and how far apart the outputs may be; repairs nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.table import Table

from export.errors import ExportRefused
from export.onnx_graphs import Graph
from lipserve import contract

BATCHES = (1, 3)
SEED = 20_240_229

FLOAT_BOUND = 1e-3  # absolute, on float32 outputs
HALF_ROUNDING = 2.0**-10  # one unit in the last place of float16, relative: both sides are rounded
LEVEL_BOUND = 1.0  # levels of 255: the sides of a rounding boundary


@dataclass(frozen=True)
class Check:
    """One comparison: errors are absolute, over all elements, in the output's own units."""

    graph: str
    output: str
    batch: int
    maximum: float
    mean: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the maximum is within the bound; not a number never is."""
        return self.maximum <= self.bound


def verify(graph: Graph, path: Path) -> list[Check]:
    """Compare the file with the module at every batch of `BATCHES`; raises `ExportRefused` at the first too far."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    checks = []
    for batch in BATCHES:
        feeds = inputs(graph.model, batch)
        with torch.inference_mode():
            expected = graph.module(*(torch.from_numpy(feed) for feed in feeds.values())).numpy()
        (tensor,) = graph.model.outputs
        (actual,) = session.run([tensor.name], feeds)
        check = compare(graph.name, tensor, expected, actual)
        if not check.passed:
            raise ExportRefused(check.graph, check.batch, check.maximum, check.bound)
        checks.append(check)
    return checks


def compare(graph: str, tensor: contract.Tensor, expected: NDArray[np.generic], actual: NDArray[np.generic]) -> Check:
    """Errors of `actual` against `expected`, both (n, *tensor.shape) of the tensor's dtype."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ExportRefused(graph, len(expected), float("inf"), 0.0)
    wanted, got = expected.astype(np.float64), actual.astype(np.float64)
    errors = np.abs(wanted - got)
    bound = {
        "uint8": LEVEL_BOUND,
        "float16": FLOAT_BOUND + HALF_ROUNDING * float(np.abs(wanted).max()),
        "float32": FLOAT_BOUND,
    }[tensor.dtype]
    return Check(graph, tensor.name, len(expected), float(errors.max()), float(errors.mean()), bound)


def inputs(model: contract.Model, batch: int) -> dict[str, NDArray[np.generic]]:
    """Seeded inputs of a model by name: pictures of every level, latents and features of unit variance, a log-mel."""
    rng = np.random.default_rng(SEED + batch)
    return {tensor.name: _sample(tensor, batch, rng) for tensor in model.inputs}


def _sample(tensor: contract.Tensor, batch: int, rng: np.random.Generator) -> NDArray[np.generic]:
    shape = (batch, *tensor.shape)
    if tensor.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if tensor == contract.LOG_MEL:
        return rng.uniform(-1.0, 1.5, shape).astype(np.float32)  # Whisper's scale: (log10 + 4) / 4, 8 decades deep
    return rng.standard_normal(shape).astype(tensor.dtype)


def error_table(checks: list[Check]) -> Table:
    """The comparisons as a table for the terminal."""
    table = Table(title="ONNX Runtime against torch")
    for column in ("graph", "output", "batch", "max error", "mean error", "bound"):
        table.add_column(column, justify="left" if column in ("graph", "output") else "right")
    for check in checks:
        figures = (f"{value:.3g}" for value in (check.maximum, check.mean, check.bound))
        table.add_row(check.graph, check.output, str(check.batch), *figures)
    return table
