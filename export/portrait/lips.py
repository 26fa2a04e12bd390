"""The lips of one frame as numbers: how wide, how far apart, how thick, and the curves that bound them.

Positions are in the head's own frame (before the pose moves it). How lips are painted is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.portrait.anatomy import GAP_MAX, JAW_DROP_MAX, Anatomy
from export.portrait.controls import Mouth
from export.portrait.geometry import Floats, floats
from export.portrait.identity import Identity

INNER = 0.93  # the lips part over this share of the mouth's width


@dataclass(frozen=True)
class LipShape:
    """Where the lips meet, part and end. Portrait units."""

    half: float  # half the width between the corners
    line: float  # v of the corners
    rise: float  # how far the upper inner edge lies above `line` in the middle
    fall: float  # how far the lower inner edge lies below it
    upper: float  # thickness of the upper lip
    lower: float  # thickness of the lower lip
    curl: float  # corners up, v at the corner
    roundness: float  # 0 almond ... 1 ellipse: the shape of the opening
    chin_drop: float
    push: float  # protrusion, 0 ... 1

    @property
    def gap(self) -> float:
        return self.rise + self.fall

    @classmethod
    def of(cls, mouth: Mouth, person: Identity, at: Anatomy) -> LipShape:
        gap = mouth_gap(mouth)
        chin_drop = JAW_DROP_MAX * mouth.jaw
        closed_drop = 0.35 * chin_drop * (1 - min(1.0, 4 * mouth.open))
        narrow = 0.38 * mouth.round + 0.10 * mouth.open - 0.17 * mouth.width
        thick = 1 + 0.28 * mouth.round - 0.45 * mouth.press - 0.12 * mouth.open - 0.10 * abs(mouth.width)
        lift = 0.010 * mouth.tuck
        return cls(
            half=at.mouth_half * (1 - narrow),
            line=at.mouth_v + 0.22 * gap + closed_drop - 0.5 * lift,
            rise=0.44 * gap + 0.5 * lift,
            fall=0.56 * gap - 0.5 * lift,
            upper=0.033 * person.upper_lip * thick * (1 - 0.15 * mouth.tuck),
            lower=0.043 * person.lower_lip * thick * (1 - 0.40 * mouth.tuck),
            curl=0.019 + 0.018 * mouth.smile + 0.006 * mouth.width,
            roundness=float(np.clip(0.35 + 0.5 * mouth.round + 0.45 * mouth.open - 0.25 * mouth.width, 0, 1)),
            chin_drop=chin_drop,
            push=mouth.round,
        )


def mouth_gap(mouth: Mouth) -> float:
    """The gap between the inner lips in the middle, portrait units. Pressed lips do not part."""
    return GAP_MAX * mouth.open * (1 - mouth.press) * (1 - 0.6 * mouth.tuck) + 0.010 * mouth.tuck


class LipEdges:
    """The lips' edges over one box: curves (1, w), distances and places (h, w)."""

    def __init__(self, shape: LipShape, u: Floats, v: Floats) -> None:
        q = u / np.float32(shape.half)
        self.across = np.minimum(np.abs(q), 1.6).astype(np.float32)
        inner = np.clip(1 - np.square(q / INNER), 0, 1)
        power = np.float32(1.0 - 0.5 * shape.roundness)
        opening = np.power(inner, power)
        closed = np.float32(1 - min(1.0, shape.gap / 0.03))
        wave = closed * (
            0.0045 * np.exp(-np.square(u / 0.022)) - 0.0030 * np.exp(-np.square((np.abs(u) - 0.05) / 0.03))
        )
        self.corner = floats(shape.line - shape.curl * self.across**2.6)
        self.top = floats(self.corner + wave - shape.rise * opening)
        self.base = floats(self.corner + wave + shape.fall * opening)
        side = np.abs(u)
        arch = np.clip(1 - np.square(q), 0, 1)
        bow = 0.16 * np.exp(-np.square((side - 0.030) / 0.020)) - 0.20 * np.exp(-np.square(u / 0.014))
        bow = bow * (1 - 0.6 * shape.push)
        self._ceiling = self.top - shape.upper * (np.power(arch, 0.78) * (0.92 + bow))
        self.bottom = floats(self.base - wave + shape.lower * np.power(arch, 0.55))
        middle = 0.5 * (self.top + self.base)
        self.above = np.asarray(v < middle)
        self.upper_place = (v - self._ceiling) / np.maximum(self.top - self._ceiling, 1e-4)
        self.lower_place = (v - self.base) / np.maximum(self.bottom - self.base, 1e-4)
        self.lips = _between(v, self._ceiling, self.bottom, u, inside=np.abs(q) < 1)
        self.inner = _between(v, self.top, self.base, u, inside=np.abs(q) < INNER)


def _between(v: Floats, upper: Floats, lower: Floats, u: Floats, inside: npt.NDArray[np.bool_]) -> Floats:
    """Rough signed distance to the band between two curves (1, w), where `inside` (1, w): negative within, (h, w)."""
    step = u[0, 1] - u[0, 0]
    steep_up = np.sqrt(1 + np.square(np.gradient(upper, axis=1) / step))
    steep_low = np.sqrt(1 + np.square(np.gradient(lower, axis=1) / step))
    empty = np.where(inside, np.float32(0), np.float32(1))
    return floats(np.maximum((upper - v) / steep_up, (v - lower) / steep_low) + empty)
