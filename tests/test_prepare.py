"""From a source to an avatar folder, with the real face networks and an encoder that only averages."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from samples import numbered, pictures, tone, write_clip

from avatar_prep.boxes import crop_box
from avatar_prep.faces import Face, FaceFinder
from avatar_prep.masks import blend_mask
from avatar_prep.prepare import Parameters, Progress, checked_parameters, prepare
from avatar_prep.source import Limits
from lipserve import store as store_module
from lipserve.avatar import Avatar, AvatarInfo, sha256
from lipserve.colour import U8, planes_to_bgr
from lipserve.errors import Cancelled, InvalidParameter, NoFace, NotAVideo, StorageFull
from lipserve.media import Sound
from lipserve.store import AvatarStore


@pytest.fixture(scope="module")
def finder(face_models: Path) -> FaceFinder:
    return FaceFinder(face_models)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames with a face, 25 fps."""
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(file, pictures(12))
    return file


class Averages:
    """In the VAE encoder's place: every latent is the mean of its crop; remembers how many came at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, crops: U8) -> np.ndarray:
        assert crops.shape[1:] == (256, 256, 3)
        assert crops.dtype == np.uint8
        self.batches.append(len(crops))
        means = crops.reshape(len(crops), -1).mean(axis=1)
        return np.broadcast_to(means[:, None, None, None], (len(crops), 8, 32, 32)).astype(np.float16)


def quiet(stage: str, done: int, total: int | None) -> None:
    pass


def make(
    source: Path,
    folder: Path,
    finder: FaceFinder,
    encode: Averages | None = None,
    progress: Progress = quiet,
    source_name: str | None = None,
    **parameters: object,
) -> Avatar:
    """Prepares and opens."""
    folder.mkdir()
    checked, encode = Parameters.model_validate(parameters), encode or Averages()
    info = prepare(source, folder, "lisa", checked, finder, encode, "weights", Limits(), progress, source_name)
    avatar = Avatar(folder)
    assert avatar.info == info
    return avatar


def without_face(clip: Iterable[U8], *missing: int) -> list[U8]:
    return [np.full_like(picture, 128) if index in missing else picture for index, picture in enumerate(clip)]


def mean_of_crop(avatar: Avatar, index: int) -> float:
    """What the encoder must have been given, from what is stored."""
    x1, y1, x2, y2 = avatar.regions[index]["face"]
    bgr = planes_to_bgr(avatar.frames[index], avatar.info.tags.matrix)
    crop = cv2.resize(bgr[y1:y2, x1:x2], (256, 256), interpolation=cv2.INTER_LANCZOS4)
    return float(np.float16(crop.mean()))


def test_a_clip(clip: Path, finder: FaceFinder, tmp_path: Path) -> None:
    avatar = make(clip, tmp_path / "a", finder)
    info = avatar.info
    assert (info.frames, info.frames_without_face, info.fps) == (12, 0, 25)
    assert (info.width, info.height) == (512, 512)
    assert (info.avatar_id, info.source, info.weights_id) == ("lisa", "clip.mp4", "weights")
    assert info.source_sha256 == sha256(clip)
    assert info.parameters == Parameters().model_dump()
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        *("avatar.json", "frames.yuv", "latents.npy", "regions.npy", "masks.u8", "preview.jpg"),
    }
    for index, picture in enumerate(pictures(12, clip)):
        assert (avatar.frames[index] == picture).all()  # the source's own values
        assert avatar.latents[index, 0, 0, 0] == mean_of_crop(avatar, index)
    assert avatar.masks.size == sum(avatar.mask(i).size for i in range(12))
    assert all(avatar.mask(i).max() == 255 for i in range(12))


def test_frames_without_a_face_keep_their_place(finder: FaceFinder, tmp_path: Path) -> None:
    write_clip(tmp_path / "gap.mp4", without_face(pictures(12), 0, 5, 6, 11))
    avatar = make(tmp_path / "gap.mp4", tmp_path / "a", finder, batch_size=3)
    assert (avatar.info.frames, avatar.info.frames_without_face) == (12, 4)
    assert np.flatnonzero(~avatar.regions["has_face"]).tolist() == [0, 5, 6, 11]
    for index in range(12):
        if index in (0, 5, 6, 11):
            assert not avatar.latents[index].any()
            assert avatar.regions[index].tolist()[0] is False
            assert not avatar.regions[index]["face"].any()
            assert int(avatar.frames[index, 100, 100]) == pytest.approx(128, abs=4)
        else:
            assert avatar.latents[index, 7, 31, 31] == mean_of_crop(avatar, index)
    preview = cv2.imread(str(tmp_path / "a/preview.jpg"))
    assert preview.std() > 20  # of a frame with a face, not of the grey first one


def test_just_half_of_the_frames_may_miss_the_face(finder: FaceFinder, tmp_path: Path) -> None:
    write_clip(tmp_path / "half.mp4", without_face(pictures(8), 0, 1, 4, 7))
    assert make(tmp_path / "half.mp4", tmp_path / "a", finder).info.frames_without_face == 4


def test_more_than_half_without_a_face_are_named(finder: FaceFinder, tmp_path: Path) -> None:
    write_clip(tmp_path / "mostly.mp4", without_face(pictures(8), 0, 2, 3, 4, 7))
    with pytest.raises(NoFace) as caught:
        make(tmp_path / "mostly.mp4", tmp_path / "a", finder)
    assert caught.value.message == "No face in 5 of 8 frames: 0, 2–4, 7."
    assert "tenth of the picture" in caught.value.hint


def test_no_face_at_all(finder: FaceFinder, tmp_path: Path) -> None:
    write_clip(tmp_path / "grey.mp4", numbered(5))
    with pytest.raises(NoFace) as caught:
        make(tmp_path / "grey.mp4", tmp_path / "a", finder)
    assert caught.value.message == "No face was found in any of the 5 frames."


def test_the_list_of_frames_ends_somewhere(finder: FaceFinder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "long.mp4", numbered(100))
    face = Face(0.9, (10.0, 10.0, 40.0, 40.0), np.zeros((6, 2)))
    looks = iter(range(100))
    monkeypatch.setattr(finder, "detect", lambda picture: [face] if next(looks) % 3 == 0 else [])
    with pytest.raises(NoFace) as caught:
        make(tmp_path / "long.mp4", tmp_path / "a", finder)
    assert caught.value.message.startswith("No face in 66 of 100 frames: 1–2, 4–5, 7–8")
    assert caught.value.message.endswith("58–59, ….")


def test_a_face_that_has_no_mesh_counts_as_none(
    clip: Path, finder: FaceFinder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_in(*frames: int) -> None:
        calls, mesh = iter(range(12)), FaceFinder.mesh
        monkeypatch.setattr(finder, "mesh", lambda *args: None if next(calls) in frames else mesh(finder, *args))

    failing_in(1, 2)
    avatar = make(clip, tmp_path / "a", finder)
    assert np.flatnonzero(~avatar.regions["has_face"]).tolist() == [1, 2]
    failing_in(*range(7))
    with pytest.raises(NoFace, match="No face in 7 of 12 frames: 0–6"):
        make(clip, tmp_path / "b", finder)


@pytest.mark.parametrize(
    ("batch_size", "batches"), [(1, [1] * 12), (5, [5, 5, 2]), (8, [8, 4]), (12, [12]), (32, [12])]
)
def test_batches_are_never_larger_than_asked(
    batch_size: int, batches: list[int], clip: Path, finder: FaceFinder, tmp_path: Path
) -> None:
    encode = Averages()
    avatar = make(clip, tmp_path / "a", finder, encode, batch_size=batch_size)
    assert encode.batches == batches
    assert [avatar.latents[i, 0, 0, 0] for i in range(12)] == [mean_of_crop(avatar, i) for i in range(12)]


@pytest.mark.parametrize(("fps", "frames"), [(25, 12), (50, 24), (60, 29), (24, 12), (5, 3), (1, 1)])
def test_the_avatar_has_the_rate_asked_for(
    fps: int, frames: int, clip: Path, finder: FaceFinder, tmp_path: Path
) -> None:
    avatar = make(clip, tmp_path / "a", finder, fps=fps)  # of 12/25 s
    assert (avatar.info.fps, avatar.info.frames) == (fps, frames)


def test_a_still_picture_is_an_avatar_of_one_frame(finder: FaceFinder, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), planes_to_bgr(pictures(1)[0], "bt601"))
    avatar = make(tmp_path / "still.png", tmp_path / "a", finder)
    assert (avatar.info.frames, avatar.info.frames_without_face) == (1, 0)
    assert avatar.info.tags.matrix == "bt601"
    assert avatar.latents[0, 0, 0, 0] == mean_of_crop(avatar, 0)


def test_a_folder_of_pictures(finder: FaceFinder, tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    (shots / "raw").mkdir(parents=True)
    for index, picture in enumerate(pictures(3)):
        cv2.imwrite(str(shots / f"{index}.png"), planes_to_bgr(picture, "bt601"))
    avatar = make(shots, tmp_path / "a", finder)
    assert (avatar.info.frames, avatar.info.source, avatar.info.source_sha256) == (3, "shots", sha256(shots))


def test_a_large_frame_has_a_small_preview(finder: FaceFinder, tmp_path: Path) -> None:
    bgr = cv2.resize(planes_to_bgr(pictures(1)[0], "bt601"), (1280, 800))
    cv2.imwrite(str(tmp_path / "still.png"), bgr)
    make(tmp_path / "still.png", tmp_path / "a", finder)
    assert cv2.imread(str(tmp_path / "a/preview.jpg")).shape == (320, 512, 3)


def test_a_sources_name_may_be_any_bytes(clip: Path, finder: FaceFinder, tmp_path: Path) -> None:
    avatar = make(clip, tmp_path / "a", finder, source_name="caf\udce9.mp4")  # as Python names what is not UTF-8
    assert avatar.info.source == "caf?.mp4"


def test_preparing_twice_gives_the_same(clip: Path, finder: FaceFinder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(clip, tmp_path / name, finder)
    for file in ("frames.yuv", "latents.npy", "regions.npy", "masks.u8", "preview.jpg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# -- progress and failure ---------------------------------------------------------------------------------------------


def test_progress_counts_every_frame_of_every_stage(clip: Path, finder: FaceFinder, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    make(clip, tmp_path / "a", finder, progress=lambda *step: seen.append(step))
    steps = [(stage, done, 12) for stage in ("decode", "faces", "encode") for done in range(1, 13)]
    assert list(dict.fromkeys(seen)) == steps
    assert len(seen) == len(steps) + 12  # and once more for every frame through which the face is followed


def test_a_preparation_is_cancelled_while_the_face_is_followed(clip: Path, finder: FaceFinder, tmp_path: Path) -> None:
    reports: list[str] = []

    def cancel(stage: str, done: int, total: int | None) -> None:
        reports.append(stage)
        if reports.count("faces") == 12 + 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        make(clip, tmp_path / "a", finder, progress=cancel)
    assert "encode" not in reports


@pytest.mark.parametrize("stage", ["decode", "faces", "encode"])
def test_a_cancelled_preparation_leaves_nothing(stage: str, clip: Path, finder: FaceFinder, tmp_path: Path) -> None:
    def cancel(now: str, done: int, total: int | None) -> None:
        if (now, done) == (stage, 3):
            raise Cancelled("enough")

    store = AvatarStore(tmp_path / "avatars")
    with pytest.raises(Cancelled, match="enough"), store.writing("lisa", False) as draft:
        prepare(clip, draft, "lisa", Parameters(), finder, Averages(), "w", Limits(), cancel)
    assert store.list() == []
    assert [p.name for p in store.root.iterdir()] == [".lock-lisa"]


def test_an_encoder_that_fails_leaves_nothing(clip: Path, finder: FaceFinder, tmp_path: Path) -> None:
    def encode(crops: U8) -> np.ndarray:
        raise RuntimeError("no GPU")

    store = AvatarStore(tmp_path / "avatars")
    with pytest.raises(RuntimeError, match="no GPU"), store.writing("lisa", False) as draft:
        prepare(clip, draft, "lisa", Parameters(), finder, encode, "w", Limits(), quiet)
    assert [p.name for p in store.root.iterdir()] == [".lock-lisa"]


def test_a_source_that_is_no_video(finder: FaceFinder, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"hello")
    with pytest.raises(NotAVideo):
        make(tmp_path / "a.mp4", tmp_path / "a", finder)


@pytest.mark.parametrize(("free", "frames"), [(10**6, 0), (5 * 10**6, 64)])
def test_a_disk_that_is_full_or_fills_up(
    free: int, frames: int, finder: FaceFinder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 frames of 393 216 bytes: refused at the start, or, where the source does not say how long it is, midway."""
    write_clip(tmp_path / "a.mp4", [pictures(1)[0]] * 100)
    if frames:
        monkeypatch.setattr("lipserve.media.VideoReader.expected_frames", None)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    seen: list[int] = []
    with pytest.raises(StorageFull, match="MB of disk"):
        make(tmp_path / "a.mp4", tmp_path / "a", finder, progress=lambda stage, done, total: seen.append(done))
    assert len(seen) == max(0, frames - 1)


