"""What the gateway never does to Triton: cancel, give a deadline, send too much at once, leave in the middle."""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from processes import wait_for

from gateway.metrics import Metrics
from gateway.places import Places
from gateway.triton import MAX_OUTSTANDING, Batch, TritonClient
from lipserve.contract import CROPS, LIPSYNC, Priority
from lipserve.embedded import EmbeddedTriton
from lipserve.errors import Cancelled, ServiceBusy, TritonUnavailable
from lipserve.settings import SharedMemoryMode

WAYS: tuple[SharedMemoryMode, ...] = ("on", "off")


@pytest.fixture(params=WAYS)
def client(request: pytest.FixtureRequest, triton: EmbeddedTriton) -> Iterator[TritonClient]:
    client = TritonClient(triton.grpc_url, 60.0, Metrics(), request.param, MAX_OUTSTANDING)
    yield client
    client.close()


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonClient]:
    """In front of a Triton that takes everything and never answers; one place."""
    client = TritonClient("127.0.0.1:1", 0.2, Metrics())
    client.places = Places(1)
    monkeypatch.setattr(client.grpc, "async_infer", lambda *_, **__: None)
    monkeypatch.setattr("gateway.triton.CLOSE_TIMEOUT", 0.1)
    yield client
    client.close()


class Traffic:
    """What a client has at Triton, seen at tritonclient's call."""

    def __init__(self, client: TritonClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        self.options: set[str] = set()
        self._send, self._lock = client.grpc.async_infer, threading.Lock()
        monkeypatch.setattr(client.grpc, "async_infer", self._spy)

    def _spy(self, *given: Any, callback: Callable[..., None], **more: Any) -> Any:
        def done(result: Any, error: Any) -> None:
            with self._lock:
                self.now -= 1
            callback(result=result, error=error)

        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.options |= more.keys()
        return self._send(*given, callback=done, **more)


def sent(client: TritonClient, priority: Priority = Priority.BATCH) -> Batch:
    batch = client.batch(1, priority)
    batch.features[:], batch.latents[:] = 0, 0
    batch.send()
    return batch


def finished(client: TritonClient) -> tuple[int, int]:
    """Requests to the ensemble that Triton has answered: with faces, and with an error, be it that it was cancelled. It
    counts them a moment after the answer."""
    (model,) = client.grpc.get_inference_statistics(LIPSYNC.name).model_stats
    return model.inference_stats.success.count, model.inference_stats.fail.count


def test_what_is_given_up_is_finished_and_not_cancelled(client: TritonClient) -> None:
    with sent(client) as batch:
        batch.faces()
    good, bad = finished(client)
    for _ in range(40):
        sent(client).release()
    gc.collect()  # gRPC cancels calls of which nobody knows any more
    assert client.places.wait_until_free(60)
    wait_for(lambda: finished(client) == (good + 40, bad), 5)


def test_closing_waits_for_what_is_at_triton(triton: EmbeddedTriton, client: TritonClient) -> None:
    good, bad = finished(client)
    other = TritonClient(triton.grpc_url, 60.0, Metrics(), "auto", MAX_OUTSTANDING)
    batches = [sent(other) for _ in range(16)]
    other.close()
    wait_for(lambda: finished(client) == (good + 16, bad), 5)
    for batch in batches:
        batch.release()


def test_closing_does_not_wait_for_ever(hanging: TritonClient, caplog: pytest.LogCaptureFixture) -> None:
    sent(hanging)
    hanging.close()
    (said,) = (record.getMessage() for record in caplog.records if record.name == "gateway.triton")
    assert said == "1 requests were not answered by Triton in 0 s"


def test_no_more_are_at_triton_than_have_a_place(client: TritonClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.places = Places(4)
    traffic = Traffic(client, monkeypatch)
    shapes: list[tuple[int, ...]] = []

    def ask() -> None:
        for _ in range(5):
            with sent(client) as batch:
                shapes.append(batch.faces().shape)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    client.encode_faces(np.zeros((1, *CROPS.shape), np.uint8))
    assert shapes == [(1, 256, 256, 3)] * 40
    assert (traffic.most, traffic.now, client.places.taken) == (4, 0, 0)
    assert traffic.options == {"outputs", "priority"}  # no deadline


def test_without_a_place_in_time_it_is_busy(hanging: TritonClient) -> None:
    first = sent(hanging)
    with pytest.raises(ServiceBusy, match=r"at work on 1 requests .* in 0\.2 s"):
        sent(hanging)
    with pytest.raises(TritonUnavailable):
        first.faces()
    first.release()
    assert hanging.places.taken == 1  # Triton may still be at it


def test_who_is_cancelled_does_not_wait_for_a_place(hanging: TritonClient) -> None:
    sent(hanging)
    cancelled = threading.Event()
    cancelled.set()
    batch = hanging.batch(1)
    with pytest.raises(Cancelled):
        batch.send(cancelled)
    batch.release()


def test_a_call_that_cannot_be_made_keeps_no_place(hanging: TritonClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Cannot invoke RPC on closed channel!")

    monkeypatch.setattr(hanging.grpc, "async_infer", refuse)
    with pytest.raises(ValueError, match="closed channel"):
        sent(hanging)
    assert hanging.places.taken == 0


def test_a_triton_that_hangs_gives_the_places_back_when_it_goes_on(triton: EmbeddedTriton) -> None:
    client = TritonClient(triton.grpc_url, 0.5, Metrics())
    client.connect()
    assert triton.pid is not None
    os.kill(triton.pid, signal.SIGSTOP)
    try:
        with sent(client) as batch, pytest.raises(TritonUnavailable):
            batch.faces()
        assert client.places.taken == 1
    finally:
        os.kill(triton.pid, signal.SIGCONT)
    assert client.places.wait_until_free(30)
    client.close()
