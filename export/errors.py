"""Everything an export can refuse to do.

ExportError
├── UnknownTarget         no such deployment target
├── UnknownProfile        no such set of weights
├── UnknownDecoder        no such decoder
├── ExportRefused         a graph does not compute what its torch module computes
├── LowerDecoderOff       the decoder of the lower rows is too far from the whole one
├── HeadroomLacking       a network's activations come too near the end of FP16
├── GraphsMissing         a profile's folder lacks graphs
├── GraphUnfit            a graph on disk is not what the contract asks for
├── WeightsMissing        a profile's weight files are not there
├── ConfigUnfit           a network's configuration file is not what the contract asks for
├── CheckpointUnreadable  a file of weights is missing, cut off, or no state dict
├── StateUnfit            weights that do not belong into a network
├── EngineUnavailable     TensorRT or a GPU is not there, or of another version
│   └── GpuUnavailable    no NVIDIA GPU, or a driver that is too old
├── GpuFailed             the GPU has no memory left, or refused a call
├── EngineFailed          TensorRT could not build an engine
└── ServerUnavailable     a Triton does not answer, or lacks the models
"""

from collections.abc import Iterable
from pathlib import Path


class ExportError(Exception):
    """Base of this package's errors; the message is meant for the person at the terminal."""


class UnknownTarget(ExportError):
    """The target asked for is not one of those that exist."""

    def __init__(self, target: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown target {target!r}; targets that exist: {', '.join(known)}")


class UnknownProfile(ExportError):
    """The profile asked for is not one of those that exist."""

    def __init__(self, profile: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown profile {profile!r}; profiles that exist: {', '.join(known)}")


class UnknownDecoder(ExportError):
    """The decoder asked for is not one of those that exist."""

    def __init__(self, decoder: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown decoder {decoder!r}; decoders that exist: {', '.join(known)}")


class ExportRefused(ExportError):
    """An exported graph is further from torch than its bound allows, or says something that is not a number."""

    def __init__(self, graph: str, batch: int, frame: int, error: float, bound: float, which: str = "maximum") -> None:
        """frame: which of the batch is off, from 0."""
        super().__init__(
            f"graph {graph!r} refused at batch {batch}, frame {frame}: {which} error {error:.3g} is over {bound:.3g}"
        )
        self.graph, self.batch, self.frame, self.error, self.bound = graph, batch, frame, error, bound


class LowerDecoderOff(ExportError):
    """The decoder that draws only the lower rows draws other ones than the whole decoder."""

    def __init__(self, decibels: float, least: float) -> None:
        super().__init__(
            f"the lower rows of faces are {decibels:.1f} dB from what the whole decoder draws, and {least:g} are asked "
            f"for: with these weights use --decoder sd-vae"
        )
        self.decibels = decibels


class HeadroomLacking(ExportError):
    """Activations of a layer that, times the headroom asked for, FP16 cannot say."""

    def __init__(self, graph: str, layer: str, largest: float, headroom: float, end: float) -> None:
        super().__init__(
            f"graph {graph!r} reaches {largest:.0f} in float32 at its layer {layer}, and {headroom:g} times that is "
            f"over the {end:.0f} of FP16. Other faces and voices are louder than the export's four samples: how many "
            f"times, --headroom says (default 4, at least 1). With a smaller one the graph goes on to the comparison "
            f"with float32, which still decides: python -m export --headroom 2 …"
        )
        self.graph, self.layer, self.largest = graph, layer, largest


class GraphsMissing(ExportError):
    """A profile's folder is not there or lacks graphs."""

    def __init__(self, folder: Path, missing: Iterable[str]) -> None:
        super().__init__(
            f"{folder} lacks {', '.join(missing)}. The demo profile's graphs come with the repository (git checkout "
            f"models/demo) and are trained anew by: python -m export.training all. Those of MuseTalk are written by: "
            f"python -m export --profile musetalk-v15"
        )


class WeightsMissing(ExportError):
    """Files of a profile's weights are not there."""

    def __init__(self, profile: str, missing: Iterable[Path]) -> None:
        super().__init__(
            f"profile {profile!r} needs weights that are not there: {', '.join(map(str, missing))}. "
            f"lipserve models status says what is there, lipserve models fetch brings what is not"
        )


class ConfigUnfit(ExportError):
    """A configuration file beside the weights that cannot be read, or describes a network that cannot be served."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}")


class EngineUnavailable(ExportError):
    """What building a TensorRT engine takes is not on this machine. Raised before any work."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(f"no TensorRT engine can be built here: {why}. {hint}")


class GpuUnavailable(EngineUnavailable):
    """No GPU that CUDA can use: what was found, and what is needed. Raised before any work."""

    def __init__(self, found: str, needed: str) -> None:
        ExportError.__init__(self, f"no GPU can be used: {found}; {needed}")


class GpuFailed(ExportError):
    """The GPU has no memory left, or refused a call. why: goes on after its subject, the GPU."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the GPU {why}")


class EngineFailed(ExportError):
    """TensorRT refused a graph or could not build its engine. The target `onnx` serves the same graph without it."""

    def __init__(self, graph: str, why: str) -> None:
        super().__init__(
            f"TensorRT built no engine of {graph!r}: {why}. Nothing was published; the target onnx serves this graph: "
            f"python -m export --target onnx"
        )
        self.graph = graph


class ServerUnavailable(ExportError):
    """A Triton that should be held to the reference cannot be asked."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"Triton at {url}: {why}. --url is host:port of its gRPC (8001, if published), and its models are those of "
            f"the profile's model_repository/<target>"
        )
        self.url = url


class GraphUnfit(ExportError):
    """A graph on disk cannot be served."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} {why}")


class CheckpointUnreadable(ExportError):
    """A file of weights that cannot be read as a state dict."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.path = path


class StateUnfit(ExportError):
    """A state dict that is not this network's."""

    def __init__(self, network: str, why: str) -> None:
        super().__init__(f"the weights do not belong into {network}: {why}")
