"""Finds faces in one picture, and 468 points on a face. Knows no time: one picture at a time.

MediaPipe's short-range face detector (128×128 input) and face mesh (192×192 input), run by OpenCV's DNN module. The
anchors and the crop rule are those of MediaPipe's graphs face_detection_short_range and face_landmark_front.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipserve.colour import U8
from lipserve.errors import ModelsMissing

F64 = NDArray[np.float64]

DETECTOR_SIZE = 128
DETECTOR_ANCHORS = ((8, 2), (16, 6))  # stride in pixels, anchors per cell
MESH_SIZE = 192
MESH_POINTS = 468
MESH_MARGIN = 1.5  # the mesh's crop is the face box grown by this
MIN_SCORE = 0.5
MIN_PRESENCE = 0.5
MAX_ZOOM = 8  # the picture's long side over that of the smallest square looked at; keeps narrow strips cheap
MAX_OVERLAP = 0.3  # of two detections of different faces, intersection over union


@dataclass(frozen=True)
class Face:
    """One detected face, in pixels of the picture. `points`: float64 (6, 2) x, y: both eyes, nose, mouth, both ears."""

    score: float
    box: tuple[float, float, float, float]  # x1, y1, x2, y2; may reach past the picture
    points: F64

    @property
    def area(self) -> float:
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)


def overlap(a: Face, b: Face) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    w = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    h = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    common = max(w, 0.0) * max(h, 0.0)
    return common / (a.area + b.area - common)


def _anchors() -> F64:
    """(896, 2): centres, as shares of the input."""
    centres = []
    for stride, count in DETECTOR_ANCHORS:
        cells = (np.arange(DETECTOR_SIZE // stride) + 0.5) * stride / DETECTOR_SIZE
        grid = np.stack(np.meshgrid(cells, cells), axis=-1).reshape(-1, 2)
        centres.append(np.repeat(grid, count, axis=0))
    return np.concatenate(centres)


def _sigmoid(x: NDArray[np.float32]) -> F64:
    return 1 / (1 + np.exp(-np.clip(x.astype(np.float64), -80, 80)))


class FaceFinder:
    """Both networks. Not for use from two threads at once."""

    def __init__(self, models: Path) -> None:
        """`models`: the folder of face_detection_short_range.tflite and face_landmark.tflite."""
        files = [models / "face_detection_short_range.tflite", models / "face_landmark.tflite"]
        for file in files:
            if not file.is_file():
                raise ModelsMissing(f"The face model {file} is not there.", "Run `lipserve setup` once.")
        self._detector, self._mesh = (cv2.dnn.readNetFromTFLite(str(file)) for file in files)
        self._anchors = _anchors()

    @staticmethod
    def _run(network: cv2.dnn.Net, picture: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """`picture`: float32 (h, w, 3) RGB."""
        network.setInput(np.ascontiguousarray(picture.transpose(2, 0, 1)[None]))
        return list(network.forward(network.getUnconnectedOutLayersNames()))  # type: ignore[arg-type]

    def detect(self, bgr: U8) -> list[Face]:
        """Faces of a picture, best score first. Looks at the whole picture, then, if none is there, closer."""
        h, w = bgr.shape[:2]
        side = max(h, w)
        found = self._detect_square(bgr, (w - side) / 2, (h - side) / 2, side)
        if not found:  # small faces: squares of the short side, then of half of it
            for tile in (min(h, w), min(h, w) // 2):
                if tile * MAX_ZOOM < side:
                    break
                xs = np.linspace(0, w - tile, int(np.ceil((w - tile) / (tile / 2))) + 1)
                ys = np.linspace(0, h - tile, int(np.ceil((h - tile) / (tile / 2))) + 1)
                found = [face for y in ys for x in xs for face in self._detect_square(bgr, x, y, tile)]
                if found:
                    break
        kept: list[Face] = []
        for face in sorted(found, key=lambda f: -f.score):
            if all(overlap(face, other) < MAX_OVERLAP for other in kept):
                kept.append(face)
        return kept

    def _detect_square(self, bgr: U8, x: float, y: float, side: float) -> list[Face]:
        """In one square of the picture, which may reach past it (black there)."""
        scale = DETECTOR_SIZE / side
        h, w = bgr.shape[:2]
        small_size = (max(1, round(w * scale)), max(1, round(h * scale)))
        small = cv2.resize(bgr, small_size, interpolation=cv2.INTER_AREA)  # warpAffine alone would alias
        affine = np.array([[scale * w / small_size[0], 0, -x * scale], [0, scale * h / small_size[1], -y * scale]])
        square = cv2.warpAffine(small, affine, (DETECTOR_SIZE, DETECTOR_SIZE))
        rgb = cv2.cvtColor(square, cv2.COLOR_BGR2RGB).astype(np.float32) / 127.5 - 1
        outputs = self._run(self._detector, rgb)
        boxes = next(o for o in outputs if o.shape[-1] == 16)[0].astype(np.float64) / DETECTOR_SIZE
        scores = _sigmoid(next(o for o in outputs if o.shape[-1] == 1)[0, :, 0])
        faces = []
        for i in np.flatnonzero(scores >= MIN_SCORE):
            pairs = boxes[i].reshape(8, 2)
            centre, size = (pairs[0] + self._anchors[i]) * side + (x, y), pairs[1] * side
            points = (pairs[2:] + self._anchors[i]) * side + (x, y)
            if (size > 0).all():
                (x1, y1), (x2, y2) = (centre - size / 2).tolist(), (centre + size / 2).tolist()
                faces.append(Face(float(scores[i]), (x1, y1, x2, y2), points))
        return faces

    def mesh(self, bgr: U8, face: Face) -> F64 | None:
        """float64 (468, 2) x, y in pixels of the picture, or None if the mesh network sees no face there.

        The crop is turned so that the eyes are level.
        """
        (x1, y1, x2, y2), (right_eye, left_eye) = face.box, face.points[:2]
        angle = np.arctan2(left_eye[1] - right_eye[1], left_eye[0] - right_eye[0])
        scale = max(x2 - x1, y2 - y1) * MESH_MARGIN / MESH_SIZE
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
        shift = np.array([(x1 + x2) / 2, (y1 + y2) / 2]) - turn @ [MESH_SIZE / 2, MESH_SIZE / 2]
        affine = np.hstack([turn, shift[:, None]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crop = cv2.warpAffine(bgr, affine, (MESH_SIZE, MESH_SIZE), flags=flags)
        rgb = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB).astype(np.float32) / np.float32(255)
        outputs = self._run(self._mesh, rgb)
        presence = _sigmoid(next(o for o in outputs if o.size == 1).reshape(-1))[0]
        if presence < MIN_PRESENCE:
            return None
        points = next(o for o in outputs if o.size == MESH_POINTS * 3).reshape(MESH_POINTS, 3)[:, :2]
        return np.asarray(points.astype(np.float64) @ turn.T + shift)
