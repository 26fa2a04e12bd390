"""Avatars of MuseTalk's scripts taken over: the same frames in the same order, blended to the same pictures."""

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from musetalk_folder import Theirs, as_theirs, blend_of_v1, lisa, soft_mask, stored_blend, their_blend, write_tensors
from samples import blended, frames_of, pictures, short_clip, smooth, tone, write_sound, write_video
from test_cli import run

from avatar_prep.boxes import crop_box
from avatar_prep.imported import import_avatar
from avatar_prep.prepare import Parameters
from avatar_prep.source import Limits
from gateway.engine import Engine, SyncRequest
from lipserve.avatar import Avatar
from lipserve.colour import U8, ColourTags, bgr_to_i420, bgr_to_planes, planes, planes_to_bgr
from lipserve.embedded import EmbeddedTriton
from lipserve.errors import (
    AvatarExists,
    InvalidParameter,
    NoFace,
    NotAVideo,
    NotImportable,
    UnsafePickle,
    VideoTooLarge,
)
from lipserve.media import VideoReader
from lipserve.settings import Settings
from lipserve.store import AvatarStore

N = 5
FACE = np.ascontiguousarray(smooth(256, 256)[::-1, ::-1])
FACE[60:200:3] //= 2  # edges, so that a shift by a pixel shows


def ignore(stage: str, done: int, total: int | None) -> None: ...


def taken(theirs: Path, out: Path, **more: Any) -> Avatar:
    """`theirs` imported into a new folder beside it, and opened."""
    out.mkdir()
    arguments = {"fps": 25, "weights_id": "w", "limits": Limits(), "progress": ignore} | more
    import_avatar(theirs, out, "lisa", **arguments)
    return Avatar(out)


@pytest.fixture(scope="module")
def source() -> Theirs:
    return lisa(N)


@pytest.fixture
def theirs(source: Theirs, tmp_path: Path) -> Path:
    return source.write(tmp_path / "theirs")


def refused(theirs: Path, error: type[Exception] = NotImportable, **more: Any) -> Any:
    """The error of an import that must fail."""
    with pytest.raises(error) as caught:
        taken(theirs, theirs.parent / "out", **more)
    assert type(caught.value) is error
    assert caught.value.hint  # type: ignore[attr-defined]
    return caught.value


# -- the same frames in the same order --------------------------------------------------------------------------------


def test_the_cycle_is_folded_and_plays_as_it_did(theirs: Path, source: Theirs, tmp_path: Path) -> None:
    avatar = taken(theirs, tmp_path / "out")
    assert (avatar.info.frames, avatar.info.frames_without_face) == (N, 0)
    cycle = source.cycle()
    for frame in range(4 * N + 3):
        index, stored = cycle[frame % len(cycle)], avatar.index(frame, 25)
        assert (avatar.frames[stored] == bgr_to_i420(source.pictures[index])[0]).all()
        assert tuple(avatar.regions[stored]["face"]) == source.boxes[index]
        assert (avatar.latents[stored] == source.latents[index][0].astype(np.float16)).all()


def test_what_is_said_about_it(theirs: Path, tmp_path: Path) -> None:
    info = taken(theirs, tmp_path / "out", fps=30, weights_id="sd").info
    assert (info.avatar_id, info.source, info.weights_id, info.fps) == ("lisa", "theirs", "sd", 30)
    assert (info.width, info.height, info.tags) == (512, 512, ColourTags(space=6))
    assert info.parameters == {"imported_from": "MuseTalk", "version": "v15", "bbox_shift": 0}
    preview = cv2.imread(str(tmp_path / "out/preview.jpg"))
    assert preview.shape == (512, 512, 3)


