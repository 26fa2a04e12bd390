"""benchmarks/mask_rows.py against the blending itself: rows above its first change nothing, and that row does."""

from pathlib import Path

import mask_rows
import numpy as np
import pytest
from samples import blended
from test_blend import BACKGROUND, BOX, CORNER_BOXES, ODD_BOXES, Box, full_mask, stored

from lipserve.colour import U8
from lipserve.contract import FACE_SIZE

SMALL_BOXES: list[Box] = [(100, 60, 140, 101), (101, 61, 131, 93)]


def face(blue_rows: int) -> U8:
    """Yellow, blue in its first rows: far apart in luma and in chroma."""
    out = np.full((FACE_SIZE, FACE_SIZE, 3), (0, 255, 255), np.uint8)
    out[:blue_rows] = 255, 0, 0
    return out


@pytest.mark.parametrize("box", [BOX, *ODD_BOXES, *CORNER_BOXES, *SMALL_BOXES])
@pytest.mark.parametrize("begins", [0.0, 0.4, 0.43, 0.5])
@pytest.mark.parametrize("value", [1, 2, 255])
def test_the_first_row_read(box: Box, begins: float, value: int, tmp_path: Path) -> None:
    mask = full_mask(box, value)
    mask[: round(begins * mask.shape[0])] = 0
    avatar = stored(tmp_path, BACKGROUND, box, mask)
    region = tuple(int(edge) for edge in avatar.regions[0]["region"])
    _, first = mask_rows.first_rows(box, region, mask)
    shown = blended(avatar, 0, face(0))
    assert (blended(avatar, 0, face(first)) == shown).all()
    if value == 255:
        assert (blended(avatar, 0, face(first + 1)) != shown).any()


def test_where_a_mask_begins() -> None:
    # 128 pixels of box to 256 rows: pixel 10 + 13 is rows 46 and 47, and its bilinear place is between these two.
    mask = np.zeros((64, 64), np.uint8)
    mask[14:], mask[13, 1] = 255, 1  # a quarter of 1 is no weight of chroma
    assert mask_rows.first_rows((0, 0, 128, 128), (0, 10, 64, 74), mask) == (46, 46)
    mask[13] = 255  # the chroma of pixels 12 and 13 is one
    assert mask_rows.first_rows((0, 0, 128, 128), (0, 10, 64, 74), mask) == (46, 44)
