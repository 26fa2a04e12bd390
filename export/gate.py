"""How far FP16 may be from float32, and the inputs and outputs that it is held to.

A profile's reference is computed once, in torch and float32, and kept beside its graphs; whatever runs them later, ONNX
Runtime or a TensorRT engine on a machine without torch, is held to the same numbers. Knows no torch.
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
from lipserve import contract

REFERENCE = "reference.npz"  # in a profile's folder
OPTIONAL = "norm_sums"  # what only one decoder takes

HALF_MAX = 65_504.0  # the largest number of FP16
HEADROOM = 4.0  # times that a sample's largest activation must fit into it: other faces and voices are louder


@dataclass(frozen=True)
class Bounds:
    """Largest error and largest mean error, absolute, in the output's own units."""

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
    """One comparison: errors are absolute, over all elements, in the output's own units."""

    graph: str
    output: str
    batch: int
    maximum: float
    mean: float
    bound: float
    mean_bound: float = float("inf")

    @property
    def passed(self) -> bool:
        """Whether maximum and mean are within their bounds; not a number never is."""
        return self.maximum <= self.bound and self.mean <= self.mean_bound

    def require(self) -> None:
        """Raises ExportRefused if it did not pass."""
        if not self.maximum <= self.bound:
            raise ExportRefused(self.graph, self.batch, self.maximum, self.bound)
        if not self.mean <= self.mean_bound:
            raise ExportRefused(self.graph, self.batch, self.mean, self.mean_bound, "mean")


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


def bounds_of(model: contract.Model, expected: NDArray[np.generic]) -> Bounds:
    """How far a model's output may be from `expected`. Sums of squares have no scale of their own."""
    if model.name != contract.REFERENCE_SUMS.name:
        return BOUNDS[model.name]
    largest = float(np.abs(expected.astype(np.float64)).max())
    return Bounds(SUMS_SHARE * largest, SUMS_SHARE / 10 * largest)


def hold(model: contract.Model, expected: NDArray[np.generic], actual: NDArray[np.generic]) -> Check:
    """Errors of `actual` against `expected`, both (n, *shape) of the model's output; refused when too far."""
    check = measured(model.name, model.outputs[0], expected, actual, bounds_of(model, expected))
    check.require()
    return check


def measured(
    graph: str, tensor: contract.Tensor, expected: NDArray[np.generic], actual: NDArray[np.generic], bounds: Bounds
) -> Check:
    """The comparison; another shape or dtype is refused."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ExportRefused(graph, len(expected), float("inf"), 0.0)
    errors = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    maximum, mean = float(errors.max()), float(errors.mean())
    return Check(graph, tensor.name, len(expected), maximum, mean, bounds.maximum, bounds.mean)


def require_headroom(graph: str, layer: str, largest: float, headroom: float = HEADROOM) -> None:
    """Refuse a network whose activations come near the end of FP16, or are not a number. Raises HeadroomLacking.

    largest: absolute, of the reference, and of all layers `layer`'s; headroom: times that it must fit into FP16.
    """
    if not largest * headroom <= HALF_MAX:
        raise HeadroomLacking(graph, layer, largest, headroom, HALF_MAX)


def error_table(checks: Iterable[Check], title: str = "ONNX Runtime against torch") -> Table:
    """The comparisons as a table for the terminal."""
    table = Table(title=title)
    for column in ("graph", "output", "batch", "max error", "bound", "mean error", "bound"):
        table.add_column(column, justify="left" if column in ("graph", "output") else "right")
    for check in checks:
        figures = (check.maximum, check.bound, check.mean, check.mean_bound)
        words = (f"{value:.3g}" if np.isfinite(value) else "" for value in figures)
        table.add_row(check.graph, check.output, str(check.batch), *words)
    return table
