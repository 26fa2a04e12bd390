"""The avatar folder: which names it takes, that it appears whole or not at all, and what is said when it is damaged."""

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lipserve import avatar as avatar_module
from lipserve import store as module
from lipserve.avatar import (
    REGION,
    Avatar,
    AvatarInfo,
    sha256,
    write_info,
)
from lipserve.colour import ColourTags, Planes, planes
from lipserve.errors import (
    AvatarBusy,
    AvatarDamaged,
    AvatarExists,
    AvatarNotFound,
    InvalidAvatarId,
    StorageFull,
)
from lipserve.store import AvatarStore, require_space

WIDTH, HEIGHT, FRAMES = 64, 48, 4
FACE, BOX = (11, 10, 31, 39), (12, 12, 32, 40)  # the region is even and reaches a pixel past the face
MASK = 20 * 28


def info(**changes: object) -> AvatarInfo:
    values: dict[str, object] = {
        "avatar_id": "lisa",
        "prepared_at": "2025-01-01T00:00:00+00:00",
        "source": "lisa.mp4",
        "source_sha256": "0",
        "parameters": {"version": "v15"},
        "weights_id": "w",
        "fps": 25,
        "width": WIDTH,
        "height": HEIGHT,
        "frames": FRAMES,
        "frames_without_face": 1,
        "colour_space": 1,
        "colour_primaries": 2,
        "colour_transfer": 3,
    }
    return AvatarInfo.model_validate(values | changes)


