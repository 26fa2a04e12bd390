"""How far FP16 may be from float32, and the inputs and outputs that it is held to.

A profile's reference is computed once, in torch and float32, and kept beside its graphs; whatever runs them later, ONNX
Runtime or a TensorRT engine on a machine without torch, is held to the same numbers: at every batch size that may go
wrong by itself, each frame of an answer on its own. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from export.errors import ExportRefused, GraphUnfit, HeadroomLacking
from export.triton_config import BATCH_PROFILES
from lipserve import contract

REFERENCE = "reference.npz"  # in a profile's folder
OPTIONAL = "norm_sums"  # what only one decoder takes

# Batch sizes at which every model is held: one frame, one that no kernel is made for, and those that are usual.
GATE_BATCHES = (1, 4, 5, 8, 16)

HALF_MAX = 65_504.0  # the largest number of FP16
HEADROOM = 4.0  # times that a sample's largest activation must fit into it: other faces and voices are louder
PSNR = 45.0  # dB, that a decoder of the lower rows may be from the whole one in these rows, at least


@dataclass(frozen=True)
class Bounds:
    """Of one frame: largest error and mean error, absolute, in the output's own units."""

    maximum: float
    mean: float


LATENT_BOUNDS = Bounds(0.5, 0.01)  # latents have a deviation of about 1
LEVEL_BOUNDS = Bounds(8.0, 2.0)  # grey levels of 255
SUMS_SHARE = 0.02  # of the largest sum
BOUNDS = {
    contract.LIPSYNC.name: LEVEL_BOUNDS,
    contract.UNET.name: LATENT_BOUNDS,
    contract.VAE_DECODER.name: LEVEL_BOUNDS,
    contract.VAE_ENCODER.name: LATENT_BOUNDS,
}


@dataclass(frozen=True)
class Check:
    """One batch compared, frame by frame: errors are absolute, over all elements, in the output's own units."""

    graph: str
    output: str
    maxima: tuple[float, ...]
    means: tuple[float, ...]
    bound: float
    mean_bound: float = float("inf")

    @property
    def batch(self) -> int:
        """Frames."""
        return len(self.maxima)

    @property
    def maximum(self) -> float:
        """The largest error of any frame; not a number if there is one."""
        return float(np.max(self.maxima))

    @property
    def mean(self) -> float:
        """The largest mean error of any frame; not a number if there is one."""
        return float(np.max(self.means))

    @property
    def passed(self) -> bool:
        """Whether maximum and mean of every frame are within their bounds; not a number never is."""
        return self.maximum <= self.bound and self.mean <= self.mean_bound

    def require(self) -> None:
        """Raises ExportRefused, with the first frame that is off, if it did not pass."""
        for frame, (maximum, mean) in enumerate(zip(self.maxima, self.means, strict=True)):
            if not maximum <= self.bound:
                raise ExportRefused(self.graph, self.batch, frame, maximum, self.bound)
            if not mean <= self.mean_bound:
                raise ExportRefused(self.graph, self.batch, frame, mean, self.mean_bound, "mean")


