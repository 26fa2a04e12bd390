"""A model of Triton's Python backend that takes a fixed time, sleeping, and answers with the faces it is given.

Copied as `model.py` into a repository by benchmarks/fixed_time.py, so it imports nothing of the project.
"""

import ctypes
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

CONSUMED = b"used_dltensor"  # see export/triton_model.py


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.input, self.output = config["input"][0]["name"], config["output"][0]["name"]
        self.seconds = float(config["parameters"]["seconds_per_frame"]["string_value"])
        self.file = Path(args["model_repository"]) / args["model_version"] / "faces.npy"
        self.faces: np.ndarray | None = None

    def execute(self, requests: list[Any]) -> list[Any]:
        """One request after another, each as long as its frames take."""
        responses = []
        for request in requests:
            start = time.monotonic()
            if self.faces is None:  # written after the avatar was prepared with this server
                self.faces = np.load(self.file)
            frames = pb_utils.get_input_tensor_by_name(request, self.input).shape()[0]
            capsule = self.faces[:frames].__dlpack__()
            tensor = pb_utils.Tensor.from_dlpack(self.output, capsule)
            ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), CONSUMED)
            responses.append(pb_utils.InferenceResponse([tensor]))
            time.sleep(max(0.0, frames * self.seconds - (time.monotonic() - start)))
        return responses