def fill(folder: Path) -> None:
    """A small whole avatar; its third frame has no face, and each frame is full of its own number."""
    folder.mkdir(exist_ok=True)
    frames = np.arange(FRAMES, dtype=np.uint8)[:, None, None] * np.ones((1, HEIGHT * 3 // 2, WIDTH), np.uint8)
    frames.tofile(folder / "frames.yuv")
    np.save(folder / "latents.npy", np.zeros((FRAMES, 8, 32, 32), np.float16))
    regions = np.zeros(FRAMES, REGION)
    for place, index in enumerate((0, 1, 3)):
        regions[index] = (True, FACE, BOX, place * MASK)
    np.save(folder / "regions.npy", regions)
    np.repeat(np.array([50, 100, 150], np.uint8), MASK).tofile(folder / "masks.u8")
    (folder / "preview.jpg").write_bytes(b"preview")
    write_info(folder, info())


@pytest.fixture
def store(tmp_path: Path) -> AvatarStore:
    return AvatarStore(tmp_path / "avatars")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "lisa")
    return tmp_path / "lisa"


def reason(folder: Path) -> str:
    """Opens a damaged avatar; returns what is said."""
    with pytest.raises(AvatarDamaged) as caught:
        Avatar(folder)
    error = caught.value
    assert (error.kind, error.status) == ("avatar_damaged", 409)
    assert "'lisa'" in error.message
    assert "force=true" in error.hint
    assert str(folder.parent) not in error.message  # a server's paths are nobody's business
    assert "\n" not in error.message
    return error.message


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("avatar_id", ["a", "7", "Lisa-2_b", "a" * 64])
def test_ids_that_are_allowed(store: AvatarStore, avatar_id: str) -> None:
    assert store.folder(avatar_id) == store.root / avatar_id
    assert not store.exists(avatar_id)


@pytest.mark.parametrize(
    "avatar_id",
    [
        *("", ".", "..", "../up", "a/b", "/etc", "a\\b", "a.b", ".draft-lisa", "-a", "_a", "a b", " a", "a "),
        *("a\n", "\na", "a\0", "a\r", "a\t", "é", "a\u0301", "ａ", "١", "a" * 65, "a" * 300, "a%2fb", "~"),
    ],
    ids=ascii,
)
def test_ids_that_are_not_allowed(store: AvatarStore, avatar_id: str) -> None:
    def write() -> None:
        with store.writing(avatar_id, True):
            pass

    for action in (store.folder, store.exists, store.open, store.delete, store.version):
        with pytest.raises(InvalidAvatarId) as caught:
            action(avatar_id)
        assert (caught.value.kind, caught.value.status) == ("invalid_avatar_id", 422)
        assert "64" in caught.value.hint
    with pytest.raises(InvalidAvatarId):
        write()
    assert not store.root.exists()


@pytest.mark.parametrize("avatar_id", ["../up", "a\n", "", "x" * 65])
def test_a_stored_id_keeps_the_same_rule(folder: Path, avatar_id: str) -> None:
    edit(folder, avatar_id=avatar_id)
    assert "avatar.json: avatar_id" in reason(folder)


# -- writing ----------------------------------------------------------------------------------------------------------


def publish(store: AvatarStore, avatar_id: str = "lisa", force: bool = False, note: bytes = b"preview") -> None:
    with store.writing(avatar_id, force) as draft:
        assert list(draft.iterdir()) == []
        fill(draft)
        (draft / "preview.jpg").write_bytes(note)


def hidden(store: AvatarStore) -> list[str]:
    """What is left over, but for locks, which are empty."""
    return [p.name for p in store.root.iterdir() if p.name.startswith(".") and not p.name.startswith(".lock-")]


def test_it_appears_when_the_block_ends(store: AvatarStore) -> None:
    with store.writing("lisa", False) as draft:
        fill(draft)
        assert not store.exists("lisa")
        assert store.list() == []
    assert store.list() == ["lisa"]
    assert store.open("lisa").info == info()
    assert hidden(store) == []


def test_an_error_leaves_nothing_behind(store: AvatarStore) -> None:
    with pytest.raises(RuntimeError, match="mine"), store.writing("lisa", False) as draft:
        fill(draft)
        raise RuntimeError("mine")
    assert store.list() == []
    assert hidden(store) == []


def test_an_error_leaves_the_avatar_before_it_alone(store: AvatarStore) -> None:
    publish(store, note=b"old")
    version = store.version("lisa")
    with pytest.raises(RuntimeError), store.writing("lisa", True) as draft:
        fill(draft)
        raise RuntimeError
    assert (store.folder("lisa") / "preview.jpg").read_bytes() == b"old"
    assert store.version("lisa") == version
    assert hidden(store) == []


def test_an_avatar_that_is_there_is_not_replaced_unasked(store: AvatarStore) -> None:
    publish(store, note=b"old")
    with pytest.raises(AvatarExists, match="'lisa'") as caught:
        publish(store, note=b"new")
    assert (caught.value.kind, caught.value.status) == ("avatar_exists", 409)
    assert "force" in caught.value.hint
    assert (store.folder("lisa") / "preview.jpg").read_bytes() == b"old"


def test_force_replaces_and_whoever_has_the_old_one_open_goes_on(store: AvatarStore) -> None:
    publish(store, note=b"old")
    opened, version = store.open("lisa"), store.version("lisa")
    publish(store, force=True, note=b"new")
    assert (store.folder("lisa") / "preview.jpg").read_bytes() == b"new"
    assert store.version("lisa") != version
    assert [int(opened.frame(i)[0, 0]) for i in range(FRAMES)] == [0, 1, 2, 3]
    assert hidden(store) == []


def test_force_replaces_where_names_cannot_be_swapped(store: AvatarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_exchange", lambda a, b: False)
    publish(store, note=b"old")
    publish(store, force=True, note=b"new")
    assert (store.folder("lisa") / "preview.jpg").read_bytes() == b"new"
    assert hidden(store) == []


def test_names_are_swapped_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert module._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/b").exists() and (tmp_path / "b/a").exists()
    assert not module._exchange(tmp_path / "a", tmp_path / "missing")


def test_force_needs_nothing_to_replace(store: AvatarStore) -> None:
    publish(store, force=True)
    assert store.list() == ["lisa"]


def test_two_preparations_of_one_avatar(store: AvatarStore) -> None:
    with store.writing("lisa", False):
        for force in (False, True):
            with pytest.raises(AvatarBusy, match="'lisa'") as caught:
                publish(store, force=force)
            assert (caught.value.kind, caught.value.status) == ("avatar_busy", 409)
        publish(store, "lucy")  # another one may
    publish(store, force=True)
    assert store.list() == ["lisa", "lucy"]


def test_a_lock_of_another_process(store: AvatarStore) -> None:
    store.root.mkdir()
    with (store.root / ".lock-lisa").open("w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(AvatarBusy):
            publish(store)
    publish(store)  # the kernel has freed it


def test_what_a_killed_preparation_left_is_not_taken_over(store: AvatarStore) -> None:
    (store.root / ".draft-lisa").mkdir(parents=True)
    (store.root / ".draft-lisa/old.yuv").write_bytes(b"x")
    publish(store)
    assert not (store.folder("lisa") / "old.yuv").exists()


def test_recover_puts_back_what_was_set_aside(store: AvatarStore) -> None:
    publish(store, note=b"old")
    store.folder("lisa").rename(store.root / ".replaced-lisa")  # killed between the two renames
    fill(store.root / ".draft-lisa")
    assert store.list() == []
    store.recover()
    assert (store.folder("lisa") / "preview.jpg").read_bytes() == b"old"
    assert hidden(store) == []


def test_recover_keeps_the_new_one_once_it_stands(store: AvatarStore) -> None:
    publish(store, note=b"new")
    fill(store.root / ".replaced-lisa")
    fill(store.root / ".deleted-0123")
    store.recover()
    assert (store.folder("lisa") / "preview.jpg").read_bytes() == b"new"
    assert hidden(store) == []


def test_recover_leaves_alone_what_is_being_prepared(store: AvatarStore) -> None:
    with store.writing("lisa", False) as draft:
        fill(draft)
        store.recover()
    assert store.list() == ["lisa"]
    with store.writing("lisa", True) as draft:
        fill(draft)
        store.folder("lisa").rename(store.root / ".replaced-lisa")
        store.recover()
        assert not store.exists("lisa")
    assert store.list() == ["lisa"]


def test_recover_without_a_folder(store: AvatarStore) -> None:
    store.recover()
    assert not store.root.exists()


# -- listing and deleting ---------------------------------------------------------------------------------------------


def test_only_avatars_are_listed(store: AvatarStore) -> None:
    assert store.list() == []
    publish(store, "b")
    publish(store, "a")
    (store.root / "notes.txt").write_text("x")
    (store.root / "file").write_text("x")
    (store.root / ".draft-c").mkdir()
    assert store.list() == ["a", "b"]


def test_delete(store: AvatarStore) -> None:
    publish(store)
    opened = store.open("lisa")
    store.delete("lisa")
    assert store.list() == []
    assert hidden(store) == []
    assert int(opened.frame(3)[0, 0]) == 3
    with pytest.raises(AvatarNotFound, match="'lisa'"):
        store.delete("lisa")


def test_delete_a_damaged_one(store: AvatarStore) -> None:
    publish(store)
    (store.folder("lisa") / "avatar.json").unlink()
    store.delete("lisa")
    assert store.list() == []


def test_a_file_of_that_name_is_no_avatar(store: AvatarStore) -> None:
    store.root.mkdir()
    (store.root / "notes").write_text("x")
    for action in (store.open, store.version, store.info):
        with pytest.raises(AvatarNotFound, match="'notes'"):
            action("notes")


def test_the_version_changes_with_any_of_the_files(store: AvatarStore) -> None:
    publish(store)
    seen = {store.version("lisa")}
    for count, name in enumerate(("avatar.json", "frames.yuv", "latents.npy", "regions.npy", "masks.u8"), start=2):
        file = store.folder("lisa") / name
        file.write_bytes(file.read_bytes() + b"x")
        seen.add(store.version("lisa"))
        assert len(seen) == count
    (store.folder("lisa") / "masks.u8").unlink()
    assert store.version("lisa") not in seen


def test_an_avatar_knows_its_version(store: AvatarStore) -> None:
    publish(store)
    assert store.open("lisa").version == store.version("lisa")


def test_an_avatar_that_is_replaced_while_it_is_opened(store: AvatarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the old one is never shown with half of the new one."""
    publish(store)
    check, checks = Avatar._check, iter((True, False))

    def replaced_meanwhile(self: Avatar) -> None:
        if next(checks):
            publish(store, force=True)
        check(self)

    monkeypatch.setattr(Avatar, "_check", replaced_meanwhile)
    assert store.open("lisa").version == store.version("lisa")
    assert next(checks, "both used") == "both used"


def test_an_avatar_that_is_deleted_while_it_is_opened(store: AvatarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    monkeypatch.setattr(Avatar, "_check", lambda self: store.delete("lisa"))
    with pytest.raises(AvatarNotFound):
        store.open("lisa")


def test_info_is_avatar_json_alone(store: AvatarStore) -> None:
    publish(store)
    (store.folder("lisa") / "frames.yuv").unlink()
    assert store.info("lisa") == info()
    (store.folder("lisa") / "avatar.json").write_text("{")
    with pytest.raises(AvatarDamaged, match=r"'lisa' is damaged \(avatar\.json: "):
        store.info("lisa")


@pytest.mark.parametrize("action", ["open", "version", "info", "delete"])
def test_an_avatar_that_is_not_there(store: AvatarStore, action: str) -> None:
    with pytest.raises(AvatarNotFound, match="'nobody'") as caught:
        getattr(store, action)("nobody")
    assert (caught.value.kind, caught.value.status) == ("avatar_not_found", 404)
    assert "avatar_id=nobody" in caught.value.hint


# -- opening ----------------------------------------------------------------------------------------------------------


def test_a_whole_avatar(folder: Path) -> None:
    avatar = Avatar(folder)
    assert avatar.info == info()
    assert avatar.info.tags == ColourTags(1, 2, 3)
    for index in range(FRAMES):
        frame = avatar.frame(index)
        assert frame.shape == (72, WIDTH)
        assert (frame == index).all()
    assert avatar.regions["has_face"].tolist() == [True, True, False, True]


def test_each_frame_has_its_mask(folder: Path) -> None:
    avatar = Avatar(folder)
    for index, value in ((0, 50), (1, 100), (3, 150)):
        mask = avatar.mask(index)
        assert mask.shape == (28, 20)
        assert set(mask.flat) == {value}


def test_nothing_of_it_can_be_written(folder: Path) -> None:
    before = sha256(folder)
    avatar = Avatar(folder)
    for array in (avatar.frames, avatar.latents, avatar.masks):
        assert not array.flags.writeable
    avatar.frame(1)[:], avatar.mask(1)[:] = 9, 9
    assert sha256(folder) == before
    assert (avatar.frame(1) == 1).all() and (avatar.mask(1) == 100).all()


# -- reading ----------------------------------------------------------------------------------------------------------


def apart(width: int, height: int, gap: int) -> Planes:
    """Planes whose rows lie apart, as an encoder's may; full of 77."""
    return tuple(np.full((h, w + gap), 77, np.uint8)[:, :w] for h, w in _sides(width, height))  # type: ignore[return-value]


def _sides(width: int, height: int) -> list[tuple[int, int]]:
    return [(height, width), (height // 2, width // 2), (height // 2, width // 2)]


def noisy(folder: Path) -> np.ndarray:
    """Fills all arrays with noise; returns the frames, uint8 (n, h·3/2, w)."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, HEIGHT * 3 // 2, WIDTH), np.uint8)
    frames.tofile(folder / "frames.yuv")
    np.save(folder / "latents.npy", rng.normal(size=(FRAMES, 8, 32, 32)).astype(np.float16))
    rng.integers(0, 256, 3 * MASK, np.uint8).tofile(folder / "masks.u8")
    return frames


@pytest.mark.parametrize("rows", [1, WIDTH, 5 * WIDTH + 1, 1 << 20])
@pytest.mark.parametrize("index", range(FRAMES))
def test_planes_of_any_layout_are_filled_alike(
    folder: Path, monkeypatch: pytest.MonkeyPatch, index: int, rows: int
) -> None:
    """Rows that lie apart come in blocks of which the last may be smaller; what lies between them is not touched."""
    monkeypatch.setattr(avatar_module, "ROWS_BYTES", rows)
    stored = planes(noisy(folder)[index])
    avatar = Avatar(folder)
    packed, padded = planes(np.full((HEIGHT * 3 // 2, WIDTH), 77, np.uint8)), apart(WIDTH, HEIGHT, 32)
    mixed = (packed[0].copy(), *apart(WIDTH, HEIGHT, 1)[1:])
    reversed_rows: Planes = tuple(np.full(side, 77, np.uint8)[::-1] for side in _sides(WIDTH, HEIGHT))  # type: ignore[assignment]
    for target in (packed, padded, mixed, reversed_rows):
        avatar.read_frame(index, target)
        for plane, wanted in zip(target, stored, strict=True):
            assert (plane == wanted).all()
    for plane in padded:
        assert plane.base is not None and (plane.base[:, plane.shape[1] :] == 77).all()


def test_latents_and_masks_are_those_of_the_files(folder: Path) -> None:
    noisy(folder)
    latents, masks = np.load(folder / "latents.npy"), np.fromfile(folder / "masks.u8", np.uint8)
    avatar = Avatar(folder)
    for indices in ([0], [3, 3, 2, 1, 0, 0, 1], []):
        out = np.zeros((len(indices), 8, 32, 32), np.float16)
        avatar.read_latents(indices, out)
        assert (out == latents[indices]).all()
    for place, index in enumerate((0, 1, 3)):
        assert (avatar.mask(index) == masks[place * MASK :][:MASK].reshape(28, 20)).all()
    assert avatar.mask(2).size == 0
    assert (avatar.frames == np.stack([avatar.frame(i) for i in range(FRAMES)])).all()
    assert (avatar.latents == latents).all() and (avatar.masks == masks).all()


def test_latents_in_fortran_order(folder: Path) -> None:
    np.save(folder / "latents.npy", np.asfortranarray(np.zeros((FRAMES, 8, 32, 32), np.float16)))
    assert "latents.npy is float16 (4, 8, 32, 32) in Fortran order" in reason(folder)


READS: dict[str, Callable[[Avatar], object]] = {
    "frames.yuv": lambda avatar: avatar.read_frame(3, planes(np.empty((HEIGHT * 3 // 2, WIDTH), np.uint8))),
    "frames.yuv, rows apart": lambda avatar: avatar.read_frame(3, apart(WIDTH, HEIGHT, 32)),
    "latents.npy": lambda avatar: avatar.read_latents([0, 3], np.empty((2, 8, 32, 32), np.float16)),
    "masks.u8": lambda avatar: avatar.mask(3),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("left", [0, 1, -1])
def test_a_file_that_loses_its_end_while_the_avatar_is_open(folder: Path, read: str, left: int) -> None:
    """A map would end the process with SIGBUS."""
    avatar = Avatar(folder)
    READS[read](avatar)
    file = folder / read.split(",")[0]
    os.truncate(file, left if left >= 0 else file.stat().st_size + left)
    with pytest.raises(AvatarDamaged, match=rf"'lisa' is damaged \({file.name} ends too early\)") as caught:
        READS[read](avatar)
    assert "force=true" in caught.value.hint


@pytest.mark.parametrize("read", READS)
def test_a_disk_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    avatar = Avatar(folder)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(AvatarDamaged, match=rf"'lisa' is damaged \({read.split(',')[0]}: Input/output error\)"):
        READS[read](avatar)


def test_files_close_with_the_last_user(store: AvatarStore) -> None:
    def still_open() -> int:
        links = (str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
        return sum(link.startswith(f"{store.root}/") for link in links)

    publish(store)
    first, second = store.open("lisa"), store.open("lisa")
    assert still_open() == 8  # three files each, and the folder
    store.delete("lisa")
    del first
    assert still_open() == 4
    assert (second.frame(3) == 3).all() and (second.mask(3) == 150).all()
    del second
    assert still_open() == 0


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["avatar.json", "frames.yuv", "latents.npy", "regions.npy", "masks.u8"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "a folder"])
def test_a_file_that_is_missing_or_cut_is_named(folder: Path, name: str, how: str) -> None:
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how != "missing":
        file.write_bytes(content[: 0 if how == "empty" else len(content) * 2 // 3])
    said = reason(folder)
    # Masks that are cut are still masks; what tells is that a region points past them.
    assert name in said or (name == "masks.u8" and "masks" in said)


def test_a_missing_preview_is_no_damage(folder: Path) -> None:
    (folder / "preview.jpg").unlink()
    assert Avatar(folder).info.frames == FRAMES


def test_frames_too_many(folder: Path) -> None:
    with (folder / "frames.yuv").open("ab") as file:
        file.write(b"\0")
    assert "frames.yuv" in reason(folder)


def edit(folder: Path, **changes: object) -> None:
    file = folder / "avatar.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames", 0),
        ("frames", 10**40),
        ("frames", 2**62),
        ("frames", -1),
        ("frames", 4.5),
        ("frames", "four"),
        ("width", 10**9),
        ("width", 63),
        ("width", 0),
        ("height", 2**63),
        ("fps", 0),
        ("fps", 10**20),
        ("frames_without_face", -1),
        ("frames_without_face", 2),
        ("colour_space", 10**30),
        ("colour_primaries", -1),
        ("colour_transfer", 256),
        ("weights_id", None),
        ("parameters", {"a": [1]}),
        ("surprise", 1),
    ],
)
def test_numbers_that_cannot_be(folder: Path, field: str, value: object) -> None:
    edit(folder, **{field: value})
    said = reason(folder)
    assert field in said or "frames.yuv" in said or "without a face" in said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format": 1e999}', '{"format": ' + "9" * 5000 + "}", "\0"]
)
def test_json_that_is_none_or_not_ours(folder: Path, text: str) -> None:
    (folder / "avatar.json").write_text(text)
    assert "avatar.json" in reason(folder)


def test_a_missing_field_is_named(folder: Path) -> None:
    values = json.loads((folder / "avatar.json").read_text())
    del values["weights_id"]
    (folder / "avatar.json").write_text(json.dumps(values))
    assert "avatar.json: weights_id: Field required" in reason(folder)


def test_another_format_version_is_said_first(folder: Path) -> None:
    edit(folder, format=2, a_field_of_the_future=1)
    assert "reads format 1, not 2" in reason(folder)


@pytest.mark.parametrize("name", ["latents.npy", "regions.npy"])
def test_pickles_are_refused(folder: Path, name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return Path.touch, (str(tmp_path / "exploded"),)  # type: ignore[return-value]

    np.save(folder / name, np.array([Bomb()], object), allow_pickle=True)
    assert name in reason(folder)
    (folder / name).write_bytes(b"\x80\x04]\x94.")  # a bare pickle
    assert name in reason(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["latents.npy", "regions.npy"])
def test_zip_archives_of_arrays_are_refused(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        np.savez(file, a=np.zeros(3))
    assert name in reason(folder)


@pytest.mark.parametrize("name", ["latents.npy", "regions.npy"])
@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f2', 'fortran_order': False, 'shape': (4, 8, 32, 32, }",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (4, 8, 32, 32",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (04,)}",
        "{b'descr': '<f2', 'fortran_order': False, 'shape': (4,)}",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (10000000000000000000000,)}",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (-1,)}",
        "(" * 150,
        "",
    ],
)
def test_headers_that_are_damaged(folder: Path, name: str, header: str) -> None:
    text = header.encode().ljust(117) + b"\n"
    body = (folder / name).read_bytes()[128:]
    (folder / name).write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body)
    assert name in reason(folder)


@pytest.mark.parametrize(
    "latents",
    [np.zeros((FRAMES - 1, 8, 32, 32), np.float16), np.zeros((FRAMES, 8, 32, 32), np.float32), np.zeros(FRAMES, "<f2")],
)
def test_latents_of_another_shape(folder: Path, latents: np.ndarray) -> None:
    np.save(folder / "latents.npy", latents)
    assert f"latents.npy is {latents.dtype} {latents.shape}" in reason(folder)


def test_regions_of_another_shape(folder: Path) -> None:
    np.save(folder / "regions.npy", np.zeros(FRAMES + 1, REGION))
    assert "regions.npy is" in reason(folder)
    np.save(folder / "regions.npy", np.zeros(FRAMES, "<i4"))
    assert "regions.npy is int32" in reason(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("face", (-1, 10, 31, 39)),
        ("face", (11, 10, WIDTH + 1, 39)),
        ("face", (11, 10, 31, HEIGHT + 1)),
        ("face", (31, 10, 31, 39)),
        ("face", (11, 39, 31, 10)),
        ("face", (2**31 - 1, 10, 31, 39)),
        ("region", (-2, 12, 18, 40)),
        ("region", (12, 12, WIDTH + 2, 40)),
        ("region", (12, 12, 32, HEIGHT + 2)),
        ("region", (12, 12, 31, 40)),
        ("region", (13, 12, 33, 40)),
        ("region", (12, 12, 12, 40)),
        ("region", (32, 12, 12, 40)),
        ("region", (-(2**31), 12, 2**31 - 2, 40)),
        ("mask_start", -1),
        ("mask_start", 2 * MASK + 1),
        ("mask_start", 3 * MASK),
        ("mask_start", 2**63 - 1),
        ("mask_start", 2**63 - MASK),
        ("mask_start", -(2**63)),
    ],
)
def test_regions_that_point_outside(folder: Path, field: str, value: object) -> None:
    regions = np.load(folder / "regions.npy")
    regions[3][field] = value
    np.save(folder / "regions.npy", regions)
    assert "regions.npy points outside" in reason(folder)


def test_the_last_place_for_a_mask(folder: Path) -> None:
    regions = np.load(folder / "regions.npy")
    regions[0]["mask_start"] = 2 * MASK
    np.save(folder / "regions.npy", regions)
    assert set(Avatar(folder).mask(0).flat) == {150}


def test_frames_without_a_face_are_counted(folder: Path) -> None:
    regions = np.load(folder / "regions.npy")
    regions[3]["has_face"] = False
    np.save(folder / "regions.npy", regions)
    assert "2 frames without a face" in reason(folder)


# -- which frame is shown ---------------------------------------------------------------------------------------------


def indices(folder: Path, fps: int, count: int) -> list[int]:
    avatar = Avatar(folder)
    return [avatar.index(frame, fps) for frame in range(count)]


def test_forward_then_backward(folder: Path) -> None:
    assert indices(folder, 25, 18) == [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0, 0, 1]


def test_at_twice_the_rate_each_frame_stands_twice(folder: Path) -> None:
    assert indices(folder, 50, 18) == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 2, 2, 1, 1, 0, 0, 0, 0]


def test_at_other_rates_the_avatar_keeps_its_pace(folder: Path) -> None:
    # frame i stands at i/fps seconds, where the avatar is at its frame floor(i·25/fps)
    assert indices(folder, 30, 12) == [0, 0, 1, 2, 3, 3, 2, 2, 1, 0, 0, 1]
    assert indices(folder, 24, 27)[20:] == [3, 2, 1, 0, 1, 2, 3]  # at 20 … 23, then 25, 26, 27
    assert indices(folder, 1, 5) == [0, 1, 2, 3, 3]  # at 0, 25, 50, 75, 100


def test_a_still_picture_stays(folder: Path) -> None:
    for name in ("frames.yuv", "masks.u8"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // (FRAMES if name == "frames.yuv" else 3)])
    np.save(folder / "latents.npy", np.zeros((1, 8, 32, 32), np.float16))
    np.save(folder / "regions.npy", np.load(folder / "regions.npy")[:1])
    edit(folder, frames=1, frames_without_face=0)
    assert indices(folder, 60, 200) == [0] * 200


# -- disk and digests -------------------------------------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=109 * 10**6))
    with pytest.raises(StorageFull, match="needs 100 MB of disk, 109 MB are free") as caught:
        require_space(tmp_path, 100 * 10**6)
    assert (caught.value.kind, caught.value.status) == ("storage_full", 507)
    require_space(tmp_path, 99 * 10**6)


def test_the_digest_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "1.png").write_bytes(b"abc")
    first = sha256(folder)
    (folder / "1.png").rename(folder / "2.png")
    assert sha256(folder) != first
