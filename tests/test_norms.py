"""Group norms without casts: which chains are taken, and that they compute what they did."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.norms import narrow_norms

CHANNELS, GROUPS = 8, 4


def norm(casts_back: bool = True, also_used: bool = False) -> onnx.ModelProto:
    """x FP16 (n, 8, 4, 4) -> y: a group norm between casts, as the exporter writes it."""
    rng = np.random.default_rng(0)

    def constant(name: str, values: np.ndarray) -> TensorProto:
        return numpy_helper.from_array(values, name)

    weights = [
        constant("groups", np.array([0, GROUPS, -1])),
        constant("whole", np.array([-1, CHANNELS, 4, 4])),
        constant("ones", np.ones(GROUPS, np.float32)),
        constant("zeros", np.zeros(GROUPS, np.float32)),
        constant("weight", rng.standard_normal((CHANNELS, 1, 1)).astype(np.float32)),
        constant("bias", rng.standard_normal((CHANNELS, 1, 1)).astype(np.float32)),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["wide", "groups"], ["grouped"]),
        helper.make_node("InstanceNormalization", ["grouped", "ones", "zeros"], ["normed"], epsilon=1e-6),
        helper.make_node("Reshape", ["normed", "whole"], ["back"]),
        helper.make_node("Mul", ["back", "weight"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["moved"]),
        helper.make_node("Cast", ["moved"], ["y"], to=TensorProto.FLOAT16 if casts_back else TensorProto.DOUBLE),
    ]
    kind = TensorProto.FLOAT16 if casts_back else TensorProto.DOUBLE
    outputs = [helper.make_tensor_value_info("y", kind, ["n", CHANNELS, 4, 4])]
    if also_used:
        outputs.append(helper.make_tensor_value_info("square", TensorProto.FLOAT, ["n", CHANNELS, 4, 4]))
        nodes.append(helper.make_node("Mul", ["wide", "wide"], ["square"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", CHANNELS, 4, 4])]
    graph = helper.make_graph(nodes, "norm", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(["y"], {"x": x})[0]
    return answer


def test_the_casts_go_and_the_values_stay(tmp_path: Path) -> None:
    x = (100 + 7 * np.random.default_rng(1).standard_normal((3, CHANNELS, 4, 4))).astype(np.float16)
    model = norm()
    before = run(model, x)
    assert narrow_norms(model, tmp_path) == 1
    onnx.checker.check_model(model, full_check=True)
    kinds = ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add"]
    assert [node.op_type for node in model.graph.node] == kinds
    types = Counter(constant.data_type for constant in model.graph.initializer)
    assert types == {TensorProto.INT64: 2, TensorProto.FLOAT16: 4}
    after = run(model, x)
    assert after.dtype == np.float16
    assert np.abs(after.astype(float) - before.astype(float)).max() <= 2**-9 * np.abs(before).max()


def test_weights_in_a_file_of_their_own_are_found(tmp_path: Path) -> None:
    model = norm()
    expected = run(model, np.ones((1, CHANNELS, 4, 4), np.float16))
    onnx.save(model, tmp_path / "norm.onnx", save_as_external_data=True, location="norm.data", size_threshold=0)
    (tmp_path / "other.data").hardlink_to(tmp_path / "norm.data")  # as the weights of a model repository
    outside = onnx.load(tmp_path / "norm.onnx", load_external_data=False)
    assert narrow_norms(outside, tmp_path) == 1
    onnx.save(outside, tmp_path / "narrow.onnx")
    (tmp_path / "other.data").unlink()
    found = run(onnx.load(tmp_path / "narrow.onnx"), np.ones((1, CHANNELS, 4, 4), np.float16))
    assert np.allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("other", [{"casts_back": False}, {"also_used": True}], ids=["another type", "used elsewhere"])
def test_what_is_no_such_norm_stays(other: dict[str, bool], tmp_path: Path) -> None:
    model = norm(**other)
    before = model.SerializeToString()
    assert narrow_norms(model, tmp_path) == 0
    assert [node.op_type for node in model.graph.node] == [
        node.op_type for node in onnx.load_model_from_string(before).graph.node
    ]
