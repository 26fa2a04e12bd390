"""The wall behind the person: a soft gradient with out-of-focus shapes. Painted once per portrait."""

from __future__ import annotations

import numpy as np

from export.portrait.geometry import Box, Bytes, Floats, bump, coverage, floats, smoothstep
from export.portrait.identity import Identity
from export.portrait.shading import blur, mix


def paint_backdrop(person: Identity, size: int) -> Bytes:
    """uint8 (size, size, 3), BGR."""
    rng = np.random.default_rng(person.seed + 17)
    box = Box.whole(size)
    u, v = box.grid()
    wall, accent = floats(person.backdrop), floats(person.backdrop_accent)
    picture = np.broadcast_to(wall, (size, size, 3)).astype(np.float32)
    picture = mix(picture, wall * np.float32(0.82), smoothstep(0.35, 0.60, v))
    for _ in range(7):  # shelves, frames, panes: upright shapes far out of focus
        middle, half = rng.uniform(-1.1, 1.1), rng.uniform(0.06, 0.22)
        top, height = rng.uniform(-1.1, 0.2), rng.uniform(0.3, 0.9)
        edge = np.maximum(np.abs(u - middle) - half, np.abs(v - top - height / 2) - height / 2)
        tint = wall + (accent - wall) * np.float32(rng.uniform(-0.3, 1.0)) + np.float32(rng.uniform(-0.10, 0.08))
        picture = mix(picture, tint.astype(np.float32), 0.75 * coverage(floats(edge), 0.01))
    picture = blur(picture, 0.035 * size)
    for _ in range(9):  # lamps, as discs of light
        place, reach = (rng.uniform(-1, 1), rng.uniform(-1, 0.1)), rng.uniform(0.03, 0.085)
        disc = coverage(np.hypot(u - np.float32(place[0]), v - np.float32(place[1])) - np.float32(reach), 0.03)
        glow = np.minimum(accent * np.float32(1.25) + np.float32(0.10), 1)
        picture = mix(picture, floats(glow), np.float32(rng.uniform(0.08, 0.26)) * disc)
    lamp = -0.7 if person.light.azimuth < 0 else 0.7
    glow_at: Floats = bump(u, v, (lamp, -0.5), (0.9, 0.8))
    picture = picture * (0.84 + 0.22 * glow_at - 0.10 * smoothstep(0.8, 1.5, np.hypot(u, v)))[..., None]
    grain = rng.normal(0, 0.7, (size, size, 1))  # breaks the bands of a smooth gradient
    return np.asarray(np.clip(picture * 255 + grain + 0.5, 0, 255), np.uint8)