@pytest.mark.parametrize("order", [[0, 1, 2, 1, 0], [0], [3, 3, 3]])
def test_an_odd_cycle_that_is_its_own_mirror_is_stored_whole(order: list[int], source: Theirs, tmp_path: Path) -> None:
    avatar = taken(source.write(tmp_path / "theirs", order), tmp_path / "out")
    assert avatar.info.frames == len(order)
    for frame in range(3 * len(order)):
        shown = avatar.frames[avatar.index(frame, 25)]
        assert (shown == bgr_to_i420(source.pictures[order[frame % len(order)]])[0]).all()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 1, 2, 1], [0, 1, 1], [0, 1]])
def test_another_loop_is_refused(order: list[int], source: Theirs, tmp_path: Path) -> None:
    error = refused(source.write(tmp_path / "theirs", order))
    assert "not forward and back: coords.pkl differs in entries 0 and" in error.message
    assert "lipserve prepare" in error.hint


def rewrite(file: Path, change: Callable[[list[Any]], Any]) -> None:
    """Load one of their pickles, change the list, and save it."""
    content = pickle.loads(file.read_bytes())
    changed = change(content)
    file.write_bytes(pickle.dumps(content if changed is None else changed))


def test_each_part_must_be_a_mirror(theirs: Path, source: Theirs) -> None:
    last = f"entries 1 and {2 * N - 2}"
    shutil.copy(theirs / "full_imgs/00000002.png", theirs / f"full_imgs/{2 * N - 2:08d}.png")
    assert f"full_imgs/ differs in {last}" in refused(theirs).message
    shutil.rmtree(theirs.parent / "out")
    cv2.imwrite(str(theirs / f"mask/{2 * N - 2:08d}.png"), source.masks[1] // 2)
    assert f"mask/ differs in {last}" in refused(theirs).message
    shutil.rmtree(theirs.parent / "out")
    latents = [source.latents[i] for i in source.cycle()]
    latents[-2] = latents[-2] + np.float32(0.25)
    write_tensors(theirs / "latents.pt", latents)
    assert f"latents.pt differs in {last}" in refused(theirs).message
    shutil.rmtree(theirs.parent / "out")
    rewrite(theirs / "mask_coords.pkl", lambda boxes: boxes[-2].reverse())
    assert "mask_coords.pkl" in refused(theirs).message


def test_pictures_saved_twice_in_different_bytes_are_the_same(theirs: Path, source: Theirs, tmp_path: Path) -> None:
    file = theirs / f"full_imgs/{2 * N - 1:08d}.png"
    cv2.imwrite(str(file), source.pictures[0], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert file.read_bytes() != (theirs / "full_imgs/00000000.png").read_bytes()
    assert taken(theirs, tmp_path / "out").info.frames == N


def test_only_the_first_half_of_the_pictures(theirs: Path, tmp_path: Path) -> None:
    whole = taken(theirs, tmp_path / "whole")
    for folder in ("full_imgs", "mask"):
        for index in range(N, 2 * N):
            (theirs / folder / f"{index:08d}.png").unlink()
        (theirs / folder / "frame_0001.png").write_bytes(b"the source's own name")
    half = taken(theirs, tmp_path / "half")
    assert (half.frames == whole.frames).all() and (half.masks == whole.masks).all()


@pytest.mark.parametrize("code", ["f2", "bf16"])
def test_latents_of_other_types(code: str, source: Theirs, tmp_path: Path) -> None:
    avatar = taken(source.write(tmp_path / "theirs", code=code), tmp_path / "out")
    given = np.concatenate(source.latents)
    assert np.abs(avatar.latents - given).max() <= np.abs(given).max() * {"f2": 2**-11, "bf16": 2**-7}[code]


# -- the same pictures ------------------------------------------------------------------------------------------------


def test_blended_as_theirs(theirs: Path, source: Theirs, tmp_path: Path) -> None:
    """With box, region and mask as stored, in BGR, to the bit; through I420 within its rounding."""
    avatar = taken(theirs, tmp_path / "out")
    for index in range(N):
        picture, box, mask, crop = source.pictures[index], source.boxes[index], source.masks[index], source.crops[index]
        expected = their_blend(picture, FACE, box, mask, crop)
        assert (stored_blend(avatar, index, picture, FACE) == expected).all()
        assert (expected != picture).any(axis=2).sum() > 10_000
        shown = blended(avatar, index, FACE)
        for plane, reference in zip(planes(shown), bgr_to_planes(expected, "bt601"), strict=True):
            assert np.abs(plane.astype(int) - reference).max() <= 2
        x1, y1, x2, y2 = avatar.regions[index]["region"]
        outside = np.ones((512, 512), bool)
        outside[y1:y2, x1:x2] = False
        assert (expected[outside] == picture[outside]).all()


def test_v1s_own_blend_differs_by_its_rounding(theirs: Path, source: Theirs, tmp_path: Path) -> None:
    avatar = taken(theirs, tmp_path / "out")
    picture, box, mask, crop = source.pictures[0], source.boxes[0], source.masks[0], source.crops[0]
    difference = stored_blend(avatar, 0, picture, FACE).astype(int) - blend_of_v1(picture, FACE, box, mask, crop)
    assert np.abs(difference).max() <= 1


def cut(source: Theirs, box: tuple[int, int, int, int], size: tuple[int, int] = (512, 512)) -> Theirs:
    """One frame with this box, cut to this size."""
    crop = crop_box(box)
    picture = np.ascontiguousarray(source.pictures[0][: size[1], : size[0]])
    return Theirs([picture], [box], [soft_mask(box, crop, 0)], source.latents[:1])


@pytest.mark.parametrize(
    "box", [(0, 0, 101, 121), (411, 391, 512, 512), (3, 200, 402, 511), (0, 0, 512, 512), (200, 200, 209, 211)]
)
def test_crop_boxes_that_reach_past_the_frame(box: tuple[int, int, int, int], source: Theirs, tmp_path: Path) -> None:
    one = cut(source, box)
    avatar = taken(one.write(tmp_path / "theirs"), tmp_path / "out")
    expected = their_blend(one.pictures[0], FACE, box, one.masks[0], one.crops[0])
    assert (stored_blend(avatar, 0, one.pictures[0], FACE) == expected).all()


def test_a_face_box_past_the_frame_ends_at_the_frame(source: Theirs, tmp_path: Path) -> None:
    """The crop that was encoded ended there, too; their player stretches it past the edge."""
    avatar = taken(cut(source, (400, 380, 530, 540)).write(tmp_path / "theirs"), tmp_path / "out")
    assert tuple(avatar.regions[0]["face"]) == (400, 380, 512, 512)


def test_odd_sizes_lose_their_last_row_and_column(source: Theirs, tmp_path: Path) -> None:
    one = cut(source, (100, 100, 301, 331), (301, 331))
    avatar = taken(one.write(tmp_path / "theirs"), tmp_path / "out")
    assert (avatar.info.width, avatar.info.height) == (300, 330)
    assert tuple(avatar.regions[0]["face"]) == (100, 100, 300, 330)
    assert (avatar.frames[0] == bgr_to_i420(one.pictures[0][:330, :300])[0]).all()


def test_a_mask_of_nothing_shows_the_frame_as_theirs_does(theirs: Path, source: Theirs, tmp_path: Path) -> None:
    for index in (1, 2 * N - 2):
        cv2.imwrite(str(theirs / f"mask/{index:08d}.png"), source.masks[1] * 0)
    avatar = taken(theirs, tmp_path / "out")
    assert avatar.regions["has_face"].tolist() == [True, False, True, True, True]
    assert (blended(avatar, 1, FACE) == avatar.frames[1]).all()


# -- frames without a face --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [True, False])
def test_frames_without_a_face_keep_their_place(dropped: bool, theirs: Path, source: Theirs, tmp_path: Path) -> None:
    """Their scripts leave out the latents of such frames, so that from there on faces and latents drift apart."""

    def lose(boxes: list[Any]) -> None:
        boxes[1] = boxes[-2] = (0.0, 0.0, 0.0, 0.0)

    rewrite(theirs / "coords.pkl", lose)
    rewrite(theirs / "mask_coords.pkl", lose)
    if dropped:
        write_tensors(theirs / "latents.pt", [source.latents[i] for i in source.cycle() if i != 1])
    avatar = taken(theirs, tmp_path / "out")
    assert avatar.info.frames_without_face == 1
    assert avatar.regions["has_face"].tolist() == [True, False, True, True, True]
    for index in (0, 2, 3, 4):
        assert (avatar.latents[index] == source.latents[index][0].astype(np.float16)).all()


def test_mostly_without_a_face(theirs: Path) -> None:
    rewrite(theirs / "coords.pkl", lambda boxes: [(0, 0, 0, 0)] * 3 + boxes[3:-3] + [(0, 0, 0, 0)] * 3)
    assert "3 of 5 frames: 0–2" in refused(theirs, NoFace).message


# -- the clip in place of the pictures --------------------------------------------------------------------------------


@pytest.fixture
def without_pictures(theirs: Path) -> Path:
    shutil.rmtree(theirs / "full_imgs")
    return theirs


def test_frames_from_the_clip_are_its_own(without_pictures: Path, tmp_path: Path) -> None:
    clip = short_clip(tmp_path / "clip.mp4", N)
    avatar = taken(without_pictures, tmp_path / "out", video=clip)
    with VideoReader(clip, 25, 60, 10**7) as video:
        assert (avatar.frames == np.stack(list(video))).all()
        assert avatar.info.tags == video.tags
    assert avatar.info.frames == N


def test_each_frame_of_a_clip_counts_whatever_its_time(without_pictures: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames_of(pictures(N)), [0, 1, 2, 7, 8])
    assert taken(without_pictures, tmp_path / "out", video=clip).info.frames == N


@pytest.mark.parametrize(("frames", "said"), [(N - 1, f"has {N - 1} frames"), (N + 1, "has more frames")])
def test_a_clip_of_other_frames(frames: int, said: str, without_pictures: Path, tmp_path: Path) -> None:
    error = refused(without_pictures, video=short_clip(tmp_path / "clip.mp4", frames))
    assert said in error.message and f"the avatar has {N}" in error.message


def test_a_clip_of_another_size(without_pictures: Path, tmp_path: Path) -> None:
    small = [cv2.resize(picture, (128, 192)) for picture in pictures(N)]
    error = refused(without_pictures, video=write_video(tmp_path / "clip.mp4", frames_of(small)))
    assert "coords.pkl, entry 0 lies outside the pictures of 128×128" in error.message


def test_a_clip_whose_pixels_are_not_square(without_pictures: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames_of(pictures(N)), aspect=Fraction(4, 3))
    assert "not square" in refused(without_pictures, video=clip).message


def test_no_clip_and_no_pictures(without_pictures: Path) -> None:
    (without_pictures / "avator_info.json").write_text(json.dumps({"video_path": "data/video/me.mp4"}))
    error = refused(without_pictures)
    assert "no folder full_imgs" in error.message
    assert error.hint == "Give the clip it was made from: --video. It was made from 'data/video/me.mp4'."


# -- what it was made with --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        ("avator_info.json", {"bbox_shift": -7, "video_path": "a"}, {"version": "v1", "bbox_shift": -7}),
        ("avatar_info.json", {"bbox_shift": 0, "version": "v15"}, {"version": "v15", "bbox_shift": 0}),
        ("avator_info.json", {"version": "v2", "bbox_shift": "much"}, {"version": "unknown"}),
        ("avator_info.json", {"version": ["v1"], "bbox_shift": True}, {"version": "unknown"}),
        ("other.json", {"version": "v15"}, {"version": "unknown"}),
    ],
)
def test_both_versions_of_the_scripts(
    name: str, written: object, expected: dict[str, Any], theirs: Path, tmp_path: Path
) -> None:
    (theirs / "avator_info.json").unlink()
    (theirs / name).write_text(json.dumps(written))
    assert taken(theirs, tmp_path / "out").info.parameters == {"imported_from": "MuseTalk"} | expected


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 30_000, '{"a": "' + "b" * 70_000 + '"}', "\xff"])
def test_facts_that_cannot_be_read(content: str, theirs: Path) -> None:
    (theirs / "avator_info.json").write_bytes(content.encode("latin1"))
    assert "avator_info.json cannot be read" in refused(theirs).message


