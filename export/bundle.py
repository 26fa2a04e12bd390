"""The graphs of a profile as they lie on disk: ONNX files that must belong together.

    models/<profile>/unet.onnx, vae_decoder.onnx, vae_encoder.onnx, audio_encoder.onnx
    models/<profile>/fp16/unet.onnx, vae_decoder.onnx       what a GPU runs in their place
    models/<profile>/[fp16/]reference_sums.onnx             with the decoder of the lower rows
    …/<name>.onnx.data                                      weights too large for the graph's own file

Knows how to find and check them, with ONNX Runtime alone: no torch is needed to serve what is already a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from export.errors import GraphsMissing, GraphUnfit
from export.profiles import FP16, FP32, LOWER, SD_VAE
from lipserve import contract

DATA_SUFFIX = ".data"
DECODER = "decoder"  # key, in the graphs' metadata, of a decoder in the place of the VAE's own
# Those that exist in FP16: what runs once per frame of every request, and what must compute as that does.
HALVED = (contract.UNET.name, contract.VAE_DECODER.name, contract.REFERENCE_SUMS.name)


@dataclass(frozen=True)
class Bundle:
    """A profile's graphs, checked. `files`: by model name."""

    files: dict[str, Path]
    weights_id: str


def graph_file(folder: Path, model: contract.Model, precision: str = FP32) -> Path:
    """Where a model's graph lies in a profile's folder."""
    return (folder / FP16 if precision == FP16 and model.name in HALVED else folder) / f"{model.name}.onnx"


def data_file(graph: Path) -> Path:
    """Where the weights of a large graph lie; of a small one there is no such file."""
    return graph.with_name(graph.name + DATA_SUFFIX)


def graph_models(decoder: str) -> tuple[contract.Model, ...]:
    """The models that are a graph, with a decoder of DECODERS; the audio encoder's, which is not Triton's, is last."""
    drawing = (contract.LOWER_DECODER, contract.REFERENCE_SUMS) if decoder == LOWER else (contract.VAE_DECODER,)
    return (contract.UNET, *drawing, contract.VAE_ENCODER, contract.AUDIO_ENCODER)


def decoder_of(graph: Path) -> str:
    """What a profile's graph of the decoder draws with, as it says itself. Raises GraphUnfit."""
    try:
        notes = open_graph(graph).get_modelmeta().custom_metadata_map
    except Exception as exc:  # ONNX Runtime's own exceptions share no base but this
        raise GraphUnfit(str(graph), f"cannot be opened: {exc}") from exc
    return str(notes.get(DECODER, SD_VAE))


def find_graphs(folder: Path, precision: str = FP32) -> tuple[dict[str, Path], str]:
    """A profile's graphs by model name, and their decoder; only the decoder's is opened. Raises GraphsMissing and
    GraphUnfit."""
    files = _require(folder, precision, SD_VAE)
    decoder = decoder_of(files[contract.VAE_DECODER.name])
    return _require(folder, precision, decoder), decoder


def _require(folder: Path, precision: str, decoder: str) -> dict[str, Path]:
    files = {model.name: graph_file(folder, model, precision) for model in graph_models(decoder)}
    missing = [str(file.relative_to(folder)) for file in files.values() if not file.is_file()]
    if missing:
        raise GraphsMissing(folder, missing)
    return files


def read_bundle(folder: Path, precision: str = FP32) -> Bundle:
    """Find and check a profile's graphs. Raises GraphsMissing and GraphUnfit."""
    files, decoder = find_graphs(folder, precision)
    ids = {model.name: _check(model, files[model.name]) for model in graph_models(decoder)}
    (weights_id, *others) = dict.fromkeys(ids.values())
    if others:
        raise GraphUnfit("The graphs", f"are of different weights: {ids}")
    return Bundle(files, weights_id)


def is_exported(folder: Path, precision: str, decoder: str) -> bool:
    """Whether a profile's graphs are all there, with the decoder asked for."""
    try:
        return find_graphs(folder, precision)[1] == decoder
    except (GraphsMissing, GraphUnfit):
        return False


def open_graph(path: Path, large: bool | None = None) -> onnxruntime.InferenceSession:
    """A session on the CPU. Large graphs, by default those with a file of weights, run as they are: optimising and
    packing would hold their weights thrice."""
    options = onnxruntime.SessionOptions()
    if large if large is not None else data_file(path).is_file():
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _check(model: contract.Model, file: Path) -> str:
    """Hold a graph against the contract and run it once; returns the identity of its weights."""
    try:
        session = open_graph(file)
    except Exception as exc:  # ONNX Runtime's own exceptions share no base but this
        raise GraphUnfit(str(file), f"cannot be opened: {exc}") from exc
    for words, found, tensors in (
        ("inputs", session.get_inputs(), model.inputs),
        ("outputs", session.get_outputs(), model.outputs),
    ):
        has = {node.name: (node.type, tuple(node.shape[1:])) for node in found}
        wants = {tensor.name: (_onnx_type(tensor), tensor.shape) for tensor in tensors}
        if has != wants:
            raise GraphUnfit(str(file), f"has the {words} {has}; the contract asks for {wants}")
    zeros = {tensor.name: np.zeros((1, *tensor.shape), tensor.dtype) for tensor in model.inputs}
    if not all(np.isfinite(output).all() for output in session.run(None, zeros)):
        raise GraphUnfit(str(file), "answers zeros with what is not a number")
    weights_id = session.get_modelmeta().custom_metadata_map.get(contract.WEIGHTS_ID, "")
    if not weights_id:
        raise GraphUnfit(str(file), f"does not say whose weights it holds: metadata {contract.WEIGHTS_ID!r}")
    return str(weights_id)


def _onnx_type(tensor: contract.Tensor) -> str:
    return {"float16": "tensor(float16)", "float32": "tensor(float)", "uint8": "tensor(uint8)"}[tensor.dtype]


def sizes(bundle: Bundle) -> Iterator[tuple[Path, int]]:
    """Each file with its bytes."""
    for file in bundle.files.values():
        yield file, file.stat().st_size
        if data_file(file).is_file():
            yield data_file(file), data_file(file).stat().st_size