def test_sound_in_the_source_does_not_matter(finder: FaceFinder, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", pictures(3), sound=Sound(tone(4.0), 16000))
    assert make(tmp_path / "a.mp4", tmp_path / "a", finder).info.frames == 3


# -- parameters -------------------------------------------------------------------------------------------------------


def boxes(avatar: Avatar) -> np.ndarray:
    return np.array(avatar.regions["face"])


def test_v15_adds_a_margin_and_v1_shifts(clip: Path, finder: FaceFinder, tmp_path: Path) -> None:
    def made(name: str, **parameters: object) -> np.ndarray:
        return boxes(make(clip, tmp_path / name, finder, **parameters))  # type: ignore[arg-type]

    plain = made("a", version="v1")
    assert (made("b") - plain == [0, 0, 0, 10]).all()
    assert (made("c", extra_margin=0) == plain).all()
    assert (made("d", bbox_shift=50, extra_margin=0) == plain).all()  # v15 has no shift
    assert (made("e", version="v1", extra_margin=50) == plain).all()  # v1 has no margin
    assert (made("f", version="v1", bbox_shift=7) - plain == [0, 14, 0, 0]).all()
    assert (made("g", version="v1", bbox_shift=-7) - plain == [0, -14, 0, 0]).all()


def test_v1_always_masks_raw_and_v15_as_asked(finder: FaceFinder) -> None:
    picture = planes_to_bgr(pictures(1)[0], "bt601")
    face = finder.detect(picture)[0]
    mesh = finder.mesh(picture, face)
    assert mesh is not None
    box = Parameters().box(mesh, face, (512, 512))
    crop = crop_box(box)
    for mode in ("jaw", "raw", "neck"):
        v1 = Parameters.model_validate({"version": "v1", "parsing_mode": mode})
        v15 = Parameters.model_validate({"parsing_mode": mode, "left_cheek_width": 60, "right_cheek_width": 70})
        assert (v1.mask(mesh, box, crop) == blend_mask(mesh, box, crop, "raw")).all()
        assert (v15.mask(mesh, box, crop) == blend_mask(mesh, box, crop, mode, 60, 70)).all()  # type: ignore[arg-type]
    masks = {mode: blend_mask(mesh, box, crop, mode).tobytes() for mode in ("jaw", "raw", "neck")}  # type: ignore[arg-type]
    assert len(set(masks.values())) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", "v2"),
        ("bbox_shift", 201),
        ("bbox_shift", -201),
        ("bbox_shift", "left"),
        ("extra_margin", -1),
        ("parsing_mode", "hair"),
        ("left_cheek_width", 257),
        ("right_cheek_width", -1),
        ("batch_size", 0),
        ("batch_size", 33),
        ("fps", 0),
        ("fps", 61),
        ("fps", 25.5),
        ("fps", float("nan")),
    ],
)
def test_parameters_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter) as caught:
        checked_parameters({name: value})
    assert caught.value.message.startswith(f"{name}: ")
    assert caught.value.kind == "invalid_parameter"


def test_parameters_at_their_limits() -> None:
    given = {"bbox_shift": -200, "extra_margin": 200, "left_cheek_width": 0, "batch_size": 32, "fps": 60}
    assert checked_parameters(given).model_dump() == Parameters().model_dump() | given


def test_an_avatar_can_be_moved_to_another_folder(clip: Path, finder: FaceFinder, tmp_path: Path) -> None:
    make(clip, tmp_path / "a", finder)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert isinstance(Avatar(tmp_path / "copy").info, AvatarInfo)
