"""Avatars of pictures: prepared once for each content, by one of those who ask; bounded; never taken away in use."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from processes import wait_for

from avatar_prep.prepare import Parameters
from gateway.metrics import Metrics
from gateway.pictures import PictureAvatars
from gateway.retention import Retention
from gateway.timing import Stopwatch
from lipserve.errors import Cancelled, NoFace
from lipserve.settings import Settings
from lipserve.store import AvatarStore

FILES = ("avatar.json", "frames.yuv", "latents.npy", "regions.npy", "masks.u8")


class Preparing:
    """In the engine's place: stores an avatar whose files are 1 kB each, when it is let."""

    weights_id = "w1"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.may_go_on = Event()
        self.may_go_on.set()
        self.fails = False

    def prepare(self, source: Path, avatar_id: str, *_: object, store: AvatarStore, **__: object) -> None:
        self.calls.append(avatar_id)
        with store.writing(avatar_id, True) as draft:
            assert self.may_go_on.wait(10)
            if self.fails:
                raise NoFace("No face.")
            for name in FILES:
                (draft / name).write_bytes(bytes(1000))


@pytest.fixture
def preparing() -> Preparing:
    return Preparing()


@pytest.fixture
def pictures(preparing: Preparing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PictureAvatars]:
    made = new(preparing, tmp_path)
    # The files are empty shells: it is enough that the folder is there.
    monkeypatch.setattr(made.avatars, "get", lambda avatar_id: made.avatars.store.version(avatar_id))
    yield made
    assert not made._used and not made._prepared_now


def new(preparing: Preparing, tmp_path: Path) -> PictureAvatars:
    settings = Settings(storage_dir=tmp_path, max_picture_avatars=3)
    return PictureAvatars(settings, preparing, Metrics())  # type: ignore[arg-type]


def picture(tmp_path: Path, content: str) -> Path:
    file = tmp_path / f"{content}.jpg"
    file.write_text(content)
    return file


def use(pictures: PictureAvatars, source: Path, cancelled: Event | None = None) -> Any:
    return pictures.avatar(source, lambda *_: None, cancelled or Event(), Stopwatch())


def kept(pictures: PictureAvatars) -> list[str]:
    return pictures.avatars.store.list()


