"""The blend against what it stands for: the picture in BGR, the face resized to its box, composited with the mask."""

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from samples import blended, smooth

from gateway.blend import blend, composite
from lipserve.avatar import REGION, Avatar, AvatarInfo, write_info
from lipserve.colour import U8, ColourTags, Matrix, bgr_to_planes, planes, planes_to_bgr

WIDTH, HEIGHT = 320, 240
SPACES: dict[Matrix, int] = {"bt601": 6, "bt709": 1, "bt2020": 9}
Box = tuple[int, int, int, int]


def even(box: Box) -> Box:
    """The smallest even-sided rectangle around it."""
    x1, y1, x2, y2 = box
    return x1 // 2 * 2, y1 // 2 * 2, -(-x2 // 2) * 2, -(-y2 // 2) * 2


def stored(folder: Path, picture: U8, box: Box | None, mask: U8 | None, matrix: Matrix = "bt601") -> Avatar:
    """An avatar of one frame. `mask`: (h, w) on the even rectangle around `box`."""
    folder.mkdir(exist_ok=True)
    frame = np.concatenate([plane.reshape(-1) for plane in bgr_to_planes(picture, matrix)])
    frame.tofile(folder / "frames.yuv")
    np.save(folder / "latents.npy", np.zeros((1, 8, 32, 32), np.float16))
    regions = np.zeros(1, REGION)
    if box is not None:
        regions[0] = (True, box, even(box), 5)
    np.save(folder / "regions.npy", regions)
    (folder / "masks.u8").write_bytes(b"\xff" * 5 + (mask.tobytes() if mask is not None else b""))
    tags = ColourTags(SPACES[matrix])
    info = AvatarInfo(
        avatar_id="a",
        prepared_at="",
        source="",
        source_sha256="",
        parameters={},
        weights_id="",
        fps=25,
        width=WIDTH,
        height=HEIGHT,
        frames=1,
        frames_without_face=int(box is None),
        colour_space=tags.space,
        colour_primaries=tags.primaries,
        colour_transfer=tags.transfer,
    )
    write_info(folder, info)
    return Avatar(folder)


def full_mask(box: Box, value: int) -> U8:
    """`value` within the box, 0 where its even rectangle reaches past it."""
    x1, y1, x2, y2 = even(box)
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    mask[box[1] - y1 : box[3] - y1, box[0] - x1 : box[2] - x1] = value
    return mask


def soft_mask(box: Box) -> U8:
    """A wide slope towards every edge of the box, as the Gaussian makes it."""
    mask = full_mask(box, 0)
    inner = mask[box[1] - even(box)[1] :, box[0] - even(box)[0] :][: box[3] - box[1], : box[2] - box[0]]
    h, w = inner.shape
    inner[:] = np.round(255 * np.outer(np.sin(np.linspace(0, np.pi, h)), np.sin(np.linspace(0, np.pi, w))))
    return mask


BACKGROUND = smooth(WIDTH, HEIGHT)
FACE = np.ascontiguousarray(smooth(256, 256)[::-1, ::-1])
BOX: Box = (60, 40, 220, 200)
ODD_BOXES: list[Box] = [(61, 41, 221, 201), (61, 40, 220, 201), (60, 41, 221, 200), (63, 45, 182, 166)]
CORNER_BOXES: list[Box] = [(0, 0, 100, 120), (WIDTH - 101, HEIGHT - 121, WIDTH, HEIGHT), (0, 0, WIDTH, HEIGHT)]


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).max())


