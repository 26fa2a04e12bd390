"""Fixtures shared by all tests: the exported demo models, one embedded Triton, one gateway, short clips.

`make test` has fetched and exported everything before; a test that misses it fails and says what to run.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from receiver import LocalPoster
from samples import short_clip

from gateway.app import create_app
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference", type=Path, help="Folder with MuseTalk's public test media (data/) and reference outputs."
    )
    parser.addoption("--fuzz-cases", type=int, default=2000, help="Mutated files that test_fuzz reads.")
    parser.addoption("--fuzz-seed", type=int, default=0, help="Which files these are; a failure names its own.")


@pytest.fixture(scope="session")
def reference(request: pytest.FixtureRequest) -> Path:
    folder: Path | None = request.config.getoption("--reference")
    if folder is None:
        pytest.skip("needs MuseTalk's public test media: give --reference DIR")
    return folder


@pytest.fixture(scope="session")
def exported() -> Path:
    """A folder with `model_repository/cpu` and `models/demo`, made by `make models`."""
    if not (ROOT / "model_repository/cpu/lipsync/config.pbtxt").is_file():
        pytest.fail("The demo models are not there: run `make models`.")
    return ROOT


@pytest.fixture(scope="session")
def face_models(exported: Path) -> Path:
    return exported / "models/faces"


@pytest.fixture(scope="session")
def triton(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    run_dir = tmp_path_factory.mktemp("triton")
    with EmbeddedTriton(exported / "model_repository/cpu", exported / "models", run_dir) as server:
        yield server


@pytest.fixture(scope="session")
def settings(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """With folders of its own, a media folder, and an upload limit that tests can reach."""
    root = tmp_path_factory.mktemp("service")
    (root / "media").mkdir()
    return Settings(
        avatars_dir=root / "avatars",
        work_dir=root / "work",
        storage_dir=root / "storage",
        media_dir=root / "media",
        models_dir=exported / "models",
        model_repository=exported / "model_repository/cpu",
        max_upload_mb=5,
    )


@pytest.fixture(scope="session")
def client(settings: Settings, triton: EmbeddedTriton) -> Iterator[TestClient]:
    """The real gateway in this process, in front of the real Triton."""
    app = create_app(settings, triton.grpc_url, poster=LocalPoster())
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of the bundled avatar, 25 fps, 512×512."""
    return short_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=20)


@pytest.fixture(scope="session")
def lisa(client: TestClient, clip: Path) -> str:
    """The id of a prepared avatar."""
    response = client.post("/prepare_avatar", data={"avatar_id": "lisa"}, files={"video": clip.open("rb")})
    assert response.status_code == 201, response.text
    return "lisa"
