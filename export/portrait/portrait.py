"""One person, ready to be drawn in any pose with any mouth.

Layers, from the wall forwards: backdrop, hair behind the neck, body, head (skin, eyes, mouth, front hair). What does
not move is painted once, at twice the picture's size; a frame redraws eyes and mouth, moves the layers and shrinks
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from export.portrait.anatomy import Anatomy
from export.portrait.backdrop import paint_backdrop
from export.portrait.body import paint_body
from export.portrait.controls import REST_MOUTH, REST_POSE, Mouth, Pose
from export.portrait.eyes import EyePainter
from export.portrait.face import paint_skin
from export.portrait.geometry import Bytes, floats
from export.portrait.hair import paint_hair
from export.portrait.identity import Identity
from export.portrait.lips import LipShape, mouth_gap
from export.portrait.mouth import MouthPainter
from export.portrait.shading import blur, over
from export.portrait.warp import PoseWarp, SkinWarp

SUPERSAMPLING = 2
NOSE_RIDGE = 0.44  # from the eyes to the base of the nose, where face meshes put landmark 29


@dataclass(frozen=True)
class FaceGeometry:
    """The truth about one frame, in picture pixels; points are (x, y)."""

    gap: float  # between the inner lips, in the middle
    left_corner: tuple[float, float]
    right_corner: tuple[float, float]
    upper_lip: tuple[float, float]  # inner edge, middle
    lower_lip: tuple[float, float]
    chin: tuple[float, float]
    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    nose_ridge: tuple[float, float]  # landmark 29 of the 68-point scheme
    left_cheek: tuple[float, float]  # widest points of the face
    right_cheek: tuple[float, float]


class Portrait:
    """Renders one identity. size: side of the square picture, pixels, a multiple of 4."""

    def __init__(self, identity: Identity, size: int = 512) -> None:
        if size < 64 or size % 4:
            raise ValueError(f"size must be a multiple of 4 and at least 64, not {size}")
        canvas = SUPERSAMPLING * size
        self.identity, self.size = identity, size
        self._anatomy = at = Anatomy.of(identity)
        self._skin = paint_skin(identity, at, canvas)
        self._back_hair, self._front_hair = paint_hair(identity, at, canvas)
        self._skin = _shaded_by(self._skin, self._front_hair, canvas)
        self._head = over(self._skin, self._front_hair)
        self._body = paint_body(identity, at, canvas)
        self._backdrop = paint_backdrop(identity, size)
        self._eyes = [EyePainter(identity, at, side, canvas) for side in (-1, 1)]
        self._mouth = MouthPainter(identity, at, canvas)
        self._stretch = SkinWarp(at, canvas)
        self._warp = PoseWarp(at, canvas)

    def render(self, pose: Pose = REST_POSE, mouth: Mouth = REST_MOUTH) -> Bytes:
        """One frame: uint8 (size, size, 3), BGR."""
        picture = self._backdrop.astype(np.float32)
        layers = (
            (self._back_hair, self._warp.back_hair(pose)),
            (self._body, self._warp.body(pose)),
            (self._still_head(pose, mouth), self._warp.head(pose)),
        )
        for canvas, maps in layers:
            moved = cv2.remap(canvas, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            small = cv2.resize(moved, (self.size, self.size), interpolation=cv2.INTER_AREA).astype(np.float32)
            picture = small[..., :3] + picture * (1 - small[..., 3:] / np.float32(255))
        return np.asarray(np.clip(picture, 0, 255) + 0.5, np.uint8)

    def mouth_gap(self, mouth: Mouth) -> float:
        """The gap between the inner lips, picture pixels, head upright."""
        return mouth_gap(mouth) * self.size / 2

    def geometry(self, pose: Pose = REST_POSE, mouth: Mouth = REST_MOUTH) -> FaceGeometry:
        """Where the features of a frame are."""
        at, shape = self._anatomy, LipShape.of(mouth, self.identity, self._anatomy)

        def pixel(u: float, v: float) -> tuple[float, float]:
            x, y = self._warp.to_picture(pose, u, v)
            return (x + 1) / 2 * self.size, (y + 1) / 2 * self.size

        corner_v = shape.line - shape.curl
        return FaceGeometry(
            gap=self.mouth_gap(mouth),
            left_corner=pixel(-shape.half, corner_v),
            right_corner=pixel(shape.half, corner_v),
            upper_lip=pixel(0, shape.line - shape.rise),
            lower_lip=pixel(0, shape.line + shape.fall),
            chin=pixel(0, at.chin_v + shape.chin_drop),
            left_eye=pixel(-at.eye_u, at.eye_v),
            right_eye=pixel(at.eye_u, at.eye_v),
            nose_ridge=pixel(0, at.eye_v + NOSE_RIDGE * (at.nose_v - at.eye_v)),
            left_cheek=pixel(-at.face_half, at.eye_v),
            right_cheek=pixel(at.face_half, at.eye_v),
        )

    def _still_head(self, pose: Pose, mouth: Mouth) -> Bytes:
        """The head before the pose moves it: premultiplied uint8 (n, n, 4)."""
        head = np.array(self._head)
        lower = self._stretch.box
        shape = LipShape.of(mouth, self.identity, self._anatomy)
        skin = self._stretch.stretch(self._skin[lower.rows], shape)
        inner = self._mouth.box
        rows = slice(inner.top - lower.top, inner.bottom - lower.top)
        columns = slice(inner.left - lower.left, inner.right - lower.left)
        self._mouth.paint(skin[rows, columns, :3], mouth)
        head[lower.rows] = over(skin, self._front_hair[lower.rows])
        for eye in self._eyes:
            skin = np.array(self._skin[eye.box.rows])
            eye.paint(skin[..., :3], pose)
            head[eye.box.rows] = over(skin, self._front_hair[eye.box.rows])
        return head


def _shaded_by(skin: Bytes, hair: Bytes, canvas: int) -> Bytes:
    """The skin with the soft shadow of the hair on it."""
    reach = 0.022 * canvas / 2
    shift = np.array([[1, 0, 0], [0, 1, 0.8 * reach]], np.float32)
    cover = cv2.warpAffine(np.ascontiguousarray(hair[..., 3]), shift, (canvas, canvas))
    cast = blur(floats(cover), reach) / np.float32(255)
    dim = 1 - floats([0.42, 0.38, 0.28]) * cast[..., None]
    shaded = np.array(skin)
    shaded[..., :3] = (skin[..., :3] * dim + 0.5).astype(np.uint8)
    return shaded
