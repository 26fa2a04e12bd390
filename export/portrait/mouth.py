"""The mouth: lips, teeth, tongue and the dark between, drawn anew for every frame over the still skin.

Where the lips are is known in `lips`; how the skin around them stretches, in `warp`.
"""

from __future__ import annotations

import numpy as np

from export.portrait.anatomy import Anatomy
from export.portrait.controls import Mouth
from export.portrait.geometry import Box, Bytes, Floats, bump, floats, smoothstep
from export.portrait.identity import Identity
from export.portrait.lips import LipEdges, LipShape
from export.portrait.shading import blur, illuminate, linear, mix, normals


class MouthPainter:
    """Draws lips and all within them into the head's canvas."""

    def __init__(self, person: Identity, at: Anatomy, canvas: int) -> None:
        reach = at.mouth_half * 1.55
        self.box = Box.around(canvas, (-reach, reach), (at.mouth_v - 0.10, at.mouth_v + 0.27))
        self._person, self._at = person, at
        self._u, self._v = self.box.axes()
        u, v = self.box.grid()
        self._muzzle = 0.035 * bump(u, v, (0, at.mouth_v), (0.11, 0.09)) - 0.9 * u * u
        self._lip = linear(person.lip_colour)
        self._grain = self._creases(u)

    def _creases(self, u: Floats) -> Floats:
        """Fine upright lines in the lips: float32 (h, w), around 1."""
        rng = np.random.default_rng(self._person.seed + 5)
        lines = sum(np.sin(u * (freq := rng.uniform(90, 260)) + rng.uniform(0, 6.28)) * 90 / freq for _ in range(5))
        return (1 + 0.022 * np.asarray(lines)).astype(np.float32)

    def paint(self, skin: Bytes, mouth: Mouth) -> None:
        """Draw into skin, uint8 (h, w, 3) of `self.box`, in place."""
        shape = LipShape.of(mouth, self._person, self._at)
        edges = LipEdges(shape, self._u, self._v)
        soft = np.float32(1.6 * self.box.pixel)
        under = np.square(skin.astype(np.float32) * np.float32(1 / 255))
        under *= (1 - self._shadow(shape, edges))[..., None]
        lips = self._lips(shape, edges)
        picture = mix(under, lips, np.clip(0.5 - edges.lips / (2.6 * soft), 0, 1))
        opening = np.clip(0.5 - edges.inner / soft, 0, 1) * np.float32(min(1.0, float(shape.gap / soft)))
        picture = mix(picture, self._inside(shape, edges, mouth), opening)
        picture = mix(picture, self._lip * floats([0.10, 0.09, 0.20]), self._seam(shape, edges, mouth))
        np.copyto(skin, (np.sqrt(np.clip(picture, 0, 1)) * 255 + 0.5).astype(np.uint8))

    def _lips(self, shape: LipShape, edges: LipEdges) -> Floats:
        upper, lower = edges.upper_place, edges.lower_place
        plump = 1 + 0.5 * shape.push
        roll_up = 0.75 * np.clip(upper, 0, 1) ** 0.8 * np.sqrt(np.clip(1 - np.clip(upper, 0, 1) ** 5, 0, 1))
        roll_low = np.sqrt(np.clip(1 - np.square(2 * np.clip(lower, 0, 1) - 0.95) / 1.1, 0, 1))
        height = np.where(edges.above, shape.upper * roll_up * 0.62, shape.lower * roll_low * 0.60) * plump
        height *= np.sqrt(np.clip(1 - edges.across**2, 0, 1)) * 0.8 + 0.2
        z = blur(height + self._muzzle, 0.0035 / self.box.pixel)
        tone = np.where(edges.above, 0.80 + 0.12 * np.clip(1 - upper, 0, 1), 0.94 + 0.08 * np.clip(lower, 0, 1))
        tone = tone * self._grain * (1 - 0.22 * edges.across**4)
        gloss = np.where(edges.above, 0.05, 0.13 + 0.06 * shape.push).astype(np.float32)
        flat = np.ones_like(z)
        albedo = self._lip * tone[..., None].astype(np.float32)
        return illuminate(normals(floats(z), self.box.pixel), albedo, self._person.light, flat, gloss)

    def _inside(self, shape: LipShape, edges: LipEdges, mouth: Mouth) -> Floats:
        """Cavity, tongue and teeth, linear light (h, w, 3)."""
        depth = smoothstep(0, 0.05, self._v - edges.top)
        cavity = floats([0.010, 0.008, 0.030]) * (1.0 + 1.2 * (1 - depth))[..., None]
        cavity = np.broadcast_to(cavity, (*depth.shape, 3)).astype(np.float32)
        inside = self._tongue(cavity, shape, mouth)
        inside = self._lower_teeth(inside, shape, mouth)
        inside = self._upper_teeth(inside, shape, mouth)
        lip_shadow = 0.48 + 0.52 * smoothstep(-0.002, 0.020, self._v - edges.top)
        corner = 1 - 0.75 * smoothstep(0.45, 1.0, edges.across)
        return floats(inside * (lip_shadow * corner)[..., None])

    def _tongue(self, under: Floats, shape: LipShape, mouth: Mouth) -> Floats:
        bottom = shape.line + shape.fall
        top = bottom - shape.gap * (0.26 + 0.56 * mouth.tongue) - 0.004
        reach = shape.half * (0.70 - 0.10 * mouth.tongue)
        q = self._u / np.float32(reach)
        crest = top + 0.020 * np.minimum(np.abs(q), 1.5) ** 2.2 + 0.0035 * np.exp(-((self._u / 0.012) ** 2))
        down = self._v - crest
        mask = smoothstep(-0.004, 0.005, down) * (1 - smoothstep(0.85, 1.12, np.abs(q)))
        lit = 0.34 + 0.46 * smoothstep(-0.002, 0.030, down) - 0.16 * np.exp(-((self._u / 0.009) ** 2))
        colour = floats([0.165, 0.135, 0.43]) * (lit * (1 - 0.4 * np.minimum(q * q, 1)))[..., None]
        return mix(under, colour.astype(np.float32), mask)

    def _upper_teeth(self, under: Floats, shape: LipShape, mouth: Mouth) -> Floats:
        length = 0.036 * mouth.teeth
        rim, place = self._row()
        hang = shape.line - shape.rise + length - 0.010 * (self._u / 0.1) ** 2 - 0.003 * rim
        shown = 1 - smoothstep(-0.0022, 0.0022, self._v - hang)
        shown = shown * (1 - smoothstep(0.10, 0.125, np.abs(self._u)))
        body = np.clip(1 - (hang - self._v) / 0.05, 0, 1)
        lit = (0.92 - 0.34 * (self._u / 0.11) ** 2) * (1 - 0.22 * rim * smoothstep(0.55, 1.0, place))
        colour = floats([0.70, 0.80, 0.86]) * (lit * (0.86 + 0.14 * body))[..., None]
        return mix(under, colour.astype(np.float32), floats(shown))

    def _lower_teeth(self, under: Floats, shape: LipShape, mouth: Mouth) -> Floats:
        spread = max(0.0, mouth.width) * 0.6 + 0.25
        peak = shape.line + shape.fall - 0.020 * spread * min(1.0, 2.5 * mouth.open)
        rim, place = self._row(scale=0.72)
        top = peak + 0.020 * (self._u / 0.09) ** 2 + 0.002 * rim
        shown = smoothstep(-0.002, 0.002, self._v - top) * (1 - smoothstep(0.065, 0.09, np.abs(self._u)))
        lit = 0.46 * (1 - 0.25 * rim * smoothstep(0.5, 1.0, place))
        colour = floats([0.68, 0.77, 0.84]) * (lit * np.ones_like(self._v))[..., None]
        return mix(under, colour.astype(np.float32), floats(shown * (1 - 0.8 * mouth.tongue)))

    def _row(self, scale: float = 1.0) -> tuple[Floats, Floats]:
        """Teeth side by side: how near a gap, 0 ... 1, raised to a point, and the plain place, (1, w)."""
        edges = np.array([0.0, 0.031, 0.054, 0.076, 0.095, 0.112, 0.13]) * scale
        side = np.abs(self._u)
        index = np.clip(np.searchsorted(edges, side) - 1, 0, len(edges) - 2)
        left, right = edges[index], edges[index + 1]
        place = np.abs(2 * (side - left) / (right - left) - 1).astype(np.float32)
        return floats(place**6), place

    def _shadow(self, shape: LipShape, edges: LipEdges) -> Floats:
        """Shade on the skin: under the lower lip and in the corners, (h, w)."""
        arch = np.clip(1 - edges.across**2, 0, 1)
        below = self._v - edges.bottom
        lower = 0.30 * arch * np.exp(-np.square((below - 0.012) / 0.014))
        side = np.abs(self._u) - np.float32(shape.half + 0.004)
        corner = 0.24 * np.exp(-np.square(side / 0.012) - np.square((self._v - edges.corner) / 0.013))
        return floats(np.clip(lower + corner, 0, 0.8))

    def _seam(self, shape: LipShape, edges: LipEdges, mouth: Mouth) -> Floats:
        """The dark line where the lips meet; it gives way to the opening, (h, w)."""
        middle = 0.5 * (edges.top + edges.base)
        width = 0.0034 * (1 - 0.35 * mouth.press)
        line = np.exp(-np.square((self._v - middle) / np.float32(width)))
        ends = 1 - smoothstep(0.94, 1.03, edges.across)
        fade = float(np.clip(1 - shape.gap / 0.02, 0, 1))
        closing = smoothstep(0.80, 1.0, edges.across)
        return floats(0.85 * line * ends * (fade + (1 - fade) * closing))