# -- damaged and foreign ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["latents.pt", "coords.pkl", "mask_coords.pkl", "mask"])
def test_a_folder_of_something_else(name: str, theirs: Path) -> None:
    (theirs / name).rename(theirs / "gone")
    error = refused(theirs)
    assert error.message == f"'theirs' is no avatar of MuseTalk's realtime scripts: it has no {name}."
    assert (error.kind, error.status) == ("not_importable", 422)


def first(value: object) -> Callable[[list[Any]], None]:
    def change(boxes: list[Any]) -> None:
        boxes[0] = boxes[-1] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("coords.pkl", lambda boxes: boxes[1:], "coords.pkl has 9 entries, mask_coords.pkl has 10"),
        ("coords.pkl", lambda boxes: [], "no list of boxes"),
        ("coords.pkl", lambda boxes: tuple(boxes), "no list of boxes"),
        ("coords.pkl", lambda boxes: {"a": 1}, "no list of boxes"),
        ("coords.pkl", first((1, 2, 3)), "entry 0 is not a box"),
        ("coords.pkl", first((1.5, 2, 30, 40)), "entry 0 is not a box"),
        ("coords.pkl", first((1, 2, 30, True)), "entry 0 is not a box"),
        ("coords.pkl", first((1, 2, 30, "40")), "entry 0 is not a box"),
        ("coords.pkl", first((1, 2, 30, float("nan"))), "entry 0 is not a box"),
        ("coords.pkl", first((1, 2, 30, float("inf"))), "entry 0 is not a box"),
        ("coords.pkl", first((1, 2, 30, 2**40)), "entry 0 is not a box"),
        ("coords.pkl", first(None), "entry 0 is not a box"),
        ("coords.pkl", first((151, 160, 151, 401)), "entry 0 is an empty box"),
        ("coords.pkl", first((30, 160, 340, 401)), "reaches past its crop box"),
        ("coords.pkl", first((151, 160, 500, 401)), "reaches past its crop box"),
        ("mask_coords.pkl", first((0, 0, 0, 0)), "reaches past its crop box"),
        ("mask_coords.pkl", first((60, 100, 430, 461)), "mask/00000000.png is 360×360, its box"),
    ],
)
def test_boxes_that_are_none(name: str, change: Callable[[list[Any]], Any], said: str, theirs: Path) -> None:
    rewrite(theirs / name, change)
    assert said in refused(theirs).message