@dataclass(frozen=True)
class Reference:
    """Inputs as in service and what the networks make of them in float32, of the same n frames.

    crops: uint8 (n, 256, 256, 3), BGR; audio_features: float16 (n, 50, 384); face_latents: float16 (n, 8, 32, 32), of
    the crops; latents: float16 (n, 4, 32, 32), the UNet's; faces: uint8 (n, 256, 256, 3), BGR, of these latents;
    norm_sums: float32 (n, 19, 32, 2), of the crops, for the decoder of the lower rows.
    """

    crops: NDArray[np.uint8]
    audio_features: NDArray[np.float16]
    face_latents: NDArray[np.float16]
    latents: NDArray[np.float16]
    faces: NDArray[np.uint8]
    norm_sums: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in self._tensors().values()}) != 1:
            raise GraphUnfit("The reference", "has tensors of different lengths")

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def reference_latents(self) -> NDArray[np.float16]:
        """float16 (n, 4, 32, 32), of the crops as they are."""
        return self.face_latents[:, contract.LATENT_CHANNELS :]

    def _tensors(self) -> dict[str, Any]:
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def repeated(self, batch: int) -> Reference:
        """The same frames as a batch of any size, in the order of `repeated_frames`."""
        frames = repeated_frames(len(self), batch)
        return Reference(**{name: tensor[frames] for name, tensor in self._tensors().items()})

    def feeds(self, model: contract.Model) -> dict[str, NDArray[np.generic]]:
        """A model's inputs by name."""
        return {tensor.name: getattr(self, tensor.name) for tensor in model.inputs}

    def output(self, model: contract.Model) -> NDArray[np.generic]:
        """What a model should make of them."""
        (tensor,) = model.outputs
        found: NDArray[np.generic] = getattr(self, tensor.name)
        return found

    def save(self, folder: Path) -> None:
        np.savez_compressed(folder / REFERENCE, **self._tensors())

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Raises GraphUnfit."""
        path = folder / REFERENCE
        try:
            with np.load(path) as found:
                return cls(
                    **{name: found[name] for name in cls.__dataclass_fields__ if name in found or name != OPTIONAL}
                )
        except (OSError, KeyError, ValueError) as exc:
            raise GraphUnfit(str(path), f"cannot be read, so nothing can be held to it: {exc}") from exc


def gate_batches(model: contract.Model) -> tuple[int, ...]:
    """Batch sizes at which a model is held to its reference, ascending: the usual ones, its largest, and the smallest,
    optimal and largest of its optimisation profiles. Each may run kernels, or a CUDA graph, of its own."""
    made_for = {batch for profile in BATCH_PROFILES.get(model.name, ()) for batch in profile}
    sizes = {*GATE_BATCHES, *made_for, model.max_batch_size}
    return tuple(sorted(batch for batch in sizes if batch <= model.max_batch_size))


def repeated_frames(frames: int, batch: int) -> list[int]:
    """Which of a few frames stands where in a batch: 0 1 2 3, 1 2 3 0, 2 3 0 1 … Each repetition begins one frame
    later: were they all alike, an answer with two of them in each other's place would pass."""
    return [(place + place // frames) % frames for place in range(batch)]


def bounds_of(model: contract.Model, expected: NDArray[np.generic]) -> Bounds:
    """How far a model's output may be from `expected`. Sums of squares have no scale of their own."""
    if model.name != contract.REFERENCE_SUMS.name:
        return BOUNDS[model.name]
    largest = float(np.abs(expected.astype(np.float64)).max())
    return Bounds(SUMS_SHARE * largest, SUMS_SHARE / 10 * largest)


def hold(
    model: contract.Model, expected: NDArray[np.generic], actual: NDArray[np.generic], graph: str | None = None
) -> Check:
    """Errors of `actual` against `expected`, both (n, *shape) of the model's output; refused when a frame is too far.
    graph: what the refusal calls it, by default the model's name."""
    check = measured(graph or model.name, model.outputs[0], expected, actual, bounds_of(model, expected))
    check.require()
    return check


def measured(
    graph: str, tensor: contract.Tensor, expected: NDArray[np.generic], actual: NDArray[np.generic], bounds: Bounds
) -> Check:
    """The comparison, each frame with the one in its place. Raises GraphUnfit for another shape or dtype."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        why = f"is {actual.dtype} {actual.shape} instead of {expected.dtype} {expected.shape}"
        raise GraphUnfit(f"The answer of {graph!r}", why)
    errors = np.abs(expected.astype(np.float64) - actual.astype(np.float64)).reshape(len(expected), -1)
    maxima, means = (tuple(map(float, values)) for values in (errors.max(axis=1), errors.mean(axis=1)))
    return Check(graph, tensor.name, maxima, means, bounds.maximum, bounds.mean)


def require_headroom(graph: str, layer: str, largest: float, headroom: float = HEADROOM) -> None:
    """Refuse a network whose activations come near the end of FP16, or are not a number. Raises HeadroomLacking.

    largest: absolute, of the reference, and of all layers `layer`'s; headroom: times that it must fit into FP16.
    """
    if not largest * headroom <= HALF_MAX:
        raise HeadroomLacking(graph, layer, largest, headroom, HALF_MAX)


def error_table(checks: Iterable[Check], title: str = "ONNX Runtime against torch") -> Table:
    """The comparisons as a table for the terminal; of each batch, the largest errors that a frame has."""
    table = Table(title=title)
    for column in ("graph", "output", "batch", "max error", "bound", "mean error", "bound"):
        table.add_column(column, justify="left" if column in ("graph", "output") else "right")
    for check in checks:
        figures = (check.maximum, check.bound, check.mean, check.mean_bound)
        words = (f"{value:.3g}" if np.isfinite(value) else "" for value in figures)
        table.add_row(check.graph, check.output, str(check.batch), *words)
    return table
