"""ONNX graphs from torch modules: the contract's names, a dynamic batch axis, the weights' identity as metadata.

Weights above `EXTERNAL_ABOVE` lie beside the graph, in `<name>.onnx.data`. Knows which module stands behind which model
of the contract; does not know whether the result is right (`verify`).
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from diffusers import AutoencoderKL
from torch import nn

from export.bundle import DATA_SUFFIX, DECODER
from export.constant_shapes import write_shapes_out
from export.lower import LowerDecoder, NormSums
from export.modules import FaceDecoder, FaceEncoder, UNetStep
from export.networks import Networks
from export.profiles import LOWER, SD_VAE, TAESD
from lipserve import contract

TRACED_BATCH = 2  # torch.export would take a batch of 1 for a constant
EXTERNAL_ABOVE = 500_000_000  # bytes: protobuf ends at 2 GiB, and a reader holds what is inside the graph twice
OPSET = 18  # of the graphs for GPUs: read by every ONNX Runtime and TensorRT in use


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
        *decoders(networks),
        Graph(contract.VAE_ENCODER, FaceEncoder(networks.vae)),
        Graph(contract.AUDIO_ENCODER, networks.audio_encoder),
    )


def decoders(networks: Networks) -> tuple[Graph, ...]:
    """What draws the faces, and what makes the sums that it needs if it draws only their lower rows."""
    if not networks.lower:
        return (Graph(contract.VAE_DECODER, FaceDecoder(networks.decoder or networks.vae)),)
    assert isinstance(networks.vae, AutoencoderKL)
    return (
        Graph(contract.LOWER_DECODER, LowerDecoder(networks.vae)),
        Graph(contract.REFERENCE_SUMS, NormSums(networks.vae)),
    )


def metadata(networks: Networks) -> dict[str, str]:
    """What every graph of a profile says about itself."""
    decoder = LOWER if networks.lower else TAESD if networks.decoder else SD_VAE
    notes = {contract.WEIGHTS_ID: networks.weights_id}
    return notes if decoder == SD_VAE else notes | {DECODER: decoder}


def write_graph(graph: Graph, path: Path, notes: str | Mapping[str, str], folded: bool = False) -> None:
    """Export `graph` to `path`, checked by `onnx.checker`. notes: metadata, or the weights' identity alone.

    folded: constants computed and what no GPU runs (sequences) written otherwise. Without, every weight keeps its own
    name, and ONNX Runtime does that work when it loads the graph.
    """
    inputs, outputs = graph.model.inputs, graph.model.outputs
    batch = torch.export.Dim("n", min=1)  # what is too much at once says Triton's configuration
    examples = tuple(torch.zeros(TRACED_BATCH, *t.shape, dtype=getattr(torch, t.dtype)) for t in inputs)
    with _quiet_exporter():
        program = torch.onnx.export(
            graph.module.eval(),
            examples,
            input_names=[t.name for t in inputs],
            output_names=[t.name for t in outputs],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            dynamo=True,
            optimize=folded,
            opset_version=OPSET if folded else None,
            verbose=False,
        )
        assert program is not None
        if folded:
            write_shapes_out(program.model)
        program.model.metadata_props.update({contract.WEIGHTS_ID: notes} if isinstance(notes, str) else notes)
        large = weight_bytes(graph.module) > EXTERNAL_ABOVE
        program.save(path, external_data=large)
    if large:
        written = path.with_name(path.name + DATA_SUFFIX)
        assert written.is_file(), written
    # A large graph's full check would load its weights; its types and shapes are inferred when its memory is counted.
    onnx.checker.check_model(path, full_check=not large)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


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
