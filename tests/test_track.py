"""Which of several faces is the avatar's."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from avatar_prep import track as module
from avatar_prep.faces import Face, overlap
from avatar_prep.track import SAME_FACE, follow_largest
from lipserve.errors import Cancelled


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


# -- the same as said plainly, in less time ---------------------------------------------------------------------------


def plainly(detections: Sequence[Sequence[Face]]) -> list[Face | None]:
    """`follow_largest` as its docstring says it: every face against every track there ever was."""
    tracks: list[dict[int, Face]] = []
    for frame, faces in enumerate(detections):
        free = list(faces)
        for track in sorted(tracks, key=lambda t: -max(t)):
            last = track[max(track)]
            best = max(free, key=lambda face: overlap(face, last), default=None)
            if best is not None and overlap(best, last) >= SAME_FACE:
                track[frame] = best
                free = [face for face in free if face is not best]
        tracks += [{frame: face} for face in free]
    main = max(tracks, key=lambda track: sum(face.area for face in track.values()), default={})
    return [main.get(frame) for frame in range(len(detections))]


def unrelated(draw: random.Random, frames: int, most: int, room: float) -> list[list[Face]]:
    """Up to `most` faces a frame, anywhere in a square of `room` pixels, of many sizes, some exactly alike."""
    return [
        [
            face(
                round(draw.uniform(0, room), draw.choice((-1, 2))), draw.uniform(0, room), draw.choice((40, 60, 110.5))
            )
            for _ in range(draw.randint(0, most))
        ]
        for _ in range(frames)
    ]


@pytest.mark.parametrize("seed", range(60))
def test_random_clips_are_followed_as_plainly(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(module, "LOOK_AHEAD", draw.choice((1, 7, 64)))
    clip = unrelated(draw, draw.randint(1, 40), draw.randint(1, 8), draw.choice((30, 150, 600, 3000)))
    found, expected = follow_largest(clip), plainly(clip)
    assert [id(f) for f in found] == [id(f) for f in expected]


def test_faces_alike_are_taken_in_their_order() -> None:
    clip = [[face(0, 0, 50), face(0, 0, 50)] for _ in range(5)]
    assert [id(f) for f in follow_largest(clip)] == [id(faces[0]) for faces in clip]


def test_a_box_without_area_is_nobody() -> None:
    assert lefts(follow_largest([[face(5, 5, 0), face(0, 0, 50)], [face(5, 5, 0), face(1, 0, 50)]])) == [0, 1]


def test_only_tracks_that_a_face_could_continue_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 frames of ten faces each, of which 9 are somewhere else every time."""
    clip = [[face(0, i % 7, 100), *(face(1000 * (9 * i + n), 0, 50) for n in range(1, 10))] for i in range(600)]
    looked_at: list[int] = []
    real = module._choose

    def choose(tracks: Sequence[module._Track], boxes: np.ndarray) -> list[int | None]:
        looked_at.append(len(tracks))
        return real(tracks, boxes)

    monkeypatch.setattr(module, "_choose", choose)
    assert lefts(follow_largest(clip)) == [0.0] * 600
    assert looked_at == [0] + [1] * 599


def test_following_can_be_cancelled_at_every_frame() -> None:
    reports: list[None] = []

    def report() -> None:
        reports.append(None)
        if len(reports) == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        follow_largest([[face(0, 0, 50)]] * 10, report)
    assert len(reports) == 3
