"""Every graph is exported, and verified, once in a run of the tests: what is asked for again is copied.

Exporting takes seconds a graph, whatever its size, and several tests start from the same networks. The same is: a
module of the same structure, configuration and weights, written the same way. The notes in a file are each one's own.
"""

import gc
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import onnx
import pytest
from torch import nn

from export import onnx_graphs, samples, verify
from export.bundle import data_file
from export.gate import Check
from export.onnx_graphs import Graph

_folder = tempfile.TemporaryDirectory(prefix="lipserve-exports-")
_checks: dict[str, list[Check]] = {}


@contextmanager
def remembered() -> Iterator[None]:
    """Meanwhile `write_graph` and `verify` work on what they have not seen yet, and samples are drawn once."""
    export, check = onnx_graphs.write_graph, verify.verify

    def write_graph(graph: Graph, path: Path, notes: str | dict[str, str], folded: bool = False) -> None:
        large = onnx_graphs.weight_bytes(graph.module) > onnx_graphs.EXTERNAL_ABOVE
        kept = Path(_folder.name) / digest(graph.module, str(folded), str(large)) / path.name
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            gc.disable()  # a sixth of an export
            try:
                export(graph, kept, "", folded)
            finally:
                gc.enable()
        model = onnx.load(kept, load_external_data=False)
        onnx.helper.set_model_props(
            model, {onnx_graphs.contract.WEIGHTS_ID: notes} if isinstance(notes, str) else notes
        )
        onnx.save(model, path)
        if data_file(kept).is_file():
            shutil.copyfile(data_file(kept), data_file(path))

    def verified(graph: Graph, path: Path) -> list[Check]:
        model = onnx.load(path)
        del model.metadata_props[:]
        bounds = f"{verify.FLOAT_BOUND} {verify.HALF_ROUNDING} {verify.LEVEL_BOUND}"
        key = digest(graph.module, hashlib.sha256(model.SerializeToString()).hexdigest(), bounds)
        if key not in _checks:
            _checks[key] = check(graph, path)
        return _checks[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graphs, "write_graph", write_graph)
        patch.setattr(verify, "verify", verified)
        patch.setattr(samples, "crops", cache(samples.crops))  # always the same, and drawn in two seconds
        yield


def digest(module: nn.Module, *more: str) -> str:
    """Of all that makes a module what it is."""
    parts = [type(module).__qualname__, str(module), str(getattr(module, "scaling_factor", "")), *more]
    parts += [str(getattr(inner, "config", "")) for inner in module.modules()]
    sha = hashlib.sha256("\n".join(parts).encode())
    for name, tensor in module.state_dict().items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()
