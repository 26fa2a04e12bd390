"""The face networks on the bundled clip."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from samples import pictures

from avatar_prep.faces import Face, FaceFinder, overlap
from avatar_prep.track import follow_largest
from lipserve.colour import U8, planes_to_bgr
from lipserve.errors import ModelsMissing

GREY = 110


@pytest.fixture(scope="module")
def finder(face_models: Path) -> FaceFinder:
    return FaceFinder(face_models)


@pytest.fixture(scope="module")
def portrait() -> U8:
    """uint8 (512, 512, 3) BGR."""
    return planes_to_bgr(pictures(1)[0], "bt601")


def pasted(portrait: U8, size: tuple[int, int], *places: tuple[int, int, int]) -> U8:
    """Grey, of width and height `size`, with the portrait at each x, y, side."""
    picture = np.full((size[1], size[0], 3), GREY, np.uint8)
    for x, y, side in places:
        picture[y : y + side, x : x + side] = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
    return picture


def scaled(face: Face, x: int, y: int, side: int) -> Face:
    """The portrait's face as it is in a pasted one."""
    x1, y1, x2, y2 = (value * side / 512 for value in face.box)
    return Face(face.score, (x1 + x, y1 + y, x2 + x, y2 + y), face.points * side / 512 + (x, y))


def box(x1: float, y1: float, x2: float, y2: float) -> Face:
    return Face(1.0, (x1, y1, x2, y2), np.zeros((6, 2)))


