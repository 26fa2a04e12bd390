"""A model of Triton's Python backend: the ONNX graph that lies beside this file, run by ONNX Runtime on the CPU.

Copied as `model.py` into each model's version folder, so it imports nothing of the project. Everything it knows comes
from the model's own `config.pbtxt`: the names and dtypes of its tensors, and the parameter `intra_op_threads`.

Tensors cross into and out of Triton as DLPack. Triton's own conversion from and to NumPy, as of 2.51, knows the array
layout of NumPy 1 only: under NumPy 2 it hands out inputs with wrong strides and sends outputs of no bytes, silently.
"""

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

CONSUMED = b"used_dltensor"  # DLPack's name for a capsule whose tensor has a new owner


class TritonPythonModel:
    """One instance of the model; the batches that Triton forms run one after another."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and run it once, so that the first request finds it warm."""
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(graph, session_options(config), ["CPUExecutionProvider"])
        self.session.run(self.outputs, {tensor["name"]: zeros(tensor) for tensor in config["input"]})

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of requests with one run; a request that cannot be read fails alone."""
        responses: list[Any] = [None] * len(requests)
        readable: list[tuple[int, list[np.ndarray]]] = []
        for index, request in enumerate(requests):
            try:
                readable.append((index, self.read(request)))
            except Exception as error:
                responses[index] = failure(error)
        if readable:
            try:
                answers = self.run([arrays for _, arrays in readable])
            except Exception as error:
                answers = [failure(error) for _ in readable]
            for (index, _), answer in zip(readable, answers, strict=True):
                responses[index] = answer
        return responses

    def read(self, request: Any) -> list[np.ndarray]:
        """The arrays of one request, in the order of the configuration, each (n, ...) with the same n."""
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        missing = [name for name, tensor in tensors.items() if tensor is None]
        if missing:
            raise ValueError(f"missing input {', '.join(missing)}")
        arrays = [np.from_dlpack(tensor) for tensor in tensors.values()]
        if len({len(array) for array in arrays}) != 1:
            raise ValueError("the inputs have different batch sizes")
        return arrays

    def run(self, batch: list[list[np.ndarray]]) -> list[Any]:
        """Run the requests' arrays as one batch and cut the outputs apart again, one response per request."""
        joined = [np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*batch, strict=True)]
        outputs = self.session.run(self.outputs, dict(zip(self.inputs, joined, strict=True)))
        ends = np.cumsum([len(arrays[0]) for arrays in batch])
        parts = zip(*(np.split(output, ends[:-1]) for output in outputs), strict=True)
        return [self.response(part) for part in parts]

    def response(self, arrays: Sequence[np.ndarray]) -> Any:
        """The response to one request, its outputs in the order of the configuration."""
        return pb_utils.InferenceResponse(list(map(to_triton, self.outputs, arrays)))


def session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    """Threads as configured; they sleep when idle, because several models share the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(config["parameters"]["intra_op_threads"]["string_value"])
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def zeros(tensor: dict[str, Any]) -> np.ndarray:
    """A batch of one, all zero, for one input of the configuration."""
    return np.zeros((1, *map(int, tensor["dims"])), pb_utils.triton_string_to_numpy(tensor["data_type"]))


def to_triton(name: str, array: np.ndarray) -> Any:
    """A tensor of Triton's over the memory of `array`."""
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # Triton marks the capsule with a name of its own; NumPy would complain of it in the log each time one is dropped.
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), CONSUMED)
    return tensor


def failure(error: Exception) -> Any:
    """The response to a request that failed."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))
