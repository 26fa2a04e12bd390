"""MuseTalk's box rule, by numbers computed by hand."""

import numpy as np
import pytest

from avatar_prep.boxes import crop_box, face_box, point_29
from avatar_prep.faces import Face

FULL_HD = (1920, 1080)


def mesh(left: float, right: float, chin: float, bridge: float) -> np.ndarray:
    """A mesh that is one point but for its extent and point 29 of the 68."""
    points = np.full((468, 2), ((left + right) / 2, bridge))
    points[0, 0], points[1, 0] = left, right
    points[152, 1] = chin
    points[195, 1], points[5, 1] = bridge - 1, bridge + 3  # (3·195 + 5) / 4 is `bridge`
    return points


def detected(*box: float) -> Face:
    return Face(0.9, box, np.zeros((6, 2)))  # type: ignore[arg-type]


NO_USE = detected(1, 2, 3, 4)


def test_point_29_lies_a_quarter_of_the_way() -> None:
    points = np.zeros((468, 2))
    points[195], points[5] = (7, 100), (9, 140)
    assert point_29(points) == 110


def test_the_half_line_halves_the_box() -> None:
    # chin 500, half line 400: y1 = 400 − (500 − 400)
    assert face_box(mesh(300.9, 480.2, 500.7, 400.5), NO_USE, FULL_HD, 0, 0) == (300, 300, 480, 500)


def test_extra_margin_goes_below_the_chin_only() -> None:
    assert face_box(mesh(300, 480, 500, 400), NO_USE, FULL_HD, 0, 10) == (300, 300, 480, 510)


@pytest.mark.parametrize(("shift", "top"), [(7, 314), (-7, 286), (0, 300), (50, 400), (-150, 0), (-200, 0)])
def test_bbox_shift_moves_the_top_twice_as_far(shift: int, top: int) -> None:
    assert face_box(mesh(300, 480, 500, 400), NO_USE, FULL_HD, shift, 0) == (300, top, 480, 500)


def test_a_half_line_above_the_middle_of_the_chin_ends_at_the_frames_top() -> None:
    assert face_box(mesh(300, 480, 500, 200), NO_USE, FULL_HD, 0, 0) == (300, 0, 480, 500)


@pytest.mark.parametrize(
    "points",
    [
        mesh(300, 480, 500, 501),  # the half line below the chin: mesh[:, 1].max() is that of point 5
        mesh(-0.0001 - 1, 480, 500, 400),  # left of the frame
        mesh(300.2, 300.9, 500, 400),  # no width
    ],
)
def test_an_impossible_box_falls_back_to_the_detectors(points: np.ndarray) -> None:
    fallback = detected(310.6, 290.2, 470.9, 505.5)
    shift = 200 if points[152, 1] < point_29(points) else 0
    assert face_box(points, fallback, FULL_HD, shift, 10) == (310, 290, 470, 515)


def test_a_fallback_past_the_frame_is_clipped() -> None:
    points = mesh(-5, 200, 300, 200)
    assert face_box(points, detected(-20.5, -30.2, 180.1, 310.9), (320, 240), 0, 10) == (0, 0, 180, 240)


def test_the_box_ends_at_the_frame() -> None:
    assert face_box(mesh(300, 700, 478, 400), NO_USE, (640, 480), 0, 10) == (300, 322, 640, 480)


@pytest.mark.parametrize(
    "box", [(700, 500, 900, 600), (-90, -90, -50, -50), (639, 479, 640, 480), (100, 100, 100, 100), (5, 5, 1, 1)]
)
def test_every_box_is_inside_the_frame_and_at_least_two_wide(box: tuple[float, float, float, float]) -> None:
    x1, y1, x2, y2 = face_box(mesh(-5, 200, 300, 200), detected(*box), (640, 480), 0, 0)
    assert x1 >= 0 and x1 + 2 <= x2 <= 640
    assert y1 >= 0 and y1 + 2 <= y2 <= 480


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        ((300, 300, 480, 510), (233, 248, 547, 562)),  # 180×210: centre (390, 405), half int(105·1.5) = 157
        ((300, 300, 481, 511), (233, 248, 547, 562)),  # odd sides: 211 // 2 = 105 again
        ((0, 0, 100, 60), (-25, -45, 125, 105)),  # past the frame
        ((10, 10, 12, 12), (10, 10, 12, 12)),
    ],
)
def test_the_crop_box_is_a_square_half_as_large_again(
    box: tuple[int, int, int, int], crop: tuple[int, int, int, int]
) -> None:
    assert crop_box(box) == crop
    assert crop[2] - crop[0] == crop[3] - crop[1]