def expected_bgr(background: U8, box: Box, mask: U8) -> np.ndarray:
    """float64 (h, w, 3): MuseTalk's composite, without any rounding."""
    x1, y1, x2, y2 = box
    left, top, right, bottom = even(box)
    out = background.astype(np.float64)
    face = cv2.resize(FACE.astype(np.float64), (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
    pasted = out.copy()
    pasted[y1:y2, x1:x2] = face
    alpha = np.zeros((HEIGHT, WIDTH, 1))
    alpha[top:bottom, left:right, 0] = mask / 255
    return pasted * alpha + out * (1 - alpha)


def straightforward(avatar: Avatar, index: int, face: U8) -> list[np.ndarray]:
    """Y, U and V of the whole picture: the face pasted, converted, composited in float64, and rounded once."""
    before = [plane.astype(np.float64) for plane in planes(avatar.frame(index))]
    (x1, y1, x2, y2), (left, top, right, bottom) = (avatar.regions[index][name] for name in ("face", "region"))
    height, width = before[0].shape
    pasted = np.zeros((height, width, 3))
    # Beyond the box, where a region of even sides reaches a pixel, the mask is 0, but chroma is a mean of four.
    resized = cv2.resize(face, (int(x2 - x1), int(y2 - y1)), interpolation=cv2.INTER_LINEAR).astype(np.float64)
    rows, columns = np.clip(np.arange(height) - y1, 0, y2 - y1 - 1), np.clip(np.arange(width) - x1, 0, x2 - x1 - 1)
    pasted[:] = resized[rows][:, columns]
    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}[avatar.info.tags.matrix]
    b, g, r = np.moveaxis(pasted / 255, 2, 0)
    luma = kr * r + (1 - kr - kb) * g + kb * b
    after = [16 + 219 * luma, 128 + 112 * (b - luma) / (1 - kb), 128 + 112 * (r - luma) / (1 - kr)]
    after[1:] = (mean_of_four(plane) for plane in after[1:])
    alpha = np.zeros((height, width))
    alpha[top:bottom, left:right] = avatar.mask(index) / 255
    alphas = [alpha, mean_of_four(alpha), mean_of_four(alpha)]
    return [np.round(old * (1 - a) + new * a) for old, new, a in zip(before, after, alphas, strict=True)]


def mean_of_four(plane: np.ndarray) -> np.ndarray:
    return plane.reshape(plane.shape[0] // 2, 2, plane.shape[1] // 2, 2).mean(axis=(1, 3))


# -- one plane --------------------------------------------------------------------------------------------------------


def test_composite_rounds_as_pil_does_for_every_pair_of_values() -> None:
    target, source = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for m in range(256):
        mixed = target.copy()
        composite(mixed, source, np.full_like(target, m))
        exact = (target.astype(int) * (255 - m) + source.astype(int) * m) / 255
        assert np.abs(mixed - exact).max() <= 0.502, m
    composite(target, source, np.full_like(target, 255))
    assert (target == source).all()


def test_composite_writes_into_a_view() -> None:
    whole = np.zeros((4, 4), np.uint8)
    composite(whole[1:3, 1:3], np.full((2, 2), 200, np.uint8), np.full((2, 2), 255, np.uint8))
    assert whole.sum() == 4 * 200


# -- the picture ------------------------------------------------------------------------------------------------------


def test_a_frame_without_a_face_is_left_as_it_is(tmp_path: Path) -> None:
    avatar = stored(tmp_path, BACKGROUND, None, None)
    out = blended(avatar, 0, FACE)
    assert (out == avatar.frame(0)).all()


@pytest.mark.parametrize("box", [BOX, *ODD_BOXES, *CORNER_BOXES])
def test_a_mask_of_zeros_leaves_every_bit(box: Box, tmp_path: Path) -> None:
    avatar = stored(tmp_path, BACKGROUND, box, full_mask(box, 0))
    assert (blended(avatar, 0, FACE) == avatar.frame(0)).all()


@pytest.mark.parametrize("matrix", SPACES)
def test_a_full_mask_shows_the_face_in_the_sources_colours(matrix: Matrix, tmp_path: Path) -> None:
    avatar = stored(tmp_path, BACKGROUND, BOX, full_mask(BOX, 255), matrix)
    out = blended(avatar, 0, FACE)
    x1, y1, x2, y2 = BOX
    resized = cv2.resize(FACE, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
    for shown, face, step in zip(planes(out), bgr_to_planes(resized, matrix), (1, 2, 2), strict=True):
        assert (shown[y1 // step : y2 // step, x1 // step : x2 // step] == face).all()


@pytest.mark.parametrize("mask_value", [1, 128, 255])
@pytest.mark.parametrize("box", [BOX, *ODD_BOXES, *CORNER_BOXES])
def test_nothing_outside_the_region_changes(box: Box, mask_value: int, tmp_path: Path) -> None:
    avatar = stored(tmp_path, BACKGROUND, box, full_mask(box, mask_value))
    out = blended(avatar, 0, FACE)
    left, top, right, bottom = even(box)
    for shown, source, step in zip(planes(out), planes(avatar.frame(0)), (1, 2, 2), strict=True):
        outside = np.ones(shown.shape, bool)
        outside[top // step : bottom // step, left // step : right // step] = False
        assert (shown[outside] == source[outside]).all()
    # The luma of the pixel that only evens out the region is not the face's to change.
    luma, before = planes(out)[0], planes(avatar.frame(0))[0]
    inside = np.zeros(luma.shape, bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    assert (luma[~inside] == before[~inside]).all()
    assert (luma[inside] != before[inside]).any() or mask_value == 1


@pytest.mark.parametrize("matrix", SPACES)
@pytest.mark.parametrize("box", [BOX, *ODD_BOXES, *CORNER_BOXES])
def test_planes_equal_the_float_composite_within_two_levels(box: Box, matrix: Matrix, tmp_path: Path) -> None:
    mask = soft_mask(box)
    out = blended(stored(tmp_path, BACKGROUND, box, mask, matrix), 0, FACE)
    reference = bgr_to_planes(np.round(expected_bgr(BACKGROUND, box, mask)).astype(np.uint8), matrix)
    for shown, plane in zip(planes(out), reference, strict=True):
        assert largest_difference(shown, plane) <= 2


NOISE = np.random.default_rng(1).integers(0, 256, (256, 256, 3), np.uint8)


@pytest.mark.parametrize("matrix", SPACES)
@pytest.mark.parametrize("box", [BOX, *ODD_BOXES, *CORNER_BOXES])
def test_planes_equal_the_straightforward_path_within_one_level(box: Box, matrix: Matrix, tmp_path: Path) -> None:
    """Whatever the face holds: noise has every colour, and no two pixels alike."""
    avatar = stored(tmp_path, BACKGROUND, box, soft_mask(box), matrix)
    for face in (FACE, NOISE):
        for shown, plane in zip(planes(blended(avatar, 0, face)), straightforward(avatar, 0, face), strict=True):
            assert largest_difference(shown, plane) <= 1


def test_frames_drawn_into_one_buffer_do_not_mix(tmp_path: Path) -> None:
    """As the mp4 writer's is used: what stood there before is gone, the face of the frame before included."""
    avatars = [
        stored(tmp_path / "a", BACKGROUND, BOX, soft_mask(BOX)),
        stored(tmp_path / "b", BACKGROUND[::-1], ODD_BOXES[0], soft_mask(ODD_BOXES[0])),
        stored(tmp_path / "c", BACKGROUND, None, None),
    ]
    target = planes(np.empty((HEIGHT * 3 // 2, WIDTH), np.uint8))
    for avatar in avatars * 2:
        blend(avatar, 0, NOISE, target)
        for shown, alone in zip(target, planes(blended(avatar, 0, NOISE)), strict=True):
            assert (shown == alone).all()


def test_nothing_of_a_frames_size_is_allocated(tmp_path: Path) -> None:
    """Only of the region's."""
    box = (100, 100, 140, 140)
    avatar = stored(tmp_path, BACKGROUND, box, soft_mask(box))
    target = planes(np.empty((HEIGHT * 3 // 2, WIDTH), np.uint8))
    blend(avatar, 0, FACE, target)
    tracemalloc.start()
    blend(avatar, 0, FACE, target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < WIDTH * HEIGHT // 2


@pytest.mark.parametrize("box", [BOX, *ODD_BOXES])
def test_pictures_equal_the_float_composite(box: Box, tmp_path: Path) -> None:
    """As seen: the chroma of 4:2:0 adds a level or two where colours slope."""
    mask = soft_mask(box)
    avatar = stored(tmp_path, BACKGROUND, box, mask)
    difference = planes_to_bgr(blended(avatar, 0, FACE), "bt601").astype(float) - expected_bgr(BACKGROUND, box, mask)
    assert np.abs(difference).max() <= 5
    assert np.abs(difference).mean() < 1


def test_the_face_itself_blended_in_changes_nothing_visible(tmp_path: Path) -> None:
    """What a perfect reconstruction of the original would give, with a hard edge to the mask."""
    background = smooth(WIDTH, HEIGHT)
    x1, y1, x2, y2 = BOX
    face = cv2.resize(background[y1:y2, x1:x2], (256, 256), interpolation=cv2.INTER_CUBIC)
    avatar = stored(tmp_path, background, BOX, full_mask(BOX, 255))
    assert largest_difference(blended(avatar, 0, face), avatar.frame(0)) <= 2


@pytest.mark.parametrize("box", [(100, 100, 102, 102), (101, 101, 103, 104), (0, 0, 2, 2)])
def test_the_smallest_faces(box: Box, tmp_path: Path) -> None:
    avatar = stored(tmp_path, BACKGROUND, box, full_mask(box, 255))
    flat = np.full((256, 256, 3), (10, 20, 230), np.uint8)
    y = planes(blended(avatar, 0, flat))[0]
    assert set(y[box[1] : box[3], box[0] : box[2]].flat) == {int(bgr_to_planes(flat, "bt601")[0][0, 0])}
    assert y.shape == (HEIGHT, WIDTH)


def test_a_region_smaller_than_the_face_takes_its_part_of_it(tmp_path: Path) -> None:
    """The usual case: the mask covers the jaw, the box the whole face."""
    avatar = stored(tmp_path, BACKGROUND, BOX, full_mask(BOX, 255))
    whole = blended(avatar, 0, FACE)
    regions = np.load(tmp_path / "regions.npy")
    regions[0]["region"], regions[0]["mask_start"] = (100, 120, 180, 190), 0
    np.save(tmp_path / "regions.npy", regions)
    (tmp_path / "masks.u8").write_bytes(b"\xff" * (80 * 70))
    part = Avatar(tmp_path)
    out = blended(part, 0, FACE)
    for shown, full, before, step in zip(planes(out), planes(whole), planes(part.frame(0)), (1, 2, 2), strict=True):
        here = (slice(120 // step, 190 // step), slice(100 // step, 180 // step))
        assert (shown[here] == full[here]).all()
        shown[here] = before[here]
        assert (shown == before).all()


def test_the_stored_frame_is_never_written(tmp_path: Path) -> None:
    avatar = stored(tmp_path, BACKGROUND, BOX, full_mask(BOX, 255))
    before = (tmp_path / "frames.yuv").read_bytes()
    first = blended(avatar, 0, FACE)
    assert (tmp_path / "frames.yuv").read_bytes() == before == avatar.frame(0).tobytes()
    assert (blended(avatar, 0, FACE) == first).all()


def test_the_generated_face_is_never_written(tmp_path: Path) -> None:
    avatar = stored(tmp_path, BACKGROUND, BOX, full_mask(BOX, 128))
    face = FACE.copy()
    face.flags.writeable = False
    blended(avatar, 0, face)
    assert (face == FACE).all()
