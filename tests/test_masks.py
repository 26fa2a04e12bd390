"""The blend mask's geometry, on the mesh of the bundled clip's face and on labels drawn by hand."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from samples import pictures

from avatar_prep.boxes import Box, crop_box, face_box
from avatar_prep.faces import FaceFinder
from avatar_prep.masks import (
    CHEEK_KERNEL,
    GRID,
    INNER_LIPS,
    JAW_KERNEL,
    LOWER_LIP,
    MOUTH,
    NECK,
    NOSE,
    OUTER_LIPS,
    OVAL,
    SKIN,
    UPPER_LIP,
    ParsingMode,
    blend_mask,
    labels,
    mask_region,
    select,
)
from lipserve.colour import U8, planes_to_bgr

MODES: tuple[ParsingMode, ...] = ("jaw", "raw", "neck")


@pytest.fixture(scope="module")
def found(face_models: Path) -> tuple[np.ndarray, Box, Box]:
    """Mesh, face box and crop box of the bundled clip's first frame, 512×512."""
    finder, picture = FaceFinder(face_models), planes_to_bgr(pictures(1)[0], "bt601")
    face = finder.detect(picture)[0]
    mesh = finder.mesh(picture, face)
    assert mesh is not None
    box = face_box(mesh, face, (512, 512), 0, 10)
    return mesh, box, crop_box(box)


def on_grid(mesh: np.ndarray, crop: Box) -> np.ndarray:
    return np.round((mesh - crop[:2]) * GRID / (crop[2] - crop[0])).astype(int)


# -- labels -----------------------------------------------------------------------------------------------------------


def test_every_class_is_drawn_where_it_belongs(found: tuple[np.ndarray, Box, Box]) -> None:
    mesh, _, crop = found
    grid = labels(mesh, crop)
    assert grid.shape == (GRID, GRID)
    assert set(grid.flat) == {0, SKIN, NOSE, MOUTH, UPPER_LIP, LOWER_LIP, NECK}
    points = on_grid(mesh, crop)
    for point, label in (
        (4, NOSE),
        (1, NOSE),
        (50, SKIN),
        (280, SKIN),
        (151, SKIN),
        (199, SKIN),
    ):  # nose, cheeks, brow, chin
        x, y = points[point]
        assert grid[y, x] == label, point
    for upper, inner in ((0, 13), (37, 82), (267, 312)):
        x, y = (points[upper] + points[inner]) // 2
        assert grid[y, x] == UPPER_LIP
    for lower, inner in ((17, 14), (84, 87), (314, 317)):
        x, y = (points[lower] + points[inner]) // 2
        assert grid[y, x] == LOWER_LIP
    x, y = points[152]
    assert grid[min(y + 20, GRID - 1), x] == NECK
    assert grid[5, 5] == 0


def test_nothing_is_drawn_outside_the_mesh(found: tuple[np.ndarray, Box, Box]) -> None:
    mesh, _, crop = found
    grid, points = labels(mesh, crop), on_grid(mesh, crop)
    rows, columns = np.nonzero((grid != 0) & (grid != NECK))
    assert rows.min() >= points[:, 1].min() and rows.max() <= points[:, 1].max()
    assert columns.min() >= points[:, 0].min() and columns.max() <= points[:, 0].max()


@pytest.mark.parametrize("outline", [OVAL, OUTER_LIPS, INNER_LIPS])
def test_outlines_are_simple_polygons(outline: tuple[int, ...], found: tuple[np.ndarray, Box, Box]) -> None:
    """No index twice, and the polygon winds around its middle just once."""
    assert len(set(outline)) == len(outline)
    points = found[0][list(outline)]
    around = points - points.mean(axis=0)
    angles = np.unwrap(np.arctan2(around[:, 1], around[:, 0]), period=2 * np.pi)
    closing = (np.diff(np.append(angles, angles[0] + 2 * np.pi * np.sign(angles[-1] - angles[0]))),)
    assert abs(np.sum(closing)) == pytest.approx(2 * np.pi)


