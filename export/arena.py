"""Graphs as ONNX Runtime serves them on a GPU: the batch axis without a name, group norms without casts.

ONNX Runtime plans before it runs which tensor gets the memory of which earlier one: those whose shapes are sure to be
equal, which the name of the batch axis is what tells. Such memory is not given back in between, so every size of tensor
keeps its own share of the arena to the end of a run. With an axis that is merely unknown, each tensor is given back
after its last use, and the arena fits the next one in. `benchmarks/arena.py` measures both. For the norms see `norms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto

from export.norms import narrow_norms


def write_for_onnxruntime(source: Path, destination: Path) -> None:
    """Copy an ONNX file without the names of its tensors' axes, and without casts around its FP16 group norms. Weights
    in a file beside it are not copied."""
    model = onnx.load(source, load_external_data=False)
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for axis in value.type.tensor_type.shape.dim:
                if axis.HasField("dim_param"):
                    axis.ClearField("dim_param")
    narrow_norms(model, source.parent)
    onnx.save(model, destination)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all that its nodes have inside."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                yield from graphs(inner)
