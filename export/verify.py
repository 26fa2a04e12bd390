"""Does an exported graph compute what its torch module computes?

Each graph runs in ONNX Runtime on the CPU against torch, on a few seeded frames, in a batch of every size that serves.
Knows what inputs are plausible and how far apart the outputs may be; repairs nothing.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.bundle import open_graph
from export.gate import Bounds, Check, Reference, gate_batches, hold, measured, repeated_frames
from export.onnx_graphs import Graph
from lipserve import contract

FRAMES = 4
SEED = 20_240_229

FLOAT_BOUND = 1e-3  # absolute, on float32 outputs
HALF_ROUNDING = 2.0**-10  # one unit in the last place of float16, relative: both sides are rounded
LEVEL_BOUND = 1.0  # levels of 255: the sides of a rounding boundary


def verify(graph: Graph, path: Path) -> list[Check]:
    """Compare the file with the module at every batch of `gate_batches`. Raises ExportRefused at the first too far."""
    session = open_graph(path)
    (tensor,) = graph.model.outputs
    sizes = gate_batches(graph.model)
    feeds = inputs(graph.model, min(FRAMES, sizes[-1]))
    expected = _one_by_one(graph, feeds)
    checks = []
    for batch in sizes:
        frames = repeated_frames(len(expected), batch)
        (actual,) = session.run([tensor.name], {name: feed[frames] for name, feed in feeds.items()})
        check = compare(graph.name, tensor, expected[frames], actual)
        check.require()
        checks.append(check)
    return checks


def _one_by_one(graph: Graph, feeds: dict[str, NDArray[np.generic]]) -> NDArray[np.generic]:
    """What the module makes of each frame alone, so that a large batch takes none of torch's memory."""
    tensors = [torch.from_numpy(feed) for feed in feeds.values()]
    with torch.inference_mode():
        answers = [graph.module(*(tensor[i : i + 1] for tensor in tensors)) for i in range(len(tensors[0]))]
        joined: NDArray[np.generic] = torch.cat(answers).numpy()
    return joined


def verify_half(model: contract.Model, path: Path, reference: Reference) -> list[Check]:
    """Compare an FP16 graph with the reference at every batch of `gate_batches`; raises `ExportRefused`."""
    session = open_graph(path)
    (output,) = model.outputs
    checks = []
    for batch in gate_batches(model):
        frames = reference.repeated(batch)
        (actual,) = session.run([output.name], frames.feeds(model))
        checks.append(hold(model, frames.output(model), actual))
    return checks


def compare(graph: str, tensor: contract.Tensor, expected: NDArray[np.generic], actual: NDArray[np.generic]) -> Check:
    """Errors of `actual` against `expected`, both (n, *tensor.shape) of the tensor's dtype."""
    bound = {
        "uint8": LEVEL_BOUND,
        "float16": FLOAT_BOUND + HALF_ROUNDING * float(np.abs(expected.astype(np.float64)).max()),
        # Hidden states are of one size; sums of squares are not.
        "float32": FLOAT_BOUND * (max(1.0, float(np.abs(expected).max())) if tensor == contract.NORM_SUMS else 1),
    }[tensor.dtype]
    return measured(graph, tensor, expected, actual, Bounds(bound, float("inf")))


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
    if tensor == contract.NORM_SUMS:  # a mean near 0, and a mean square: of less than all rows
        return np.stack((rng.normal(0, 0.1, shape[:-1]), rng.uniform(0.1, 0.5, shape[:-1])), axis=-1).astype(np.float32)
    return rng.standard_normal(shape).astype(tensor.dtype)
