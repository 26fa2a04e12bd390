"""Where the features of one face lie: an Identity turned into positions in portrait coordinates.

Every painter reads positions from here, so that skin, eyes, brows, lips and hair agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.portrait.geometry import Floats, floats, smoothstep, spline
from export.portrait.identity import Identity

GAP_MAX = 0.125  # the widest gap between the inner lips
JAW_DROP_MAX = 0.085  # how far the chin falls


@dataclass(frozen=True)
class Anatomy:
    """Positions and sizes of the neutral face, portrait units; v grows downwards."""

    crown_v: float
    eye_u: float  # right eye of the picture; the left one mirrors it
    eye_v: float
    eye_half: float  # half the width of the lid opening
    brow_v: float
    nose_v: float  # base of the nose
    nose_half: float
    mouth_v: float
    mouth_half: float
    chin_v: float
    face_half: float  # half the width at the cheekbones
    outline: Floats  # float32 (k, 2): angle from straight up, 0 ... pi, and radius about (0, eye_v)

    @classmethod
    def of(cls, person: Identity) -> Anatomy:
        eye_v, length = -0.09, person.face_length
        chin_v = eye_v + 0.555 * length
        nose_v = eye_v + 0.232 * length * person.nose_length
        mouth_v = nose_v + 0.36 * (chin_v - nose_v)
        half = 0.342 * person.face_width
        crown_v = eye_v - 0.56
        return cls(
            crown_v=crown_v,
            eye_u=0.163 * person.eye_spacing * (0.5 + 0.5 * person.face_width),
            eye_v=eye_v,
            eye_half=0.083 * person.eye_size,
            brow_v=eye_v - 0.104 - 0.03 * person.brow_height,
            nose_v=nose_v,
            nose_half=0.074 * person.nose_width,
            mouth_v=mouth_v,
            mouth_half=0.122 * person.mouth_width,
            chin_v=chin_v,
            face_half=half,
            outline=_outline(person, half, eye_v, crown_v, chin_v),
        )

    def radius(self, u: Floats, v: Floats) -> Floats:
        """Distance from the middle of the face as a share of the outline's: below 1 inside."""
        du, dv = np.abs(u), v - np.float32(self.eye_v)
        angle = np.arctan2(du, -dv)
        edge = np.interp(angle, self.outline[:, 0], self.outline[:, 1]).astype(np.float32)
        return floats(np.hypot(du, dv) / edge)

    def jaw_weight(self, u: Floats, v: Floats) -> Floats:
        """How much of the jaw's drop a point of the skin follows, 0 ... 1."""
        down = smoothstep(self.mouth_v - 0.07, self.mouth_v + 0.11, v)
        hinge = 1 - 0.55 * smoothstep(0.10, self.face_half * 1.05, np.abs(u))
        return down * hinge


def _outline(person: Identity, half: float, eye_v: float, crown_v: float, chin_v: float) -> Floats:
    """The face's edge as radius over angle: a smooth closed curve through the anatomical corners."""
    below = chin_v - eye_v
    jaw, chin, cheeks = person.jaw - 0.5, person.chin - 0.5, person.cheeks - 0.5
    corners = [
        (0.0, crown_v),
        (0.52 * half, crown_v + 0.055),
        (0.88 * half, crown_v + 0.20),
        (0.99 * half, crown_v + 0.38),
        (1.0 * half, eye_v + 0.06 * below),
        ((0.965 + 0.03 * cheeks) * half, eye_v + 0.30 * below),
        ((0.845 + 0.09 * jaw + 0.05 * cheeks) * half, eye_v + 0.58 * below),
        ((0.63 + 0.16 * jaw + 0.05 * cheeks) * half, eye_v + 0.80 * below),
        ((0.37 + 0.13 * chin + 0.06 * jaw) * half, eye_v + 0.935 * below),
        ((0.17 + 0.06 * chin) * half, eye_v + 0.986 * below),
        (0.0, chin_v),
    ]
    mirrored = [(-u, v) for u, v in corners[1:3]][::-1] + corners + [(-u, v) for u, v in corners[-3:-1]][::-1]
    curve = spline(mirrored, 720)
    angle = np.arctan2(curve[:, 0], eye_v - curve[:, 1]) % (2 * np.pi)
    angle = np.where(angle > 1.5 * np.pi, angle - 2 * np.pi, angle)
    order = np.argsort(angle)
    return np.column_stack([angle, np.hypot(curve[:, 0], curve[:, 1] - eye_v)])[order].astype(np.float32)
