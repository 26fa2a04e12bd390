"""How layers move: the pose of the head, the breath, the skin around the mouth.

Maps go from the picture back to the layer, in canvas pixels, as `cv2.remap` wants them. They are smooth, so they are
computed on a coarse grid.
"""

from __future__ import annotations

import cv2
import numpy as np

from export.portrait.anatomy import Anatomy
from export.portrait.body import COLLAR_V
from export.portrait.controls import Pose
from export.portrait.geometry import Box, Bytes, Floats, bump, floats, smoothstep
from export.portrait.lips import LipShape

COARSE = 8  # canvas pixels per cell of the coarse grid
NECK_PIVOT_V = 0.42  # the head rolls about the top of the neck
BREATH = 0.0055  # rise of the shoulders, portrait units


class PoseWarp:
    """Maps of one portrait for any pose."""

    def __init__(self, at: Anatomy, canvas: int) -> None:
        self._canvas = canvas
        cells = canvas // COARSE
        box = Box.whole(cells)
        self._u, self._v = box.grid()
        r = np.minimum(np.hypot(self._u / (1.25 * at.face_half), (self._v - at.eye_v) / 0.66), 1)
        nose = bump(self._u, self._v, (0, at.nose_v - 0.05), (0.06, 0.07))
        self._depth = floats(0.34 * np.sqrt(1 - 0.96 * r * r) + 0.07 * nose)
        self._mean_depth = 0.20
        self._follow = smoothstep(COLLAR_V + 0.02, 0.36, self._v)

    def head_at(self, pose: Pose, u: Floats, v: Floats, depth: Floats) -> tuple[Floats, Floats]:
        """Where a point of the picture lies on the still head."""
        du, dv = u - np.float32(pose.x), v - np.float32(pose.y + NECK_PIVOT_V)
        cos, sin = np.float32(np.cos(pose.roll)), np.float32(np.sin(pose.roll))
        turned_u, turned_v = cos * du + sin * dv, -sin * du + cos * dv + np.float32(NECK_PIVOT_V)
        return turned_u - np.float32(pose.yaw) * depth, turned_v - np.float32(pose.pitch) * depth

    def head(self, pose: Pose) -> tuple[Floats, Floats]:
        """Maps for the head's layer: float32 (n, n), x and y."""
        u, v = self._u, self._v
        for _ in range(2):  # the depth belongs to the point on the head, not to the one in the picture
            here = cv2.remap(self._depth, *self._coarse(u, v), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            u, v = self.head_at(pose, self._u, self._v, floats(here) - np.float32(self._mean_depth))
        return self._fine(u, v)

    def back_hair(self, pose: Pose) -> tuple[Floats, Floats]:
        """Maps for hair behind the neck: it turns against the face and hangs."""
        weight = 1 - 0.75 * smoothstep(0.2, 0.9, self._v)
        u, v = self.head_at(pose, self._u, self._v, np.full_like(self._u, -0.12))
        return self._fine(self._u + weight * (u - self._u), self._v + weight * (v - self._v))

    def body(self, pose: Pose) -> tuple[Floats, Floats]:
        """Maps for neck and shoulders: the neck follows the head, the shoulders the breath."""
        u, v = self.head_at(pose, self._u, self._v, np.full_like(self._u, -0.05))
        rise = np.float32(BREATH * pose.breath)
        return self._fine(
            self._u + self._follow * (u - self._u), self._v + self._follow * (v - self._v) + (1 - self._follow) * rise
        )

    def to_picture(self, pose: Pose, u: float, v: float) -> tuple[float, float]:
        """Where a point of the still head lands in the picture (the inverse of `head`)."""
        depth = self._depth_at(u, v) - self._mean_depth
        du, dv = u + pose.yaw * depth, v + pose.pitch * depth - NECK_PIVOT_V
        cos, sin = np.cos(pose.roll), np.sin(pose.roll)
        return float(cos * du - sin * dv + pose.x), float(sin * du + cos * dv + pose.y + NECK_PIVOT_V)

    def _depth_at(self, u: float, v: float) -> float:
        x, y = self._coarse(floats([[u]]), floats([[v]]))
        return float(cv2.remap(self._depth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0, 0])

    def _coarse(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        cells = np.float32(self._canvas // COARSE)
        return floats((u + 1) / 2 * cells - 0.5), floats((v + 1) / 2 * cells - 0.5)

    def _fine(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        scale = np.float32(self._canvas / 2)
        size = (self._canvas, self._canvas)
        x, y = (cv2.resize(floats((a + 1) * scale - 0.5), size) for a in (u, v))
        return floats(x), floats(y)


class SkinWarp:
    """The skin of the lower face, stretched by jaw and lips."""

    def __init__(self, at: Anatomy, canvas: int) -> None:
        reach = at.face_half + 0.06
        self.box = Box.around(canvas, (-reach, reach), (at.mouth_v - 0.14, at.chin_v + 0.16))
        u, v = self.box.grid()
        self._u, self._v = u, v
        self._jaw = at.jaw_weight(u, v)
        self._lips = bump(u, v, (0, at.mouth_v + 0.03), (1.1 * at.mouth_half, 0.075))
        self._x = (u + 1) * np.float32(canvas / 2) - np.float32(0.5 + self.box.left)
        self._y = (v + 1) * np.float32(canvas / 2) - np.float32(0.5 + self.box.top)
        self._at = at

    def stretch(self, skin: Bytes, shape: LipShape) -> Bytes:
        """The box of the still skin, uint8 (h, w, 4), with the jaw and lips of one frame."""
        scale = np.float32(self.box.canvas / 2)
        squeeze = np.float32(0.5 * (shape.half / self._at.mouth_half - 1))
        x = self._x - scale * squeeze * self._lips * self._u
        y = self._y - scale * np.float32(shape.chin_drop) * self._jaw
        return np.asarray(cv2.remap(skin, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)
