"""Group norms of FP16 graphs, for ONNX Runtime on a GPU: the norm's own operator on FP16, without casts around it.

A graph has a group norm as Cast, Reshape, InstanceNormalization, Reshape, Mul, Add, Cast, in float32 between the casts.
TensorRT is meant to fuse all that. ONNX Runtime runs every operator by itself, so that each norm moves three times
the bytes it must; its InstanceNormalization sums in float32 whatever it is given.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

CHAIN = ("Reshape", "InstanceNormalization", "Reshape", "Mul", "Add", "Cast")
SUFFIX = "/fp16"


def narrow_norms(model: onnx.ModelProto, folder: Path) -> int:
    """Take the casts around the group norms of a graph away, in place; returns how many norms there were. folder: where
    weights outside of the graph's own file lie."""
    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    users: dict[str, list[NodeProto]] = {}
    nodes, gone = list(graph.node), []  # one object for each node, which protobuf makes anew at each look
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    narrowed: dict[str, str] = {}
    for first in nodes:
        chain = _chain(first, users)
        if chain is None:
            continue
        for node in chain[:-1]:
            for place, name in enumerate(node.input):
                if name in constants and constants[name].data_type == TensorProto.FLOAT:
                    node.input[place] = narrowed.setdefault(name, name + SUFFIX)
        chain[0].input[0] = first.input[0]
        chain[-2].output[0] = chain[-1].output[0]
        gone += [id(first), id(chain[-1])]
    kept = [node for node in nodes if id(node) not in gone]
    for name, narrow in narrowed.items():
        graph.initializer.append(numpy_helper.from_array(_values(constants[name], folder).astype(np.float16), narrow))
    used = {name for node in kept for name in node.input} | {output.name for output in graph.output}
    stay = [constant for constant in graph.initializer if constant.name in used]
    for field, content in ((graph.node, kept), (graph.initializer, stay)):
        del field[:]
        field.extend(content)
    del graph.value_info[:]  # of types that are others now
    return len(gone) // 2


def _chain(first: NodeProto, users: dict[str, list[NodeProto]]) -> list[NodeProto] | None:
    """The operators of a norm behind its cast to float32, or None if this is another cast."""
    if not _casts(first, TensorProto.FLOAT):
        return None
    chain, name = [], first.output[0]
    for kind in CHAIN:
        following = users.get(name, [])
        if len(following) != 1 or following[0].op_type != kind:
            return None
        chain.append(following[0])
        name = following[0].output[0]
    return chain if _casts(chain[-1], TensorProto.FLOAT16) else None


def _values(constant: TensorProto, folder: Path) -> NDArray[np.float32]:
    """A float32 constant, in the graph or beside it. onnx reads no file that has two names, as served weights have."""
    if constant.data_location != TensorProto.EXTERNAL:
        return np.asarray(numpy_helper.to_array(constant), np.float32)
    place = {entry.key: entry.value for entry in constant.external_data}
    start, count = int(place.get("offset", 0)), int(np.prod(constant.dims))
    values = np.fromfile(folder / Path(place["location"]).name, "<f4", count, offset=start)
    return values.reshape(constant.dims)


def _casts(node: NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and bool(helper.get_node_attr_value(node, "to") == to)
