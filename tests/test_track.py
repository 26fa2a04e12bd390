"""Which of several faces is the avatar's."""

import random

import numpy as np

from avatar_prep.faces import Face
from avatar_prep.track import follow_largest


def face(x: float, y: float, side: float, score: float = 0.9) -> Face:
    return Face(score, (x, y, x + side, y + side), np.zeros((6, 2)))


def lefts(found: list[Face | None]) -> list[float | None]:
    """Where the followed face is in each frame."""
    return [None if f is None else f.box[0] for f in found]


def test_no_frames_and_no_faces() -> None:
    assert follow_largest([]) == []
    assert follow_largest([[], [], []]) == [None, None, None]


def test_one_face_is_followed_as_it_moves() -> None:
    clip = [[face(10.0 * i, 0, 100)] for i in range(20)]
    assert lefts(follow_largest(clip)) == [10.0 * i for i in range(20)]


def test_the_larger_face_is_followed_whatever_the_order_and_the_scores() -> None:
    shuffle = random.Random(0).shuffle
    clip = []
    for i in range(20):
        faces = [face(100 + i, 50, 90, 0.6), face(300 - i, 60, 60, 0.99), face(10, 300, 30, 0.8)]
        shuffle(faces)
        clip.append(faces)
    assert lefts(follow_largest(clip)) == [100.0 + i for i in range(20)]


def test_another_person_who_is_once_larger_is_not_taken() -> None:
    clip = [[face(100, 50, 90), face(300, 50, 100 if i == 5 else 60)] for i in range(10)]
    assert lefts(follow_largest(clip)) == [100.0] * 10


def test_a_face_that_is_away_is_picked_up_again() -> None:
    clip = [[] if 3 <= i < 7 else [face(100 + i, 50, 90)] for i in range(10)]
    assert lefts(follow_largest(clip)) == [100, 101, 102, None, None, None, None, 107, 108, 109]


def test_another_face_is_not_taken_while_it_is_away() -> None:
    there, other = face(100, 50, 90), face(300, 50, 60)
    clip = [[other] if 3 <= i < 7 else [other, there] for i in range(10)]
    assert lefts(follow_largest(clip)) == [100] * 3 + [None] * 4 + [100] * 3


def test_two_that_touch_keep_apart() -> None:
    """Both move to the right, so that each comes to overlap where the other was."""
    clip = [[face(100 + 20 * i, 0, 100), face(180 + 20 * i, 0, 90)] for i in range(10)]
    assert lefts(follow_largest(clip)) == [100.0 + 20 * i for i in range(10)]
    assert lefts(follow_largest([faces[::-1] for faces in clip])) == [100.0 + 20 * i for i in range(10)]


def test_the_current_track_chooses_before_an_old_one() -> None:
    """A face that was there once, and by which the followed one now passes, does not take it over."""
    clip = [[face(150, 0, 100), face(20, 0, 100)], *[[face(20 + 30 * i, 0, 100)] for i in range(1, 8)]]
    assert lefts(follow_largest(clip)) == [20.0 + 30 * i for i in range(8)]


def test_one_face_is_not_two() -> None:
    """Two stand close; in the second frame only the smaller one is seen."""
    small, large = face(0, 0, 100), face(60, 0, 130)
    assert lefts(follow_largest([[small, large], [face(10, 0, 100)], [small, large]])) == [60, None, 60]


def test_a_jump_is_another_face() -> None:
    clip = [[face(0, 0, 50)]] * 3 + [[face(300, 0, 50)]] * 4
    assert lefts(follow_largest(clip)) == [None] * 3 + [300] * 4
