"""Reshapes to constant shapes, in a graph whose only unknown axis is the batch. Knows `onnx_ir`, and no file.

The exporter computes a shape from its input's wherever the batch is in it: three to six operators on the CPU for every
norm and attention, between which a GPU waits.
"""

import numpy as np
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

SUFFIX = "/shape"


def write_shapes_out(model: onnx_ir.Model) -> None:
    """Give every Reshape whose output has one unknown axis a constant shape, in place; drop what computed it."""
    for node in model.graph:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].is_initializer():
            continue
        # The exporter notes no shape behind a norm's, but takes it from the tensor that was there before.
        source = node.inputs[1].producer()
        like = source.inputs[0] if source is not None and source.op_type == "Shape" else node.outputs[0]
        axes = [axis if isinstance(axis, int) else -1 for axis in (like and like.shape) or ()]
        if not axes or axes.count(-1) > 1 or 0 in axes:
            continue
        tensor = onnx_ir.tensor(np.array(axes, np.int64), name=f"{node.outputs[0].name}{SUFFIX}")
        constant = onnx_ir.Value(
            name=tensor.name,
            shape=onnx_ir.Shape([len(axes)]),
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        model.graph.register_initializer(constant)
        node.replace_input_with(1, constant)
    RemoveUnusedNodesPass()(model)
