"""A model of Triton's Python backend that costs next to nothing. Each frame it gives is filled with the first value of
the frame it got, so that an answer tells which request it belongs to.

Copied as `model.py` into a repository by benchmarks/stress.py, so it imports nothing of the project.
"""

import ctypes
import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

CONSUMED = b"used_dltensor"  # see export/triton_model.py


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        (output,) = config["output"]
        self.input, self.output = config["input"][0]["name"], output["name"]
        self.shape = tuple(map(int, output["dims"]))
        self.dtype = pb_utils.triton_string_to_numpy(output["data_type"])
        self.seconds = float(config["parameters"]["seconds_per_batch"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            given = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, self.input))
            marks = given.reshape(len(given), -1)[:, :1].astype(self.dtype)
            frames = np.repeat(marks, np.prod(self.shape), axis=1).reshape(len(given), *self.shape)
            capsule = frames.__dlpack__()
            tensor = pb_utils.Tensor.from_dlpack(self.output, capsule)
            ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), CONSUMED)
            responses.append(pb_utils.InferenceResponse([tensor]))
        time.sleep(self.seconds)
        return responses
