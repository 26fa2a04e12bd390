"""Where a generated face replaces the picture: MuseTalk's mask geometry on labels drawn from the face mesh.

The reference labels the crop box with a parsing network (BiSeNet); here skin, nose and lips are polygons of the mesh,
drawn into the same 512×512 grid. Hair or hands in front of the face are not seen. Geometry after
`musetalk/utils/face_parsing/__init__.py` and `musetalk/utils/blending.py`.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from avatar_prep.boxes import Box
from lipserve.colour import U8

ParsingMode = Literal["jaw", "raw", "neck"]
GRID = 512  # pixels, the labels' square
UPPER_BOUNDARY = 0.5  # of the crop box's height: nothing above changes

# CelebAMask-HQ classes that matter here.
SKIN, NOSE, MOUTH, UPPER_LIP, LOWER_LIP, NECK = 1, 10, 11, 12, 13, 14

# Mesh indices, each a closed polygon.
OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
NOSE_OUTLINE = (168, 193, 122, 217, 198, 49, 129, 98, 97, 2, 326, 327, 358, 279, 420, 437, 351, 417)
OUTER_LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
JAW_ENDS = (172, 397)  # where the neck begins, right and left
NECK_DEPTH = 0.25  # of the crop box's side: the neck polygon below the jaw


def labels(mesh: NDArray[np.float64], crop: Box) -> U8:
    """uint8 (512, 512) of class numbers, 0 elsewhere. `mesh`: float64 (468, 2) in pixels of the frame."""
    x1, y1, x2, _ = crop
    scale = GRID / (x2 - x1)
    points = np.round((mesh - (x1, y1)) * scale).astype(np.int32)
    grid = np.zeros((GRID, GRID), np.uint8)
    left, right = points[JAW_ENDS[0]], points[JAW_ENDS[1]]
    down = np.array([0, int(NECK_DEPTH * GRID)])
    neck = np.stack([left, right, right + down, left + down])
    cv2.fillPoly(grid, [neck], NECK)
    for outline, label in ((OVAL, SKIN), (NOSE_OUTLINE, NOSE), (OUTER_LIPS, LOWER_LIP), (INNER_LIPS, MOUTH)):
        cv2.fillPoly(grid, [points[list(outline)]], label)
    upper = np.zeros_like(grid)
    cv2.fillPoly(upper, [points[[*OUTER_LIPS[:11], *INNER_LIPS[10::-1]]]], 1)
    grid[(upper == 1) & (grid == LOWER_LIP)] = UPPER_LIP
    return grid


def _jaw_kernel() -> U8:
    """(33, 33): a cone from row 10 that widens by a pixel a side and row to 21 pixels, then a tail of 12 rows."""
    kernel = np.zeros((33, 33), np.uint8)
    for row in range(10, 33):
        reach = min(row - 10, 10)
        kernel[row, 16 - reach : 16 + reach + 1] = 1
    return kernel


JAW_KERNEL = _jaw_kernel()
CHEEK_KERNEL = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (35, 3))


def select(grid: U8, mode: ParsingMode, left_cheek_width: int, right_cheek_width: int) -> U8:
    """uint8 (512, 512), 255 where the face is replaced. Cheek widths in pixels of the grid, from its middle line."""
    if mode != "jaw":
        classes = [SKIN, MOUTH, UPPER_LIP, LOWER_LIP] + ([NECK] if mode == "neck" else [])
        return np.where(np.isin(grid, classes), 255, 0).astype(np.uint8)
    dilated = cv2.dilate(np.where(grid == SKIN, 255, 0).astype(np.uint8), JAW_KERNEL)
    eroded = cv2.erode(dilated, CHEEK_KERNEL, iterations=2)
    columns = np.arange(GRID)
    cheeks = (columns <= GRID // 2 - left_cheek_width) | (columns >= GRID // 2 + right_cheek_width)
    skin = np.where(cheeks[None, :], eroded, dilated)
    face = ((skin == 255) & (grid != NOSE)) | np.isin(grid, [MOUTH, UPPER_LIP, LOWER_LIP])
    return _without_specks(np.where(face, 255, 0).astype(np.uint8))


def _without_specks(mask: U8) -> U8:
    """Only the largest connected part: erosion leaves crumbs beside the nose."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count <= 2:
        return mask
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.where(parts == largest, 255, 0).astype(np.uint8)


def blend_mask(
    mesh: NDArray[np.float64],
    box: Box,
    crop: Box,
    mode: ParsingMode = "jaw",
    left_cheek_width: int = 90,
    right_cheek_width: int = 90,
) -> U8:
    """The soft mask on the crop box: uint8 (side, side), 255 takes the generated face, 0 keeps the picture.

    Cut to the face box, kept below the middle of the crop box, blurred with a Gaussian of a tenth of the side.
    """
    side = crop[2] - crop[0]
    hard = select(labels(mesh, crop), mode, left_cheek_width, right_cheek_width)
    scaled = cv2.resize(hard, (side, side), interpolation=cv2.INTER_LINEAR)
    x1, y1, x2, y2 = box[0] - crop[0], box[1] - crop[1], box[2] - crop[0], box[3] - crop[1]
    y1 = max(y1, int(side * UPPER_BOUNDARY))
    mask = np.zeros((side, side), np.uint8)
    mask[y1:y2, x1:x2] = scaled[y1:y2, x1:x2]
    kernel = int(0.1 * side // 2 * 2) + 1
    return cv2.GaussianBlur(mask, (kernel, kernel), 0).astype(np.uint8, copy=False)


def mask_region(mask: U8, box: Box, crop: Box) -> tuple[Box, U8] | None:
    """The part of a blend mask that does something: its even-sided rectangle in the frame, and the mask there.

    Outside the face box the generated face has no pixels, so the mask ends there too. None if nothing is left.
    """
    x1, y1, x2, y2 = box[0] - crop[0], box[1] - crop[1], box[2] - crop[0], box[3] - crop[1]
    inner = mask[y1:y2, x1:x2]
    columns, rows = np.flatnonzero(inner.any(axis=0)), np.flatnonzero(inner.any(axis=1))
    if not rows.size:
        return None
    left, right = box[0] + int(columns[0]), box[0] + int(columns[-1]) + 1
    top, bottom = box[1] + int(rows[0]), box[1] + int(rows[-1]) + 1
    region = (left // 2 * 2, top // 2 * 2, -(-right // 2) * 2, -(-bottom // 2) * 2)
    out = np.zeros((region[3] - region[1], region[2] - region[0]), np.uint8)
    out[top - region[1] : bottom - region[1], left - region[0] : right - region[0]] = mask[
        top - crop[1] : bottom - crop[1], left - crop[0] : right - crop[0]
    ]
    return region, out
