"""Light on surfaces: normals from height, soft skin light, noise, colour. Knows nothing of faces.

Colours are BGR. "Display" values are what a screen gets, 0 ... 1; "linear" values are their squares, and light adds up
in those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np

from export.portrait.geometry import Bytes, Floats, Reals, floats

Colour: TypeAlias = tuple[float, float, float]  # BGR, display, 0 ... 1

SKIN_WRAP = (0.15, 0.23, 0.38)  # how far light creeps past the terminator, BGR: red furthest
KNEE = np.float32(0.70)  # linear light from which highlights bend
CLOTH_WRAP = (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class Light:
    """A warm key, a cool fill from the other side, a rim from behind and the sky."""

    azimuth: float  # radians; negative: key from the left
    warmth: float  # 0 neutral ... 1 warm key and cool fill

    def key(self) -> Floats:
        return _unit(np.sin(self.azimuth), -0.52, 0.85 * np.cos(self.azimuth))

    def fill(self) -> Floats:
        return _unit(-1.2 * np.sin(self.azimuth), -0.05, 0.75)

    def key_colour(self) -> Floats:
        return np.array([1 - 0.10 * self.warmth, 1 - 0.05 * self.warmth, 1.0], np.float32)

    def fill_colour(self) -> Floats:
        return np.array([1.0, 1 - 0.06 * self.warmth, 1 - 0.05 * self.warmth], np.float32)


def _unit(x: float, y: float, z: float) -> Floats:
    vector = np.array([x, y, z], np.float32)
    return floats(vector / np.linalg.norm(vector))


def linear(colour: Colour) -> Floats:
    """Display colour to linear light: float32 (3,)."""
    return np.square(floats(colour))


def display(light: Floats) -> Floats:
    """Linear light (..., 3) to display values 0 ... 1. Highlights bend by their brightest channel: hues stay."""
    light = np.maximum(light, 0)
    peak = np.maximum(light.max(axis=-1, keepdims=True), np.float32(1e-6))
    over_knee = np.maximum(peak - KNEE, 0)
    bent = np.minimum(peak, KNEE) + over_knee / (1 + over_knee / (1 - KNEE))
    return floats(np.sqrt(light * (bent / peak)))


def normals(height: Floats, pixel: float) -> Floats:
    """Unit normals of a height field: float32 (h, w) to (h, w, 3), xyz with z to the viewer."""
    slope_y, slope_x = np.gradient(height, np.float32(pixel))
    length = np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    return np.dstack([-slope_x / length, -slope_y / length, 1 / length]).astype(np.float32)


def illuminate(
    normal: Floats, albedo: Floats, light: Light, occlusion: Floats, gloss: Floats, wrap: Colour = SKIN_WRAP
) -> Floats:
    """Light a surface.

    normal: (h, w, 3); albedo: linear (h, w, 3) or (3,); occlusion: (h, w), 1 open sky; gloss: (h, w), strength of the
    highlight. Returns linear light, float32 (h, w, 3).
    """
    key = normal @ light.key()
    fill = np.clip((normal @ light.fill() + 0.3) / 1.3, 0, 1)
    sky = 0.5 - 0.5 * normal[..., 1]
    spread = floats(wrap)
    diffuse = np.clip((key[..., None] + spread) / (1 + spread), 0, 1)
    received = (
        1.02 * diffuse * light.key_colour()
        + (0.20 * fill)[..., None] * light.fill_colour()
        + (0.17 + 0.13 * sky)[..., None] * floats([0.90, 0.94, 1.0])
    )
    bounce = 0.20 * np.clip(normal[..., 1], 0, 1)  # off the clothes
    received += bounce[..., None] * floats([0.62, 0.80, 1.0])
    # Shade in a fold of skin stays warm: red is lost last.
    shade = np.power(occlusion[..., None], floats([1.25, 1.12, 0.85]))
    half = light.key() + floats([0, 0, 1])
    half /= np.linalg.norm(half)
    facing = np.clip(normal @ half, 0, 1)
    highlight = gloss * (0.35 * facing**12 + 0.65 * facing**48) * occlusion
    edge = np.clip(1 - normal[..., 2], 0, 1) ** 2 * np.clip(normal @ light.fill(), 0, 1)
    received += (0.22 * edge)[..., None] * floats([0.70, 0.82, 1.0])
    return floats(albedo * received * shade + highlight[..., None] * light.key_colour())


def occlusion(height: Floats, pixel: float, strength: float = 1.0) -> Floats:
    """How much sky each point sees, from height against its surroundings at three scales: (h, w), 0.4 ... 1.12."""
    total = np.ones_like(height)
    for reach, weight in ((0.012, 5.0), (0.035, 3.2), (0.08, 1.3)):
        total += strength * weight * (height - blur(height, reach / pixel))
    return np.clip(total, 0.4, 1.12).astype(np.float32)


def noise(size: int, seed: int, cells: tuple[float, float], octaves: int = 4) -> Floats:
    """Smooth noise with unit deviation: float32 (size, size); cells across u and v in the first octave."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        shape = [max(2, min(size, round(count * 2**octave))) for count in (cells[1], cells[0])]
        grain = rng.standard_normal((shape[0], shape[1])).astype(np.float32)
        total += 0.55**octave * cv2.resize(grain, (size, size), interpolation=cv2.INTER_CUBIC)
    return floats(total / total.std())


def blur(picture: Reals, radius: float) -> Floats:
    """Gaussian blur, radius in pixels: float32 (h, w) or (h, w, 3)."""
    return floats(cv2.GaussianBlur(floats(picture), (0, 0), radius))


def mix(under: Reals, over: Reals, weight: Reals) -> Floats:
    """under (h, w, 3) to over (h, w, 3) or (3,) by weight (h, w)."""
    return floats(under + (over - under) * weight[..., None])


def layer(colour: Reals, alpha: Reals) -> Bytes:
    """Display colour (h, w, 3) and alpha (h, w), both 0 ... 1, as a premultiplied layer: uint8 (h, w, 4), BGRA."""
    premultiplied = np.dstack([np.clip(floats(colour), 0, 1) * floats(alpha)[..., None], floats(alpha)])
    return np.asarray(premultiplied * 255 + 0.5, np.uint8)


def over(under: Bytes, top: Bytes) -> Bytes:
    """Lay one premultiplied layer on another of the same shape: uint8 (h, w, 4)."""
    rest = 255 - top[..., 3:].astype(np.uint16)
    return np.asarray(top + (under * rest + 127) // 255, np.uint8)
