"""The procedural portraits: pictures repeat, mouths open as told, idle loops close, the bundled clips are sound."""

from dataclasses import astuple
from pathlib import Path

import cv2
import numpy as np
import pytest

from export.portrait.clip import write_clip
from export.portrait.controls import REST_MOUTH, REST_POSE, Mouth, Pose
from export.portrait.identity import BUNDLED, LISA, MARK, Identity
from export.portrait.motion import idle_motion
from export.portrait.portrait import Portrait

DEMO = Path(__file__).parents[1] / "demo"
SIZE = 128
BARE = {"teeth": 0.0, "tongue": 0.0}  # nothing but the dark behind the lips


@pytest.fixture(scope="module")
def lisa() -> Portrait:
    return Portrait(LISA, SIZE)


def dark_rows(picture: np.ndarray, portrait: Portrait, mouth: Mouth) -> int:
    """Pixels of dark cavity down the middle of the mouth."""
    where = portrait.geometry(REST_POSE, mouth)
    x, top, bottom = round(where.upper_lip[0]), int(where.upper_lip[1]) - 8, int(where.lower_lip[1]) + 8
    return int((picture[top:bottom, x - 1 : x + 1].mean(axis=(1, 2)) < 75).sum())


def test_frames_are_pictures_of_the_size_asked_for(lisa: Portrait) -> None:
    picture = lisa.render()
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("size", [32, 130])
def test_sizes_that_cannot_be_drawn_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        Portrait(LISA, size)


def test_the_same_input_gives_the_same_bytes(lisa: Portrait) -> None:
    pose, mouth = Pose(yaw=0.1, roll=0.03, blink=0.4), Mouth(open=0.5, jaw=0.4, tongue=0.5)
    picture = lisa.render(pose, mouth)
    lisa.render(Pose(x=0.1), Mouth(round=1.0))
    assert np.array_equal(picture, lisa.render(pose, mouth))
    assert np.array_equal(picture, Portrait(LISA, SIZE).render(pose, mouth))


def test_a_sampled_person_is_the_same_for_the_same_seed() -> None:
    assert Identity.random(np.random.default_rng(5)) == Identity.random(np.random.default_rng(5))


def test_people_differ() -> None:
    people = [Identity.random(np.random.default_rng([1, i])) for i in range(12)]
    assert len({person.name for person in people}) == 12
    assert len({person.hair for person in people}) >= 4
    pictures = [Portrait(person, 64).render().astype(int) for person in people[:4]]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one - other).mean() > 8


@pytest.mark.parametrize("hair", ["bald", "buzz", "short", "swept", "bob", "long", "tied", "curls"])
def test_every_hair_style_can_be_drawn(hair: str) -> None:
    person = Identity(name="anyone", seed=3, skin=(0.5, 0.6, 0.8), hair=hair, clothing="vneck")  # type: ignore[arg-type]
    assert Portrait(person, 64).render().std() > 20


def test_the_dark_between_the_lips_is_as_high_as_the_gap() -> None:
    large = Portrait(LISA, 256)
    openings = np.linspace(0, 1, 9)
    gaps, seen = [], []
    for opening in openings:
        mouth = Mouth(open=float(opening), jaw=float(opening), **BARE)
        gaps.append(large.mouth_gap(mouth))
        seen.append(dark_rows(large.render(REST_POSE, mouth), large, mouth))
    assert gaps[0] == 0 and gaps[-1] == pytest.approx(16)
    assert np.all(np.diff(gaps) > 0)
    assert np.all(np.diff(seen[1:]) > 0)
    assert np.corrcoef(gaps, seen)[0, 1] > 0.97


def test_geometry_measures_the_gap_it_draws(lisa: Portrait) -> None:
    mouth = Mouth(open=0.6, jaw=0.5)
    where = lisa.geometry(REST_POSE, mouth)
    assert where.lower_lip[1] - where.upper_lip[1] == pytest.approx(where.gap)
    assert where.gap == lisa.mouth_gap(mouth)


def test_geometry_follows_the_pose(lisa: Portrait) -> None:
    still = lisa.geometry()
    moved = lisa.geometry(Pose(x=0.1, y=-0.05))
    assert moved.chin[0] - still.chin[0] == pytest.approx(0.1 * SIZE / 2, abs=1e-3)
    assert moved.chin[1] - still.chin[1] == pytest.approx(-0.05 * SIZE / 2, abs=1e-3)
    assert lisa.geometry(Pose(yaw=0.1)).upper_lip[0] > still.upper_lip[0]


@pytest.mark.parametrize("mouth", [Mouth(press=1.0), Mouth(press=1.0, open=1.0), Mouth(jaw=0.4), Mouth(round=1.0)])
def test_closed_lips_show_no_dark(lisa: Portrait, mouth: Mouth) -> None:
    assert lisa.mouth_gap(mouth) == 0
    assert dark_rows(lisa.render(REST_POSE, mouth), lisa, mouth) <= 1


def test_rounding_narrows_and_spreading_widens(lisa: Portrait) -> None:
    def width(mouth: Mouth) -> float:
        where = lisa.geometry(REST_POSE, mouth)
        return where.right_corner[0] - where.left_corner[0]

    assert width(Mouth(round=1.0)) < 0.75 * width(REST_MOUTH)
    assert width(Mouth(width=1.0)) > 1.1 * width(REST_MOUTH)


def test_the_mouth_moves_nothing_above_the_nose(lisa: Portrait) -> None:
    still, moved = lisa.render(), lisa.render(REST_POSE, Mouth(open=1.0, jaw=1.0, width=0.5))
    nose = int(lisa.geometry().left_eye[1] + 8)
    assert np.array_equal(still[:nose], moved[:nose])
    assert not np.array_equal(still, moved)


def test_silence_is_a_still_picture(lisa: Portrait) -> None:
    assert np.array_equal(lisa.render(REST_POSE, REST_MOUTH), lisa.render(REST_POSE, Mouth(open=0.0)))


@pytest.mark.parametrize("seed", [LISA.seed, MARK.seed, 4])
def test_the_idle_loop_closes(seed: int) -> None:
    poses = np.array([astuple(pose) for pose in idle_motion(seed, 25, 8.0)])
    assert poses.shape == (200, len(astuple(REST_POSE)))
    steps = np.abs(np.diff(poses, axis=0)).max(axis=0)
    assert np.all(np.abs(poses[0] - poses[-1]) <= steps + 1e-9)
    blink = poses[:, 5]
    assert blink.max() > 0.9
    starts = np.flatnonzero((blink[1:] > 0.3) & (blink[:-1] <= 0.3))
    assert 2 <= len(starts) <= 5
    assert len(set(np.diff(starts))) == len(starts) - 1  # irregular


def test_a_clip_keeps_every_frame(lisa: Portrait, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, (lisa.render(pose) for pose in idle_motion(1, 25, 0.4)), SIZE, 25)
    assert decoded(path) == (10, 25.0, (SIZE, SIZE))


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_the_bundled_clips_are_whole_and_small(name: str) -> None:
    path = DEMO / f"{name}.mp4"
    assert decoded(path) == (200, 25.0, (512, 512))
    assert path.stat().st_size < 1_500_000


def decoded(path: Path) -> tuple[int, float, tuple[int, int]]:
    """Frames, frames per second and size of a clip, all of it decoded."""
    video = cv2.VideoCapture(str(path))
    count, shape = 0, (0, 0)
    while True:
        whole, picture = video.read()
        if not whole:
            return count, video.get(cv2.CAP_PROP_FPS), shape
        count, shape = count + 1, picture.shape[:2]