def test_labels_follow_a_crop_that_reaches_past_the_frame(found: tuple[np.ndarray, Box, Box]) -> None:
    """Coordinates alone decide, so a face moved past the edge has the same labels."""
    mesh, _, crop = found
    moved = mesh - (200, 300)
    shifted: Box = (crop[0] - 200, crop[1] - 300, crop[2] - 200, crop[3] - 300)
    assert shifted[0] < 0 and shifted[1] < 0
    assert (labels(moved, shifted) == labels(mesh, crop)).all()


# -- what is selected -------------------------------------------------------------------------------------------------


def drawn() -> U8:
    """Labels by hand: a square of skin with a nose and lips in it, and a neck below."""
    grid = np.zeros((GRID, GRID), np.uint8)
    grid[400:500, 200:312] = NECK
    grid[100:420, 100:412] = SKIN
    grid[180:280, 230:282] = NOSE
    grid[300:315, 200:312], grid[315:325, 200:312], grid[325:340, 200:312] = UPPER_LIP, MOUTH, LOWER_LIP
    return grid


def test_raw_is_skin_and_mouth_and_neck_adds_the_neck() -> None:
    grid = drawn()
    raw, neck = (select(grid, mode, 90, 90) for mode in ("raw", "neck"))
    assert ((raw == 255) == np.isin(grid, [SKIN, MOUTH, UPPER_LIP, LOWER_LIP])).all()
    assert ((neck == 255) == ((raw == 255) | (grid == NECK))).all()
    assert set(raw.flat) == set(neck.flat) == {0, 255}


@pytest.mark.parametrize("mode", MODES)
def test_the_nose_stays_and_the_lips_move(mode: ParsingMode) -> None:
    grid = drawn()
    mask = select(grid, mode, 90, 90)
    assert not mask[grid == NOSE].any()
    assert (mask[np.isin(grid, [MOUTH, UPPER_LIP, LOWER_LIP])] == 255).all()


def test_the_neck_contains_raw_on_a_real_face(found: tuple[np.ndarray, Box, Box]) -> None:
    mesh, _, crop = found
    grid = labels(mesh, crop)
    raw, neck = select(grid, "raw", 90, 90), select(grid, "neck", 90, 90)
    assert (neck[raw == 255] == 255).all()
    assert neck.sum() > raw.sum()


def test_the_jaw_kernel_is_a_cone_with_a_tail() -> None:
    assert JAW_KERNEL.shape == (33, 33)
    assert JAW_KERNEL.sum(axis=1).tolist() == [0] * 10 + list(range(1, 22, 2)) + [21] * 12
    assert (JAW_KERNEL[:, ::-1] == JAW_KERNEL).all()
    assert CHEEK_KERNEL.shape == (3, 35)


def test_jaw_spreads_the_middle_and_narrows_the_cheeks() -> None:
    grid = np.zeros((GRID, GRID), np.uint8)
    grid[100:400, 100:412] = SKIN
    mask = select(grid, "jaw", 90, 90)
    middle = np.flatnonzero(mask[:, 256])
    # OpenCV dilates with the kernel as it is, so the tail's 16 rows reach up, and the cone's tip 6 down.
    assert (middle[0], middle[-1]) == (100 - 16, 399 + 6)
    row = np.flatnonzero(mask[250])
    # The skin spreads by 10 columns to each side and is eroded by twice 17.
    assert (row[0], row[-1]) == (100 - 10 + 34, 411 + 10 - 34)


@pytest.mark.parametrize(("left", "right"), [(90, 90), (40, 90), (90, 40), (0, 0), (256, 256)])
def test_cheek_widths_say_where_the_erosion_begins(left: int, right: int) -> None:
    grid = np.zeros((GRID, GRID), np.uint8)
    grid[100:400, 200:312] = SKIN  # dilated 190 … 321, eroded 224 … 287
    row = np.flatnonzero(select(grid, "jaw", left, right)[250])
    # Beyond a width only what the erosion leaves; a width of 0 still keeps nothing more on that side.
    first = 224 if 256 - left >= 224 else max(190, 256 - left + 1)
    last = 287 if 256 + right <= 287 else min(321, 256 + right - 1)
    assert (row[0], row[-1]) == (first, last)


