"""From landmarks to MuseTalk's face box and crop box. Integer pixels; boxes are x1, y1, x2, y2, end excluded.

The box rule is MuseTalk's (`musetalk/utils/preprocessing.py`, `get_landmark_and_bbox`), defined on the 68-point set;
here its three facts are read off MediaPipe's mesh: extent of x, chin, and nose-bridge point 29.
"""

import numpy as np
from numpy.typing import NDArray

from avatar_prep.faces import Face

Box = tuple[int, int, int, int]
EXPAND = 1.5  # crop box over face box


def point_29(mesh: NDArray[np.float64]) -> float:
    """y of the 68-set's point 29 (nose bridge, third of four), between mesh points 195 and 5."""
    return float((3 * mesh[195, 1] + mesh[5, 1]) / 4)


def face_box(mesh: NDArray[np.float64], face: Face, size: tuple[int, int], bbox_shift: int, extra_margin: int) -> Box:
    """The box that is generated anew. `mesh`: float64 (468, 2) in pixels; `size`: width, height of the frame.

    The half line (point 29 + `bbox_shift` pixels) halves it; `extra_margin` pixels are added below the chin. Where that
    is no possible box, the detector's is taken. Always inside the frame and at least 2×2.
    """
    width, height = size
    chin = int(mesh[:, 1].max())
    half_line = int(point_29(mesh)) + bbox_shift
    x1, x2 = int(mesh[:, 0].min()), int(mesh[:, 0].max())
    y1, y2 = max(0, 2 * half_line - chin), chin
    if y2 <= y1 or x2 <= x1 or x1 < 0:
        x1, y1, x2, y2 = (int(value) for value in face.box)
    x1, y1 = min(max(x1, 0), width - 2), min(max(y1, 0), height - 2)
    return x1, y1, min(max(x2, x1 + 2), width), min(max(y2 + extra_margin, y1 + 2), height)


def crop_box(box: Box) -> Box:
    """The square around the face box in which the mask lives; may reach past the frame."""
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    half = int(max(x2 - x1, y2 - y1) // 2 * EXPAND)
    return x - half, y - half, x + half, y + half