@pytest.mark.parametrize("box", [(-3, 20, 100, 130), (20, -3, 130, 100), (511, 20, 600, 130), (600, 600, 700, 700)])
def test_boxes_outside_the_picture(box: tuple[int, int, int, int], source: Theirs, tmp_path: Path) -> None:
    error = refused(cut(source, box).write(tmp_path / "theirs"))
    assert "lies outside the pictures of 512×512" in error.message


def spoiled(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(latents: np.ndarray) -> np.ndarray:
        latents = latents.copy()
        latents[0, 3, 7, 9] = value
        return latents

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoiled(float("nan")), "entry 2 has values that no latents have"),
        (spoiled(float("inf")), "entry 2 has values that no latents have"),
        (spoiled(-101), "entry 2 has values that no latents have"),
        (lambda latents: latents * 0, "entry 2 is the same number everywhere"),
        (lambda latents: latents[:, :4], r"entry 2 has the shape (1, 4, 32, 32)"),
        (lambda latents: latents.reshape(8, 1, 32, 32), r"entry 2 has the shape (8, 1, 32, 32)"),
    ],
)
def test_latents_that_are_none(
    change: Callable[[np.ndarray], np.ndarray], said: str, theirs: Path, source: Theirs
) -> None:
    latents = [change(item) if i == 2 else item for i, item in enumerate(source.latents)]
    write_tensors(theirs / "latents.pt", [latents[i] for i in source.cycle()])
    assert said in refused(theirs).message


