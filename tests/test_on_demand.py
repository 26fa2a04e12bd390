"""Models loaded when needed and let go when idle: the bookkeeping, and a real Triton in explicit mode."""

import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from processes import wait_for
from samples import tone, write_sound

from gateway.app import create_app
from gateway.on_demand import OnDemand
from lipserve.embedded import EmbeddedTriton
from lipserve.errors import TritonFailed, TritonUnavailable
from lipserve.settings import Settings


class FakeTriton:
    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.story: list[str] = []
        self.seconds = 0.0
        self.error: Exception | None = None

    def is_loaded(self, name: str) -> bool:
        return name in self.loaded

    def load(self, name: str) -> None:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.story.append(f"load {name}")
        self.loaded.add(name)

    def unload(self, name: str) -> None:
        if self.error is not None:
            raise self.error
        self.story.append(f"unload {name}")
        self.loaded.discard(name)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def triton_() -> FakeTriton:
    return FakeTriton()


def test_what_is_needed_is_loaded_once_however_many_need_it(triton_: FakeTriton) -> None:
    models = OnDemand(triton_, 0)
    triton_.seconds = 0.2
    together = threading.Barrier(8)

    def use(_: int) -> bool:
        together.wait(10)
        with models.using("unet"):
            return triton_.is_loaded("unet")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(8)))
    with models.using("vae"):
        pass
    assert triton_.story == ["load unet", "load vae"]


def test_a_model_goes_when_nobody_has_used_it_for_long_enough(triton_: FakeTriton) -> None:
    clock = Clock()
    models = OnDemand(triton_, 60, clock)
    with models.using("a"), models.using("a"):
        clock.now = 1000
        models.unload_idle()  # in use
    clock.now = 1059
    models.unload_idle()
    with models.using("a"):
        pass
    clock.now = 1100
    models.unload_idle()
    assert triton_.story == ["load a"]
    clock.now = 1119
    models.unload_idle()
    models.unload_idle()
    assert triton_.story == ["load a", "unload a"]
    with models.using("a"):
        assert triton_.is_loaded("a")
    assert triton_.story == ["load a", "unload a", "load a"]
    models.close()


def test_after_an_error_the_next_one_tries_again(triton_: FakeTriton) -> None:
    clock = Clock()
    models = OnDemand(triton_, 60, clock)
    triton_.error = TritonFailed("no memory")
    for _ in range(2):
        with pytest.raises(TritonFailed), models.using("a"):
            raise AssertionError("not reached")
    triton_.error = None
    with models.using("a"):
        pass
    triton_.error = TritonUnavailable("away")
    clock.now = 60
    models.unload_idle()
    triton_.error = None
    clock.now = 119
    models.unload_idle()
    assert triton_.story == ["load a"]
    clock.now = 120
    models.unload_idle()
    assert triton_.story == ["load a", "unload a"]
    models.close()


def test_a_triton_that_was_started_anew_loads_again(triton_: FakeTriton) -> None:
    models = OnDemand(triton_, 0)
    with models.using("a"):
        triton_.loaded.clear()
    with models.using("a"):
        assert triton_.is_loaded("a")
    assert triton_.story == ["load a", "load a"]


def test_nothing_idle_is_looked_for_unless_asked(triton_: FakeTriton) -> None:
    before = threading.active_count()
    OnDemand(triton_, 0).close()
    assert threading.active_count() == before
    models = OnDemand(triton_, 0.2)
    with models.using("a"):
        pass
    wait_for(lambda: triton_.story == ["load a", "unload a"], 10)
    models.close()
    assert threading.active_count() == before


def states(log: Path) -> list[str]:
    """What Triton's log says of its models, in order."""
    found = re.findall(r"successfully (loaded|unloaded) '(\w+)'", log.read_text())
    return [f"{what} {name}" for what, name in found]


def test_a_real_triton_loads_lets_go_and_loads_again(
    settings: Settings, exported: Path, clip: Path, tmp_path: Path
) -> None:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = {name: tmp_path / name for name in ("avatars_dir", "work_dir", "storage_dir")}
    lazy = Settings(**given | own, lazy_load=True, unload_idle_seconds=2)
    sound = write_sound(tmp_path / "a.wav", tone(0.4), 16000).read_bytes()
    with (
        EmbeddedTriton(exported / "model_repository/cpu", exported / "models", tmp_path, explicit=True) as server,
        TestClient(create_app(lazy, server.grpc_url, server.metrics_url), raise_server_exceptions=False) as client,
    ):

        def say() -> int:
            return client.post("/lip_sync", data={"avatar_id": "me"}, files={"audio": sound}).status_code

        wait_for(lambda: client.get("/health/ready").status_code == 200, 60)
        assert states(server.log_file) == []
        assert client.get("/health").json()["model_loaded"] is False
        prepared = client.post("/prepare_avatar", data={"avatar_id": "me"}, files={"video": clip.read_bytes()})
        assert prepared.status_code == 201, prepared.text
        assert states(server.log_file) == ["loaded vae_encoder"]
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(lambda _: say(), range(3))) == [200] * 3
        loaded = ["loaded unet", "loaded vae_decoder", "loaded lipsync"]
        assert sorted(s for s in states(server.log_file) if s != "unloaded vae_encoder") == sorted(
            ["loaded vae_encoder", *loaded]
        )
        wait_for(lambda: {"unloaded unet", "unloaded vae_decoder"} <= set(states(server.log_file)), 30)
        assert client.get("/health/ready").status_code == 200
        assert say() == 200
        assert states(server.log_file).count("loaded unet") == 2
        wait_for(lambda: client.get("/health").json()["model_loaded"], 5)
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: server.pid not in (None, first), 20)
        wait_for(lambda: client.get("/health/ready").status_code == 200, 60)
        assert say() == 200
