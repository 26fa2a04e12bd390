"""Every rendered configuration and every exported graph against the contract."""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from lipserve import contract

SERVED = tuple(model for model in contract.MODELS if model is not contract.LIPSYNC)
LARGEST = {"unet": 16, "vae_decoder": 16, "vae_encoder": 8, "lipsync": 16}
ONNX_TYPES = {"tensor(float16)": "float16", "tensor(float)": "float32", "tensor(uint8)": "uint8"}


def config(exported: Path, model: contract.Model) -> model_config_pb2.ModelConfig:
    text = (exported / "model_repository/cpu" / model.name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def session(exported: Path, model: contract.Model) -> onnxruntime.InferenceSession:
    path = exported / "model_repository/cpu" / model.name / "1/model.onnx"
    if model is contract.AUDIO_ENCODER:
        path = exported / "models/demo/audio_encoder.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def weights_id(exported: Path) -> str:
    return session(exported, contract.AUDIO_ENCODER).get_modelmeta().custom_metadata_map[contract.WEIGHTS_ID]


def described(tensors: Sequence[contract.Tensor]) -> list[tuple[str, str, list[int]]]:
    return [(tensor.name, f"TYPE_{tensor.triton_dtype}", list(tensor.shape)) for tensor in tensors]


def test_the_repository_holds_the_contracts_models_and_nothing_else(exported: Path) -> None:
    found = {path.name for path in (exported / "model_repository/cpu").iterdir()}
    assert found == {model.name for model in contract.MODELS}


@pytest.mark.parametrize("model", contract.MODELS, ids=lambda model: model.name)
def test_config_agrees(exported: Path, model: contract.Model) -> None:
    parsed = config(exported, model)
    type_name = model_config_pb2.DataType.Name
    assert parsed.name == model.name
    assert parsed.max_batch_size == LARGEST[model.name]
    assert [(t.name, type_name(t.data_type), list(t.dims)) for t in parsed.input] == described(model.inputs)
    assert [(t.name, type_name(t.data_type), list(t.dims)) for t in parsed.output] == described(model.outputs)
    assert parsed.parameters[contract.WEIGHTS_ID].string_value == weights_id(exported)


@pytest.mark.parametrize("model", SERVED, ids=lambda model: model.name)
def test_config_runs_the_graph_on_the_cpu_in_batches(exported: Path, model: contract.Model) -> None:
    parsed = config(exported, model)
    (group,) = parsed.instance_group
    assert parsed.backend == "python"
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)
    assert list(parsed.dynamic_batching.preferred_batch_size) == [8, 16][: 1 if model is contract.VAE_ENCODER else 2]
    assert 0 < parsed.dynamic_batching.max_queue_delay_microseconds < 40_000  # less than a frame at 25 a second
    assert int(parsed.parameters["intra_op_threads"].string_value) > 0


def test_the_ensemble_is_the_unet_then_the_decoder(exported: Path) -> None:
    parsed = config(exported, contract.LIPSYNC)
    steps = parsed.ensemble_scheduling.step
    assert parsed.platform == "ensemble"
    assert [step.model_name for step in steps] == [contract.UNET.name, contract.VAE_DECODER.name]
    assert all(step.model_version == -1 for step in steps)
    for step, model in zip(steps, (contract.UNET, contract.VAE_DECODER), strict=True):
        assert dict(step.input_map) == {tensor.name: tensor.name for tensor in model.inputs}
        assert dict(step.output_map) == {tensor.name: tensor.name for tensor in model.outputs}
    assert list((exported / "model_repository/cpu" / contract.LIPSYNC.name / "1").iterdir()) == []


@pytest.mark.parametrize("model", (*SERVED, contract.AUDIO_ENCODER), ids=lambda model: model.name)
def test_graph_agrees(exported: Path, model: contract.Model) -> None:
    graph = session(exported, model)
    for found, wanted in ((graph.get_inputs(), model.inputs), (graph.get_outputs(), model.outputs)):
        assert [tensor.name for tensor in found] == [tensor.name for tensor in wanted]
        assert [ONNX_TYPES[tensor.type] for tensor in found] == [tensor.dtype for tensor in wanted]
        assert [tuple(tensor.shape[1:]) for tensor in found] == [tensor.shape for tensor in wanted]
        assert all(isinstance(tensor.shape[0], str) for tensor in found)  # a named, dynamic batch axis
    assert graph.get_modelmeta().custom_metadata_map[contract.WEIGHTS_ID] == weights_id(exported)