def test_overlap_by_hand() -> None:
    assert overlap(box(0, 0, 10, 10), box(0, 0, 10, 10)) == 1
    assert overlap(box(0, 0, 10, 10), box(5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert overlap(box(0, 0, 10, 10), box(10, 0, 20, 10)) == 0
    assert overlap(box(0, 0, 10, 10), box(30, 30, 40, 40)) == 0
    assert overlap(box(0, 0, 10, 10), box(2, 2, 4, 4)) == pytest.approx(4 / 100)


def test_missing_models_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ModelsMissing, match=r"face_detection_short_range\.tflite") as caught:
        FaceFinder(tmp_path)
    assert caught.value.hint == "Run `lipserve setup` once."
    (tmp_path / "face_detection_short_range.tflite").write_bytes(b"x")
    with pytest.raises(ModelsMissing, match=r"face_landmark\.tflite"):
        FaceFinder(tmp_path)


def test_one_face_with_a_mesh_inside(finder: FaceFinder, portrait: U8) -> None:
    (face,) = finder.detect(portrait)
    x1, y1, x2, y2 = face.box
    assert face.score > 0.8
    assert 0 < x1 < x2 < 512
    assert 0 < y1 < y2 < 512
    right_eye, left_eye, nose, mouth = face.points[:4]
    assert right_eye[0] < nose[0] < left_eye[0]
    assert right_eye[1] < nose[1] < mouth[1]
    assert x1 < mouth[0] < x2 and y1 < mouth[1] < y2

    mesh = finder.mesh(portrait, face)
    assert mesh is not None
    assert mesh.shape == (468, 2)
    assert (mesh > 0).all() and (mesh < 512).all()
    assert mesh[152, 1] == pytest.approx(mesh[:, 1].max(), abs=3)  # the chin
    assert np.linalg.norm(mesh[4] - nose) < 0.1 * (x2 - x1)  # the nose's tip, by both networks
    assert np.linalg.norm((mesh[13] + mesh[14]) / 2 - mouth) < 0.1 * (x2 - x1)  # between the lips


def test_no_face_in_grey_or_in_a_gradient(finder: FaceFinder) -> None:
    assert finder.detect(np.full((300, 400, 3), GREY, np.uint8)) == []
    slope = np.tile(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (300, 1, 3))
    assert finder.detect(slope) == []


@pytest.mark.parametrize("size", [(16, 16), (16, 700), (700, 16), (17, 33)])
def test_small_and_narrow_pictures_have_no_face(finder: FaceFinder, size: tuple[int, int]) -> None:
    assert finder.detect(np.full((size[1], size[0], 3), GREY, np.uint8)) == []


def test_no_mesh_where_there_is_no_face(finder: FaceFinder, portrait: U8) -> None:
    face = finder.detect(portrait)[0]
    assert finder.mesh(np.full_like(portrait, GREY), face) is None


@pytest.mark.parametrize("quarter_turns", [1, 3])
def test_a_face_that_lies_on_its_side(finder: FaceFinder, portrait: U8, quarter_turns: int) -> None:
    upright = finder.mesh(portrait, finder.detect(portrait)[0])
    turned = np.ascontiguousarray(np.rot90(portrait, quarter_turns))
    (face,) = finder.detect(turned)
    mesh = finder.mesh(turned, face)
    assert upright is not None
    assert mesh is not None
    x, y = upright.T
    expected = np.stack([y, 511 - x] if quarter_turns == 1 else [511 - y, x], axis=1)
    assert np.linalg.norm(mesh - expected, axis=1).mean() < 6  # of a face of some 200 pixels


@pytest.mark.parametrize("place", [(40, 40, 200), (1600, 780, 200), (860, 440, 200)])
@pytest.mark.parametrize("upright", [False, True], ids=["wide", "tall"])
def test_a_small_face_in_a_large_picture(
    finder: FaceFinder, portrait: U8, place: tuple[int, int, int], upright: bool
) -> None:
    x, y, side = place
    size = (1920, 1080)
    if upright:
        x, y, size = y, x, (1080, 1920)
    picture = pasted(portrait, size, (x, y, side))
    (face,) = finder.detect(picture)
    assert overlap(face, scaled(finder.detect(portrait)[0], x, y, side)) > 0.5
    mesh = finder.mesh(picture, face)
    assert mesh is not None
    assert ((mesh > (x, y)) & (mesh < (x + side, y + side))).all()


def test_tiles_are_not_looked_at_where_the_whole_picture_shows_a_face(
    finder: FaceFinder, portrait: U8, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = finder._detect_square
    monkeypatch.setattr(finder, "_detect_square", lambda *square: (looks.append(square[3]), look(*square))[1])
    finder.detect(portrait)
    assert looks == [512]
    looks.clear()
    finder.detect(np.full((500, 700, 3), GREY, np.uint8))
    assert looks == [700] + [500] * 2 + [250] * 3 * 5  # ever closer, by half a square
    looks.clear()
    finder.detect(np.full((16, 20_000, 3), GREY, np.uint8))
    assert looks == [20_000]  # not thousands of small ones


def test_two_faces_are_both_found_once(finder: FaceFinder, portrait: U8) -> None:
    places = (20, 50, 512), (560, 200, 300)
    found = finder.detect(pasted(portrait, (900, 600), *places))
    assert len(found) == 2
    assert [face.score for face in found] == sorted((face.score for face in found), reverse=True)
    alone = finder.detect(portrait)[0]
    large, small = sorted(found, key=lambda face: -face.area)
    assert overlap(large, scaled(alone, *places[0])) > 0.6
    assert overlap(small, scaled(alone, *places[1])) > 0.6


def test_the_larger_of_two_is_followed(finder: FaceFinder, portrait: U8) -> None:
    """Though the order of detections changes, and though the larger one is away for two frames."""
    clip = []
    for frame in range(8):
        large, small = (20 + 6 * frame, 50, 512), (560, 280, 300)
        faces = finder.detect(pasted(portrait, (900, 600), *([small] if frame in (3, 4) else [small, large])))
        clip.append(faces if frame % 2 else faces[::-1])
    alone = finder.detect(portrait)[0]
    for frame, face in enumerate(follow_largest(clip)):
        if frame in (3, 4):
            assert face is None
        else:
            assert face is not None
            assert overlap(face, scaled(alone, 20 + 6 * frame, 50, 512)) > 0.5
