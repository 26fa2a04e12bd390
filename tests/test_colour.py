"""Colours through YUV and back."""

import cv2
import numpy as np
import pytest
from samples import smooth

from lipserve.colour import Matrix, bgr_to_planes, planes, planes_to_bgr

MATRICES: tuple[Matrix, ...] = ("bt601", "bt709", "bt2020")
KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def i420_of(bgr: np.ndarray, matrix: Matrix) -> np.ndarray:
    return np.concatenate([plane.reshape(-1) for plane in bgr_to_planes(bgr, matrix)]).reshape(-1, bgr.shape[1])


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("matrix", MATRICES)
def test_round_trip_of_every_flat_colour(matrix: Matrix) -> None:
    levels = np.array([0, 1, 50, 100, 128, 180, 220, 254, 255], np.uint8)
    for colour in np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3):
        picture = np.full((2, 2, 3), colour, np.uint8)
        assert largest_difference(planes_to_bgr(i420_of(picture, matrix), matrix), picture) <= 2, colour


@pytest.mark.parametrize("matrix", MATRICES)
def test_round_trip_of_a_smooth_picture(matrix: Matrix) -> None:
    picture = smooth(640, 480)
    # One level more than for flat colours: four pixels share their chroma.
    assert largest_difference(planes_to_bgr(i420_of(picture, matrix), matrix), picture) <= 3


@pytest.mark.parametrize("matrix", MATRICES)
def test_planes_follow_the_standards_formula(matrix: Matrix) -> None:
    kr, kb = KR_KB[matrix]
    for b, g, r in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (10, 200, 90)):
        luma = kr * r + (1 - kr - kb) * g + kb * b
        expected = (
            16 + luma * 219 / 255,
            128 + (b - luma) / (2 * (1 - kb)) * 224 / 255,
            128 + (r - luma) / (2 * (1 - kr)) * 224 / 255,
        )
        found = bgr_to_planes(np.full((2, 2, 3), (b, g, r), np.uint8), matrix)
        assert [int(plane[0, 0]) for plane in found] == pytest.approx(expected, abs=0.6)


def test_white_and_black_are_235_and_16() -> None:
    for matrix in MATRICES:
        for level, luma in ((255, 235), (0, 16)):
            y, u, v = bgr_to_planes(np.full((2, 4, 3), level, np.uint8), matrix)
            assert (set(y.flat), set(u.flat), set(v.flat)) == ({luma}, {128}, {128})


def test_bt601_is_what_opencv_does() -> None:
    picture = smooth(640, 480)
    theirs = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
    assert largest_difference(i420_of(picture, "bt601"), theirs) <= 1
    assert largest_difference(planes_to_bgr(theirs, "bt601"), cv2.cvtColor(theirs, cv2.COLOR_YUV2BGR_I420)) <= 2


def test_the_matrices_differ() -> None:
    red = np.full((2, 2, 3), (0, 0, 255), np.uint8)
    assert [int(bgr_to_planes(red, matrix)[0][0, 0]) for matrix in MATRICES] == [81, 63, 74]


def test_chroma_is_the_mean_of_four() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 0] = (255, 0, 0)
    single = int(bgr_to_planes(np.full((2, 2, 3), (255, 0, 0), np.uint8), "bt601")[1][0, 0])
    _, u, _ = bgr_to_planes(picture, "bt601")
    assert u.shape == (1, 1)
    assert int(u[0, 0]) == round((single + 3 * 128) / 4)


def test_planes_are_views_of_the_picture() -> None:
    i420 = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)  # 8×4 pixels
    y, u, v = planes(i420)
    assert [plane.shape for plane in (y, u, v)] == [(4, 8), (2, 4), (2, 4)]
    assert y[3, 7] == 31
    assert u.reshape(-1).tolist() == list(range(32, 40))
    assert v.reshape(-1).tolist() == list(range(40, 48))
    v[1, 3] = 255
    assert i420[5, 7] == 255