def test_crumbs_are_removed() -> None:
    grid = np.zeros((GRID, GRID), np.uint8)
    grid[150:450, 150:362] = SKIN
    grid[460:462, 20:22] = LOWER_LIP  # far from everything
    mask = select(grid, "jaw", 90, 90)
    assert not mask[455:, :100].any()
    assert mask[300, 256] == 255


def test_a_face_without_anything_has_an_empty_mask() -> None:
    for mode in MODES:
        assert not select(np.zeros((GRID, GRID), np.uint8), mode, 90, 90).any()


# -- the soft mask ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_nothing_changes_above_the_middle_but_for_the_blur(
    mode: ParsingMode, found: tuple[np.ndarray, Box, Box]
) -> None:
    mesh, box, crop = found
    mask = blend_mask(mesh, box, crop, mode)
    side = crop[2] - crop[0]
    reach = int(0.1 * side // 2 * 2) // 2  # of the Gaussian
    assert mask.shape == (side, side)
    assert mask.dtype == np.uint8
    assert not mask[: side // 2 - reach].any()
    assert mask[side // 2 + reach :].max() == 255


@pytest.mark.parametrize("mode", MODES)
def test_nothing_lies_outside_the_face_box_but_for_the_blur(
    mode: ParsingMode, found: tuple[np.ndarray, Box, Box]
) -> None:
    mesh, box, crop = found
    mask = blend_mask(mesh, box, crop, mode)
    reach = int(0.1 * (crop[2] - crop[0]) // 2 * 2) // 2
    rows, columns = np.nonzero(mask)
    assert rows.max() < box[3] - crop[1] + reach
    assert columns.min() >= box[0] - crop[0] - reach
    assert columns.max() < box[2] - crop[0] + reach


def test_the_mouth_is_replaced_wholly_and_the_nose_hardly(found: tuple[np.ndarray, Box, Box]) -> None:
    mesh, box, crop = found
    mask = blend_mask(mesh, box, crop, "jaw")
    x, y = np.round((mesh[13] + mesh[14]) / 2).astype(int) - crop[:2]
    assert mask[y, x] >= 250
    x, y = np.round(mesh[4]).astype(int) - crop[:2]
    assert mask[y, x] < 60
    for eye in (33, 263):
        x, y = np.round(mesh[eye]).astype(int) - crop[:2]
        assert mask[y, x] == 0


def test_wider_cheeks_replace_more(found: tuple[np.ndarray, Box, Box]) -> None:
    mesh, box, crop = found
    masks = [blend_mask(mesh, box, crop, "jaw", width, width).astype(int) for width in (20, 60, 90, 140)]
    for narrow, wide in pairwise(masks):
        assert (wide >= narrow).all()
        assert wide.sum() > narrow.sum()
    half = masks[2].shape[1] // 2
    left = blend_mask(mesh, box, crop, "jaw", 20, 90).astype(int)
    assert (left[:, half + 30 :] == masks[2][:, half + 30 :]).all()
    assert left[:, :half].sum() < masks[2][:, :half].sum()


# -- the region -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("move", [(0, 0), (1, 0), (0, 1), (1, 1), (-200, -180)])
def test_the_region_is_even_inside_the_face_and_says_all(
    mode: ParsingMode, move: tuple[int, int], found: tuple[np.ndarray, Box, Box]
) -> None:
    dx, dy = move
    mesh, box, crop = found
    mesh = mesh + move
    box = (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy)
    crop = (crop[0] + dx, crop[1] + dy, crop[2] + dx, crop[3] + dy)
    mask = blend_mask(mesh, box, crop, mode)
    result = mask_region(mask, box, crop)
    assert result is not None
    (x1, y1, x2, y2), part = result
    assert [value % 2 for value in (x1, y1, x2, y2)] == [0, 0, 0, 0]
    assert part.shape == (y2 - y1, x2 - x1)
    assert box[0] - 1 <= x1 < x2 <= box[2] + 1
    assert box[1] - 1 <= y1 < y2 <= box[3] + 1
    # Put back where it came from, it is the mask within the face box, and 0 elsewhere.
    whole = np.zeros((1024, 1024), np.uint8)
    whole[y1 + 300 : y2 + 300, x1 + 300 : x2 + 300] = part
    expected = np.zeros_like(whole)
    face = mask[box[1] - crop[1] : box[3] - crop[1], box[0] - crop[0] : box[2] - crop[0]]
    expected[box[1] + 300 : box[3] + 300, box[0] + 300 : box[2] + 300] = face
    assert (whole == expected).all()
    # And no smaller even rectangle would do.
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    assert rows[0] <= 1 and rows[-1] >= len(part) - 2
    assert columns[0] <= 1 and columns[-1] >= part.shape[1] - 2


def test_a_region_of_one_pixel() -> None:
    mask = np.zeros((30, 30), np.uint8)
    mask[13, 12] = 7
    result = mask_region(mask, (105, 205, 125, 225), (100, 200, 130, 230))
    assert result is not None
    region, part = result
    assert region == (112, 212, 114, 214)
    assert part.tolist() == [[0, 0], [7, 0]]


def test_what_lies_outside_the_face_box_is_no_reason_for_a_region() -> None:
    mask = np.zeros((30, 30), np.uint8)
    mask[2, 2] = mask[29, 29] = 255
    assert mask_region(mask, (105, 205, 125, 225), (100, 200, 130, 230)) is None
    assert mask_region(np.zeros((30, 30), np.uint8), (105, 205, 125, 225), (100, 200, 130, 230)) is None


def test_a_crop_box_past_the_frame_gives_a_region_inside_it(found: tuple[np.ndarray, Box, Box]) -> None:
    """A face cut by the frame's corner: the box is clipped, the crop reaches past, the region does not."""
    mesh, box, _ = found
    moved = mesh - (box[0] + 40, box[1] + 30)
    clipped: Box = (0, 0, box[2] - box[0] - 40, box[3] - box[1] - 30)
    crop = crop_box(clipped)
    assert crop[0] < 0 and crop[1] < 0
    result = mask_region(blend_mask(moved, clipped, crop, "jaw"), clipped, crop)
    assert result is not None
    (x1, y1, x2, y2), part = result
    assert 0 <= x1 < x2 <= clipped[2] + clipped[2] % 2
    assert 0 <= y1 < y2 <= clipped[3] + clipped[3] % 2
    assert part.max() == 255


@pytest.mark.parametrize("side", [2, 3, 4, 7, 20])
def test_tiny_boxes(side: int, found: tuple[np.ndarray, Box, Box]) -> None:
    mesh, box, _ = found
    scale = side / (box[2] - box[0])
    small: Box = (10, 10, 10 + side, 10 + side)
    mask = blend_mask((mesh - box[:2]) * scale + 10, small, crop_box(small), "jaw")
    result = mask_region(mask, small, crop_box(small))
    assert result is None or result[1].max() > 0


def test_the_blur_is_a_gaussian_of_a_tenth(found: tuple[np.ndarray, Box, Box]) -> None:
    mesh, box, crop = found
    side = crop[2] - crop[0]
    hard = cv2.resize(select(labels(mesh, crop), "jaw", 90, 90), (side, side), interpolation=cv2.INTER_LINEAR)
    kept = np.zeros_like(hard)
    inside = (slice(side // 2, box[3] - crop[1]), slice(box[0] - crop[0], box[2] - crop[0]))
    kept[inside] = hard[inside]
    kernel = side // 20 * 2 + 1
    assert abs(kernel - 0.1 * side) <= 2
    assert (blend_mask(mesh, box, crop) == cv2.GaussianBlur(kept, (kernel, kernel), 0)).all()