def test_too_few_latents(theirs: Path, source: Theirs) -> None:
    write_tensors(theirs / "latents.pt", [source.latents[i] for i in source.cycle()][1:])
    assert "latents.pt has 9 entries, coords.pkl has 10, 10 of them with a face" in refused(theirs).message


@pytest.mark.parametrize("folder", ["mask", "full_imgs"])
def test_a_picture_is_missing(folder: str, theirs: Path) -> None:
    (theirs / folder / "00000003.png").unlink()
    assert f"{folder}/ has 9 numbered pictures, not 10 (or 5)" in refused(theirs).message


def test_pictures_that_are_none(theirs: Path) -> None:
    for index in (1, 2 * N - 2):
        (theirs / f"mask/{index:08d}.png").write_bytes(b"GIF89a")
    assert "mask/00000001.png cannot be read" in refused(theirs).message
    shutil.rmtree(theirs.parent / "out")
    for index in (1, 2 * N - 2):
        (theirs / f"full_imgs/{index:08d}.png").write_bytes(b"GIF89a")
    assert "00000001.png cannot be read" in refused(theirs, NotAVideo).message


def test_limits_of_length_and_rate(theirs: Path) -> None:
    assert "has 5 frames" in refused(theirs, VideoTooLarge, limits=Limits(seconds=4 / 25)).message
    shutil.rmtree(theirs.parent / "out")
    for fps in (0, 61):
        assert f"fps is {fps}" in refused(theirs, InvalidParameter, fps=fps).message
        shutil.rmtree(theirs.parent / "out")


