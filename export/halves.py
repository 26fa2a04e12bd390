"""Graphs made small: weights FP16 in the file and FP32 in the graph, and none of the exporter's notes.

A constant whose every value FP16 can say exactly is stored so, behind a Cast; ONNX Runtime folds the Cast when it
loads the graph. Nothing is rounded here, so the graph computes what it did. The notes tell which line of Python each
node came from, and are half of a small network's file.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SUFFIX = "/half"  # of the stored constant's name; the Cast's output has the constant's own
SMALLEST = 32  # elements, below which a Cast costs more than it saves


def make_small(path: Path) -> None:
    """Rewrite the ONNX file, in place."""
    model = onnx.load(path)
    casts = []
    for constant in model.graph.initializer:
        if constant.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(constant)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size >= SMALLEST and np.array_equal(half.astype(np.float32), values):
            name = constant.name
            constant.CopyFrom(numpy_helper.from_array(half, name + SUFFIX))
            casts.append(helper.make_node("Cast", [name + SUFFIX], [name], f"{name}/cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for noted in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, model.graph):
        del noted.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def stored_weights(path: Path) -> dict[str, np.ndarray]:
    """The constants of an ONNX file by the name that they had, float32 of any shape; whole numbers are left out."""
    found = {}
    for constant in onnx.load(path).graph.initializer:
        if constant.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            found[constant.name.removesuffix(SUFFIX)] = numpy_helper.to_array(constant).astype(np.float32)
    return found