def test_the_same_content_is_prepared_once(pictures: PictureAvatars, preparing: Preparing, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_text("a")
    for source in (picture(tmp_path, "a"), picture(tmp_path, "a"), copy):
        with use(pictures, source) as avatar_id:
            assert kept(pictures) == [avatar_id] and avatar_id.startswith("src-")
    assert len(preparing.calls) == 1
    text = pictures._metrics.exposition().decode()
    assert 'lipserve_picture_avatar_lookups_total{result="hit"} 2.0' in text
    assert 'lipserve_picture_avatar_lookups_total{result="miss"} 1.0' in text


def test_other_weights_or_parameters_are_another_avatar(
    pictures: PictureAvatars, preparing: Preparing, tmp_path: Path
) -> None:
    source = picture(tmp_path, "a")
    ids = []
    for weights, parameters in (("w1", Parameters()), ("w2", Parameters()), ("w2", Parameters(extra_margin=11))):
        preparing.weights_id, pictures._parameters = weights, parameters
        with use(pictures, source) as avatar_id:
            ids.append(avatar_id)
    assert len(set(ids)) == 3


def test_two_at_once_prepare_once(
    pictures: PictureAvatars, preparing: Preparing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = picture(tmp_path, "a")
    preparing.may_go_on.clear()
    got: list[str] = []
    waiting: set[int] = set()  # threads
    wait = pictures._changed.wait

    def seen_waiting(timeout: float) -> bool:
        waiting.add(threading.get_ident())
        return wait(timeout)

    monkeypatch.setattr(pictures._changed, "wait", seen_waiting)

    def ask() -> None:
        with use(pictures, source) as avatar_id:
            got.append(avatar_id)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(waiting) == 3, 10)
    preparing.may_go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(got) == 4 and len(set(got)) == 1
    assert len(preparing.calls) == 1


def test_who_waits_for_another_may_be_cancelled(pictures: PictureAvatars, preparing: Preparing, tmp_path: Path) -> None:
    source = picture(tmp_path, "a")
    preparing.may_go_on.clear()

    def ask() -> None:
        with use(pictures, source):
            pass

    first = threading.Thread(target=ask)
    first.start()
    wait_for(lambda: preparing.calls, 10)
    cancelled = Event()
    cancelled.set()
    with pytest.raises(Cancelled), use(pictures, source, cancelled):
        pass
    preparing.may_go_on.set()
    first.join(10)


def test_after_a_failure_the_next_one_tries_itself(
    pictures: PictureAvatars, preparing: Preparing, tmp_path: Path
) -> None:
    source = picture(tmp_path, "a")
    preparing.fails = True
    for _ in range(2):
        with pytest.raises(NoFace), use(pictures, source):
            pass
    assert len(preparing.calls) == 2
    assert list((tmp_path / "pictures").iterdir()) == []  # nothing is left of it
    preparing.fails = False
    with use(pictures, source):
        pass
    assert len(kept(pictures)) == 1


def test_those_used_longest_ago_go(pictures: PictureAvatars, tmp_path: Path) -> None:
    ids = {}
    for content in ("a", "b", "c", "a", "d"):
        with use(pictures, picture(tmp_path, content)) as avatar_id:
            ids[content] = avatar_id
    assert set(kept(pictures)) == {ids["a"], ids["c"], ids["d"]}
    names = {file.name for file in (tmp_path / "pictures").iterdir()}
    assert not any(ids["b"] in name for name in names)


def test_one_in_use_is_never_taken_away(pictures: PictureAvatars, tmp_path: Path) -> None:
    with use(pictures, picture(tmp_path, "first")) as first:
        for content in "abcde":
            with use(pictures, picture(tmp_path, content)):
                assert first in kept(pictures)
        assert len(kept(pictures)) == 3
    with use(pictures, picture(tmp_path, "z")):
        pass
    assert first not in kept(pictures) and len(kept(pictures)) == 3


def test_retention_takes_those_that_are_free(pictures: PictureAvatars, tmp_path: Path) -> None:
    ids = []
    for content in "abc":
        with use(pictures, picture(tmp_path, content)) as avatar_id:
            ids.append(avatar_id)
    retention = Retention(hours=1, max_bytes=2 * len(FILES) * 1000)
    retention.sources.append(pictures.kept)
    with use(pictures, picture(tmp_path, "a")):
        assert retention.sweep(datetime.now(UTC)) == 1  # b is the oldest that may go
        assert set(kept(pictures)) == {ids[0], ids[2]}
        (used,) = (item for item in pictures.kept() if item.remove is None)
        assert used.size == len(FILES) * 1000
        assert retention.sweep(datetime.now(UTC) + timedelta(hours=2)) == 1
        assert kept(pictures) == [ids[0]]
        (later,) = pictures.kept()
    (item,) = pictures.kept()
    assert later.remove is None and item.remove is not None
    item.remove()
    item.remove()  # gone already
    assert kept(pictures) == []


def test_a_restart_finds_them_and_clears_up(pictures: PictureAvatars, preparing: Preparing, tmp_path: Path) -> None:
    with use(pictures, picture(tmp_path, "a")) as avatar_id:
        pass
    (tmp_path / "pictures/.draft-src-killed").mkdir()
    again = new(preparing, tmp_path)
    assert kept(again) == [avatar_id]
    assert not (tmp_path / "pictures/.draft-src-killed").exists()


def test_a_damaged_one_is_prepared_anew(preparing: Preparing, tmp_path: Path) -> None:
    made = new(preparing, tmp_path)
    for _ in range(2):  # the shells are damaged avatars to the real cache
        with use(made, picture(tmp_path, "a")):
            pass
    assert len(preparing.calls) == 2
