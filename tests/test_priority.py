"""Live before batch: what the gateway asks of Triton's queues, and what the real Triton makes of it."""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from fastapi.testclient import TestClient
from samples import tone, write_sound

from gateway.engine import Engine, SyncRequest
from gateway.metrics import Metrics
from gateway.places import Places
from gateway.shared_memory import PREFIX
from gateway.triton import Batch, TritonClient
from lipserve.contract import LIPSYNC, VAE_ENCODER, Priority
from lipserve.embedded import EmbeddedTriton
from lipserve.errors import ServiceBusy
from lipserve.settings import Settings


@pytest.fixture
def asker(triton: EmbeddedTriton) -> Iterator[TritonClient]:
    asker = TritonClient(triton.grpc_url, 120, Metrics())
    yield asker
    asker.close()


def submit(asker: TritonClient, frames: int, priority: Priority) -> Batch:
    batch = asker.batch(frames, priority)
    batch.features[:], batch.latents[:] = 0, 0
    batch.send()
    return batch


def places(asker: TritonClient, last: Priority) -> list[str]:
    """Ten batches, then one of another priority: in which order they are answered."""
    answered: list[str] = []

    def wait(name: str, pending: Batch) -> None:
        pending.faces()
        answered.append(name)

    threads = []
    for name in (*("batch" for _ in range(10)), "last"):
        pending = submit(asker, 16, last if name == "last" else Priority.BATCH)
        threads.append(threading.Thread(target=wait, args=(name, pending)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return answered


def test_live_passes_batch_and_batch_does_not(asker: TritonClient) -> None:
    """What is computed already is finished first: one batch in each of two models, and one on its way into the next."""
    asker.warm_up()
    assert places(asker, Priority.LIVE).index("last") <= 4
    assert places(asker, Priority.BATCH).index("last") >= 9


def test_a_full_queue_is_said_to_be_full(asker: TritonClient) -> None:
    asker.places = Places(64 + 4 * LIPSYNC.max_batch_size)  # as of several gateways; 64 may wait
    batches = [submit(asker, 1, Priority.BATCH) for _ in range(64 + 4 * LIPSYNC.max_batch_size)]
    refused: list[ServiceBusy] = []
    for batch in batches:
        try:
            assert batch.faces().shape == (1, 256, 256, 3)
        except ServiceBusy as busy:
            refused.append(busy)
        batch.release()
    assert 0 < len(refused) <= 4 * LIPSYNC.max_batch_size
    assert "queue is too long" in refused[0].message
    assert refused[0].retry_after
    assert submit(asker, 1, Priority.LIVE).faces().shape == (1, 256, 256, 3)


def test_a_live_frame_that_waited_too_long_is_busy_not_gone(asker: TritonClient, monkeypatch: Any) -> None:
    send = grpc.InferenceServerClient.async_infer
    # 1 µs, less than a batch waits for company
    monkeypatch.setattr(grpc.InferenceServerClient, "async_infer", lambda *a, **more: send(*a, timeout=1, **more))
    with pytest.raises(ServiceBusy):
        submit(asker, 1, Priority.LIVE).faces()


def test_batches_that_triton_refuses_keep_no_memory(triton: EmbeddedTriton, monkeypatch: Any) -> None:
    """What its queue refuses, Triton has let go of: the slot is used again."""
    client = TritonClient(triton.grpc_url, 60.0, Metrics(), "on", 2)

    def known() -> set[str]:
        own = f"{PREFIX}{os.getpid()}-"
        return {name for name in client.grpc.get_system_shared_memory_status().regions if name.startswith(own)}

    before = known()
    send = grpc.InferenceServerClient.async_infer
    with monkeypatch.context() as patch:
        patch.setattr(grpc.InferenceServerClient, "async_infer", lambda *a, **more: send(*a, timeout=1, **more))
        for _ in range(10):
            with client.batch(1, Priority.LIVE) as batch:
                batch.features[:], batch.latents[:] = 0, 0
                batch.send()
                with pytest.raises(ServiceBusy):
                    batch.faces()
    assert len(known() - before) == len(client.slots) == 1
    client.close()


@pytest.mark.parametrize(("word", "priority"), [("live", 1), ("batch", 2), (None, 2)])
def test_the_setting_goes_with_every_batch(
    client: TestClient,
    lisa: str,
    settings: Settings,
    triton: EmbeddedTriton,
    tmp_path: Path,
    monkeypatch: Any,
    word: str | None,
    priority: int,
) -> None:
    sent: list[tuple[str, int]] = []
    for name in ("infer", "async_infer"):
        original = getattr(grpc.InferenceServerClient, name)

        def spy(self: Any, model: str, *given: Any, _original: Any = original, **more: Any) -> Any:
            sent.append((model, more["priority"]))
            return _original(self, model, *given, **more)

        monkeypatch.setattr(grpc.InferenceServerClient, name, spy)
    engine = Engine(settings.model_copy(update={"priority": word} if word else {}), triton.grpc_url)
    engine.warm_up()
    assert sent == [(VAE_ENCODER.name, 2), (LIPSYNC.name, 2)]
    sent.clear()
    sound = write_sound(tmp_path / "a.wav", tone(0.8), 16000)
    assert engine.lip_sync(SyncRequest(lisa), sound, tmp_path / "a.mp4").frames == 20
    assert sent == [(LIPSYNC.name, priority)] * 3
    engine.close()


def test_a_triton_without_levels_takes_no_notice(exported: Path, tmp_path: Path) -> None:
    repository = tmp_path / "plain"
    shutil.copytree(exported / "model_repository/cpu", repository)
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text()
        config.write_text(re.sub(r"dynamic_batching \{.*?\n\}\n", "dynamic_batching {}\n", text, flags=re.DOTALL))
        assert "priority" not in config.read_text()
    with EmbeddedTriton(repository, exported / "models", tmp_path / "run") as server:
        asker = TritonClient(server.grpc_url, 60, Metrics())
        asker.warm_up()
        for priority in Priority:
            assert submit(asker, 1, priority).faces().shape == (1, 256, 256, 3)
        asker.close()
