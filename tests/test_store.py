"""How one avatar takes another's place where names cannot be swapped (NFS, FUSE)."""

import shutil
from pathlib import Path

import pytest

from lipserve import store as module
from lipserve.store import AvatarStore


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AvatarStore:
    monkeypatch.setattr(module, "_exchange", lambda draft, target: False)
    return AvatarStore(tmp_path / "avatars")


def publish(store: AvatarStore, note: str) -> None:
    with store.writing("lisa", True) as draft:
        (draft / "note").write_text(note)


def note(store: AvatarStore) -> str:
    return (store.folder("lisa") / "note").read_text()


def entries(store: AvatarStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir())


def fail_to_rename(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Folders of these names cannot be renamed."""
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name in names:
            raise OSError("the server is away")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def test_the_old_avatar_is_put_back_if_the_new_one_cannot_take_its_place(
    store: AvatarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "old")
    with monkeypatch.context() as patch:
        fail_to_rename(patch, ".draft-lisa")
        with pytest.raises(OSError, match="away"):
            publish(store, "new")
    assert note(store) == "old"
    assert entries(store) == [".lock-lisa", "lisa"]


def test_an_avatar_that_could_not_be_put_back_is_kept_until_there_is_another(
    store: AvatarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "old")
    with monkeypatch.context() as patch:
        fail_to_rename(patch, ".draft-lisa", ".replaced-lisa")
        for _ in range(2):
            with pytest.raises(OSError, match="away"):
                publish(store, "new")
    assert not store.exists("lisa")
    store.recover()
    assert note(store) == "old"
    publish(store, "new")
    assert note(store) == "new"
    assert entries(store) == [".lock-lisa", "lisa"]


def test_a_first_avatar_that_cannot_take_its_place_leaves_nothing(
    store: AvatarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_rename(monkeypatch, ".draft-lisa")
    with pytest.raises(OSError, match="away"):
        publish(store, "new")
    assert entries(store) == [".lock-lisa"]


def test_an_avatar_deleted_before_the_swap_is_no_error(store: AvatarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def deleted(draft: Path, target: Path) -> bool:
        store.delete("lisa")
        return False

    publish(store, "old")
    monkeypatch.setattr(module, "_exchange", deleted)
    publish(store, "new")
    assert note(store) == "new"
    assert entries(store) == [".lock-lisa", "lisa"]


def test_an_avatar_deleted_before_it_is_set_aside_is_no_error(
    store: AvatarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.rmtree

    def deleted(folder: Path, ignore_errors: bool = False) -> None:
        real(folder, ignore_errors=ignore_errors)
        if folder.name == ".replaced-lisa" and store.exists("lisa") and note(store) == "old":
            store.delete("lisa")

    publish(store, "old")
    monkeypatch.setattr(module.shutil, "rmtree", deleted)
    publish(store, "new")
    assert note(store) == "new"
