"""Plane geometry of the portrait: coordinates, smooth functions, curves.

Portrait coordinates: u to the right and v down, both -1 ... 1 over the canvas; a face is about 0.7 wide and 1.0 high.
This module knows nothing of faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Reals: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Box:
    """A rectangle of canvas pixels, with the coordinates of its pixel centres."""

    left: int
    top: int
    right: int
    bottom: int
    canvas: int  # side of the canvas, pixels

    @classmethod
    def whole(cls, canvas: int) -> Box:
        """All of the canvas."""
        return cls(0, 0, canvas, canvas, canvas)

    @classmethod
    def around(cls, canvas: int, u: tuple[float, float], v: tuple[float, float]) -> Box:
        """The box that covers u[0] ... u[1], v[0] ... v[1], cut to the canvas."""
        left, top, right, bottom = (
            int(np.clip(round((value + 1) / 2 * canvas), 0, canvas)) for value in (u[0], v[0], u[1], v[1])
        )
        return cls(left, top, right, bottom, canvas)

    @property
    def rows(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def pixel(self) -> float:
        """Side of one canvas pixel in portrait units."""
        return 2 / self.canvas

    def subpixels(self, points: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Points (..., 2) in portrait units as the box's pixels, in fixed point with SUBPIXEL_BITS."""
        pixels = (floats(points) + 1) / 2 * self.canvas - floats([self.left, self.top]) - 0.5
        return np.asarray(np.round(pixels * 2**SUBPIXEL_BITS), np.int32)

    def axes(self) -> tuple[Floats, Floats]:
        """u: float32 (1, w), v: float32 (h, 1): they broadcast to the box."""
        u = (np.arange(self.left, self.right, dtype=np.float32) + 0.5) * self.pixel - 1
        v = (np.arange(self.top, self.bottom, dtype=np.float32) + 0.5) * self.pixel - 1
        return u[None, :].astype(np.float32), v[:, None].astype(np.float32)

    def grid(self) -> tuple[Floats, Floats]:
        """u, v: float32 (h, w)."""
        u, v = self.axes()
        shape = (v.shape[0], u.shape[1])
        return np.broadcast_to(u, shape).copy(), np.broadcast_to(v, shape).copy()


SUBPIXEL_BITS = 4  # of coordinates handed to cv2's drawing functions


def floats(values: npt.ArrayLike) -> Floats:
    """Values as float32."""
    return np.asarray(values, np.float32)


def smoothstep(start: float, stop: float, x: Reals) -> Floats:
    """0 before start, 1 after stop, smooth between (start may be greater than stop)."""
    t = np.clip((x - np.float32(start)) / np.float32(stop - start), 0, 1)
    return floats(t * t * (3 - 2 * t))


def bump(u: Reals, v: Reals, centre: tuple[float, float], radius: tuple[float, float]) -> Floats:
    """A Gaussian hill of height 1."""
    du = (u - np.float32(centre[0])) / np.float32(radius[0])
    dv = (v - np.float32(centre[1])) / np.float32(radius[1])
    return floats(np.exp(-0.5 * (du * du + dv * dv)))


def coverage(distance: Reals, softness: float) -> Floats:
    """Signed distance (negative inside) to the share of a pixel covered, 0 ... 1; softness in portrait units."""
    return floats(np.clip(0.5 - distance / np.float32(softness), 0, 1))


def spline(points: npt.ArrayLike, count: int) -> Floats:
    """A Catmull-Rom curve through points (k, d), sampled at `count` even parameters: float32 (count, d)."""
    knots = np.asarray(points, np.float64)
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = np.linspace(0, len(knots) - 1, count)
    i = np.minimum(t.astype(int), len(knots) - 2)
    f = (t - i)[:, None]
    p0, p1, p2, p3 = (padded[i + k] for k in range(4))
    curve = p1 + 0.5 * f * (p2 - p0 + f * (2 * p0 - 5 * p1 + 4 * p2 - p3 + f * (3 * (p1 - p2) + p3 - p0)))
    return floats(curve)


def profile(knots: npt.ArrayLike, x: Floats) -> Floats:
    """y(x) of the smooth curve through knots (k, 2), whose x increase; constant outside them."""
    curve = spline(knots, 256)
    return np.interp(x, curve[:, 0], curve[:, 1]).astype(np.float32)