class Trap:
    def __reduce__(self) -> Any:
        return eval, ("open('RAN', 'w').close()",)


@pytest.mark.parametrize("name", ["coords.pkl", "mask_coords.pkl"])
def test_a_hostile_avatar(name: str, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(theirs)
    rewrite(theirs / name, lambda boxes: [*boxes[:-1], Trap()])
    assert "asks for 'builtins.eval'" in refused(theirs, UnsafePickle).message
    assert not (theirs / "RAN").exists()


# -- whose latents they are -------------------------------------------------------------------------------------------


def test_latents_are_held_against_the_served_encoder(theirs: Path, source: Theirs, tmp_path: Path) -> None:
    """MuseTalk's are drawn from the VAE's posterior: alike, not equal."""
    seen: list[U8] = []

    def served(crops: U8) -> np.ndarray:
        seen.append(crops)
        noise = np.random.default_rng(1).normal(size=(len(crops), 8, 32, 32)) * 0.5
        return (np.concatenate([source.latents[i] for i in (0, 1, 3, 4)]) + noise).astype(np.float16)

    avatar = taken(theirs, tmp_path / "out", encode=served)
    x1, y1, x2, y2 = source.boxes[3]
    picture = planes_to_bgr(avatar.frames[3], "bt601")[y1:y2, x1:x2]
    (crops,) = seen
    assert crops.shape == (4, 256, 256, 3)
    assert (crops[2] == cv2.resize(picture, (256, 256), interpolation=cv2.INTER_LANCZOS4)).all()
    shutil.rmtree(tmp_path / "out")
    error = refused(theirs, encode=lambda crops: served(crops)[::-1])
    assert "not what the served models make of its faces (correlation" in error.message
    assert "--weights-id" in error.hint


@pytest.fixture
def engine(settings: Settings, triton: EmbeddedTriton, tmp_path: Path) -> Any:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    engine = Engine(Settings(**given | {"avatars_dir": tmp_path / "avatars"}), triton.grpc_url)
    yield engine
    engine.close()


def test_from_ours_to_theirs_and_back_says_the_same(engine: Engine, tmp_path: Path) -> None:
    engine.prepare(short_clip(tmp_path / "clip.mp4", 6), "ours", Parameters())
    ours = engine.store.open("ours")
    folder = as_theirs(ours).write(tmp_path / "theirs", code="f2")
    info = engine.import_avatar(folder, "theirs", 25)
    assert info.weights_id == ours.info.weights_id
    theirs = engine.store.open("theirs")
    for field in ("face", "region", "has_face"):
        assert (theirs.regions[field] == ours.regions[field]).all()
    assert (theirs.latents == ours.latents).all() and (theirs.masks == ours.masks).all()

    sound = write_sound(tmp_path / "a.wav", tone(0.8), 16000)
    videos = {}
    for name in ("ours", "theirs"):
        engine.lip_sync(SyncRequest(name), sound, tmp_path / f"{name}.mp4")
        with VideoReader(tmp_path / f"{name}.mp4", 25, 60, 10**7) as video:
            videos[name] = np.stack(list(video)).astype(int)
    assert videos["ours"].shape == videos["theirs"].shape == (20, 768, 512)
    assert np.abs(videos["ours"] - videos["theirs"]).mean() < 0.5


def test_of_other_weights_nothing_is_stored(engine: Engine, tmp_path: Path) -> None:
    engine.prepare(short_clip(tmp_path / "clip.mp4", 4), "me", Parameters())
    prepared = engine.store.info("me")
    other = as_theirs(engine.store.open("me"))
    other.latents = [latents[:, ::-1].copy() for latents in other.latents]
    folder = other.write(tmp_path / "theirs")
    with pytest.raises(AvatarExists):
        engine.import_avatar(folder, "me", 25)
    for name, force in (("me", True), ("new", False)):
        with pytest.raises(NotImportable, match="not what the served models make"):
            engine.import_avatar(folder, name, 25, force=force)
    assert engine.store.list() == ["me"]
    assert engine.store.info("me") == prepared
    assert [entry.name for entry in engine.store.root.iterdir() if entry.name.startswith(".draft")] == []


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(settings: Settings, triton: EmbeddedTriton, theirs: Path, tmp_path: Path) -> None:
    own = {"avatars_dir": tmp_path / "avatars", "work_dir": tmp_path / "work", "triton_url": "127.0.0.1:1"}
    mine = Settings(**{name: getattr(settings, name) for name in settings.model_fields_set} | own)

    def command(*more: object) -> subprocess.CompletedProcess[str]:
        return run(mine, tmp_path, "import", theirs, "--avatar-id", "them", "--weights-id", "w", *more)

    done = command()
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "avatars/them"
    assert "5 frames, 0 without a face" in done.stderr
    assert AvatarStore(tmp_path / "avatars").open("them").info.weights_id == "w"
    assert (command().returncode, "avatar_exists" in command().stderr) == (1, True)
    assert command("--force", "--fps", "30").returncode == 0
    assert AvatarStore(tmp_path / "avatars").info("them").fps == 30
    (theirs / "coords.pkl").write_bytes(pickle.dumps(Trap()))
    done = command("--force")
    assert (done.returncode, "unsafe_pickle" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert AvatarStore(tmp_path / "avatars").info("them").fps == 30
    done = run(mine, tmp_path, "import", theirs, "--avatar-id", "other")
    assert (done.returncode, "triton_unavailable" in done.stderr) == (1, True)


# -- against the reference --------------------------------------------------------------------------------------------


class Reference:
    """A case of the reference outputs: whole frames from its clip and the rectangle that changed, and decoded faces."""

    def __init__(self, folder: Path, clip: str) -> None:
        self.case = folder / "reference/small"
        self.video = folder / "reference/data/video/yongen_s.mp4"
        index = json.loads((self.case / "index.json").read_text())
        self.rect = tuple(index["patch_rect_xyxy"])
        capture = cv2.VideoCapture(str(self.video))
        self.pictures = []
        while (read := capture.read())[0]:
            self.pictures.append(read[1])
        x1, y1, x2, y2 = self.rect
        with av.open(str(self.case / f"{clip}.patch.mkv")) as lossless:
            self.patches = [frame.to_ndarray(format="bgr24") for frame in lossless.decode(video=0)]
        assert self.patches[0].shape == (y2 - y1, x2 - x1, 3)
        internals = np.load(self.case / f"{clip}.internals.npz")
        self.frames = internals["frames"].tolist()
        self.faces, self.latents = internals["decoded"], internals["unet_in"]

    def frame(self, number: int, index: int) -> U8:
        x1, y1, x2, y2 = self.rect
        frame = self.pictures[index].copy()
        frame[y1:y2, x1:x2] = self.patches[number]
        return frame

    def folder(self, out: Path) -> Path:
        """Theirs, with the pictures that the case leaves out."""
        shutil.copytree(self.case, out)
        out.chmod(0o755)
        (out / "full_imgs").mkdir()
        for i, picture in enumerate(self.pictures):
            cv2.imwrite(str(out / f"full_imgs/{i:08d}.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return out


@pytest.mark.parametrize("clip", ["yongen", "eng"])
@pytest.mark.parametrize("source_of_frames", ["full_imgs", "clip"])
def test_the_reference_frames(reference: Path, clip: str, source_of_frames: str, tmp_path: Path) -> None:
    """Their decoded faces, through the imported avatar: their frames."""
    case = Reference(reference, clip)
    if source_of_frames == "clip":
        avatar = taken(case.case, tmp_path / "out", video=case.video)
    else:
        avatar = taken(case.folder(tmp_path / "theirs"), tmp_path / "out")
    assert (avatar.info.frames, avatar.info.frames_without_face) == (90, 0)
    x1, y1, x2, y2 = case.rect
    changed = np.zeros((608, 352), bool)
    changed[y1:y2, x1:x2] = True
    for number, face, latents in zip(case.frames, case.faces, case.latents, strict=True):
        index = avatar.index(number, 25)
        assert np.abs(avatar.latents[index] - latents).max() <= 2**-11 * np.abs(latents).max()
        expected = case.frame(number, index)
        assert (stored_blend(avatar, index, case.pictures[index], face) == expected).all()

        shown = blended(avatar, index, face)
        levels = [
            np.abs(a.astype(int) - b) for a, b in zip(planes(shown), bgr_to_planes(expected, "bt601"), strict=True)
        ]
        as_seen = np.abs(planes_to_bgr(shown, "bt601").astype(int) - expected)
        inside, outside = as_seen[changed], as_seen[~changed]
        print(
            f"{clip} {number} by {source_of_frames}: BGR inside max {inside.max()} mean {inside.mean():.3f}, "
            f"outside max {outside.max()} mean {outside.mean():.3f}; "
            f"YUV max {[int(d.max()) for d in levels]} mean {[round(float(d.mean()), 3) for d in levels]}"
        )
        assert inside.mean() < 1.1 and outside.mean() < 1.1 and inside.max() <= 16
        if source_of_frames == "full_imgs":
            assert max(d.max() for d in levels) <= 2
            assert (levels[0][~changed] == 0).all()


def test_the_reference_avatar_is_not_of_the_demos_weights(engine: Engine, reference: Path) -> None:
    case = Reference(reference, "eng")
    with pytest.raises(NotImportable, match=r"correlation -?0\.[01]"):
        engine.import_avatar(case.case, "yongen", 25, case.video)
    assert engine.store.list() == []
