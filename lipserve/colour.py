"""BGR to limited-range YUV and back, with the matrix the source video used. Knows arrays, not files.

Planes are I420: uint8 (h·3/2, w), the Y plane, then U and V at half size, each row-major. Coefficients: ITU-R BT.601,
BT.709, BT.2020 (Kr, Kb); limited range is 16..235 for Y and 16..240 for U and V.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Matrix = Literal["bt601", "bt709", "bt2020"]
U8 = NDArray[np.uint8]
Planes = tuple[U8, U8, U8]  # Y (h, w), U and V (h/2, w/2)
_KR_KB: dict[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
}


def _forward(matrix: Matrix) -> NDArray[np.float64]:
    """(3, 4): rows Y, U, V; columns B, G, R, offset."""
    kr, kb = _KR_KB[matrix]
    y = np.array([kb, 1 - kr - kb, kr])
    u = (np.array([1, 0, 0]) - y) / (2 * (1 - kb))
    v = (np.array([0, 0, 1]) - y) / (2 * (1 - kr))
    scale = np.array([219, 224, 224])[:, None] / 255
    return np.hstack([np.stack([y, u, v]) * scale, [[16], [128], [128]]])


def _inverse(forward: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse = np.linalg.inv(forward[:, :3])
    return np.hstack([inverse, -inverse @ forward[:, 3:]])


_TO_YUV = {matrix: _forward(matrix) for matrix in _KR_KB}
_TO_BGR = {matrix: _inverse(_TO_YUV[matrix]) for matrix in _KR_KB}


def planes(i420: U8) -> Planes:
    """Views of the three planes of one I420 picture: Y (h, w), U and V (h/2, w/2). Writing to them writes to it."""
    rows, w = i420.shape
    h = rows * 2 // 3
    chroma = i420[h:].reshape(2, h // 2, w // 2)
    return i420[:h], chroma[0], chroma[1]


def bgr_to_planes(bgr: U8, matrix: Matrix) -> Planes:
    """uint8 (h, w, 3) BGR with even h and w to Y (h, w), U and V (h/2, w/2); chroma is the mean of each 2×2."""
    y, u, v = cv2.split(cv2.transform(bgr, _TO_YUV[matrix]))
    half = (bgr.shape[1] // 2, bgr.shape[0] // 2)
    u, v = (cv2.resize(c, half, interpolation=cv2.INTER_AREA) for c in (u, v))
    return y, u, v  # type: ignore[return-value]


def planes_to_bgr(i420: U8, matrix: Matrix) -> U8:
    """One I420 picture to uint8 (h, w, 3) BGR; chroma is repeated over each 2×2."""
    y, u, v = planes(i420)
    size = (y.shape[1], y.shape[0])
    full = [cv2.resize(c, size, interpolation=cv2.INTER_NEAREST) for c in (u, v)]
    return cv2.transform(cv2.merge([y, *full]), _TO_BGR[matrix])  # type: ignore[return-value]


# ISO/IEC 23091-2 matrix coefficients, as in AVColorSpace; 2 is "unspecified", which decoders read as BT.601.
_MATRICES: dict[int, Matrix] = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}
RGB, UNSPECIFIED = 0, 2


@dataclass(frozen=True)
class ColourTags:
    """How a video's YUV is meant, as AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic numbers."""

    space: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    @property
    def matrix(self) -> Matrix:
        return _MATRICES.get(self.space, "bt601")


def bgr_to_i420(bgr: U8) -> tuple[U8, ColourTags]:
    """A still picture, uint8 (h, w, 3) BGR of even size, as the I420 that a video of it would hold (BT.601)."""
    i420 = np.empty((bgr.shape[0] * 3 // 2, bgr.shape[1]), np.uint8)
    for target, plane in zip(planes(i420), bgr_to_planes(bgr, "bt601"), strict=True):
        target[:] = plane
    return i420, ColourTags(space=6)
