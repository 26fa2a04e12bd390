"""ONNX graphs from torch modules: the contract's names, a dynamic batch axis, the weights' identity as metadata.

Knows which module stands behind which model of the contract; does not know whether the result is right (`verify`).
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from export.modules import FaceDecoder, FaceEncoder, UNetStep
from export.networks import Networks
from lipserve import contract

TRACED_BATCH = 2  # torch.export would take a batch of 1 for a constant


@dataclass(frozen=True)
class Graph:
    """One graph to be: a module and the tensors that go in and come out of it."""

    model: contract.Model
    module: nn.Module

    @property
    def name(self) -> str:
        """The model's name in the contract."""
        return self.model.name


def graphs(networks: Networks) -> tuple[Graph, ...]:
    """Every graph that the profile exports, the audio encoder's last."""
    return (
        Graph(contract.UNET, UNetStep(networks.unet)),
        Graph(contract.VAE_DECODER, FaceDecoder(networks.vae)),
        Graph(contract.VAE_ENCODER, FaceEncoder(networks.vae)),
        Graph(contract.AUDIO_ENCODER, networks.audio_encoder),
    )


def write_graph(graph: Graph, path: Path, weights_id: str) -> None:
    """Export `graph` to the single file `path`, checked by `onnx.checker`; float32 inside."""
    inputs, outputs = graph.model.inputs, graph.model.outputs
    batch = torch.export.Dim("n", min=1, max=contract.MAX_BATCH_SIZE)
    examples = tuple(torch.zeros(TRACED_BATCH, *t.shape, dtype=getattr(torch, t.dtype)) for t in inputs)
    with _quiet_exporter():
        program = torch.onnx.export(
            graph.module.eval(),
            examples,
            input_names=[t.name for t in inputs],
            output_names=[t.name for t in outputs],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            dynamo=True,
            optimize=False,  # keeps every weight under its own name; ONNX Runtime optimises when it loads
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[contract.WEIGHTS_ID] = weights_id
    program.save(path, external_data=False)
    onnx.checker.check_model(path, full_check=True)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's advice about its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
