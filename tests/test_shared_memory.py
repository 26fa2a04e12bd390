"""Shared memory with Triton: regions made, reused and gone; who falls back to gRPC, and what a kill leaves."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from processes import Service, service, wait_for
from prometheus_client.parser import text_string_to_metric_families
from samples import tone, write_sound
from tritonclient.utils import InferenceServerException

from gateway import shared_memory
from gateway.metrics import Metrics
from gateway.shared_memory import FOLDER, OFFSETS, PREFIX, SLOT_BYTES, TENSORS, Slot, SlotPool, remove_stale
from gateway.triton import GROW_AGAIN, Batch, RegisteredSlots, TritonClient
from lipserve import claims
from lipserve.colour import U8
from lipserve.contract import FACES, LIPSYNC
from lipserve.embedded import EmbeddedTriton
from lipserve.errors import Cancelled, SharedMemoryUnusable, TritonFailed, TritonUnavailable
from lipserve.settings import Settings, SharedMemoryMode

TIMEOUT = 60.0


def regions() -> set[str]:
    """Of this process, in the system."""
    return {file.name for file in FOLDER.glob(f"{PREFIX}{os.getpid()}-*")}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def known(client: TritonClient) -> set[str]:
    """Regions of gateways that Triton knows."""
    return {name for name in client.grpc.get_system_shared_memory_status().regions if name.startswith(PREFIX)}


def sent(metrics: Metrics, transport: str) -> float:
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            if sample.name == "lipserve_batches_total" and sample.labels["transport"] == transport:
                return sample.value
    raise AssertionError(transport)


def client_of(
    triton: EmbeddedTriton, mode: SharedMemoryMode, slots: int = 3, metrics: Metrics | None = None
) -> TritonClient:
    return TritonClient(triton.grpc_url, TIMEOUT, metrics or Metrics(), mode, slots)


def fill(batch: Batch, seed: int) -> None:
    random = np.random.default_rng(seed)
    batch.features[:] = random.normal(0, 1, batch.features.shape)
    batch.latents[:] = random.normal(0, 1, batch.latents.shape)


def faces_of(client: TritonClient, seed: int, frames: int = 2) -> U8:
    """A copy."""
    with client.batch(frames) as batch:
        fill(batch, seed)
        batch.send()
        return batch.faces().copy()


@pytest.fixture
def shared(triton: EmbeddedTriton) -> Iterator[TritonClient]:
    before = regions()
    client = client_of(triton, "on")
    yield client
    client.close()
    assert regions() == before


# -- regions and pools, without Triton --------------------------------------------------------------------------------


def test_a_slot_holds_the_largest_batch_and_its_tensors_do_not_touch() -> None:
    slot = Slot()
    try:
        assert (FOLDER / slot.name).stat().st_size == SLOT_BYTES
        assert (FOLDER / slot.name).stat().st_blocks * 512 >= SLOT_BYTES  # reserved, not only promised
        assert (FOLDER / slot.name).stat().st_mode & 0o777 == 0o600
        views = [slot.array(tensor, LIPSYNC.max_batch_size) for tensor in TENSORS]
        for number, view in enumerate(views, 1):
            view[:] = number
        for number, (tensor, view) in enumerate(zip(TENSORS, views, strict=True), 1):
            assert (view == number).all()
            assert view.shape == (LIPSYNC.max_batch_size, *tensor.shape)
            assert OFFSETS[tensor] % 4096 == 0
        with pytest.raises(ValueError, match="1 to 16 frames, not 17"):
            slot.array(FACES, 17)
    finally:
        slot.close()
    assert not (FOLDER / slot.name).exists()
    assert (views[2] == 3).all()  # who still has it mapped is not harmed


def test_a_pool_has_a_limit_and_takes_back() -> None:
    before = regions()
    pool = SlotPool(2)
    first, second = pool.take(), pool.take()
    assert first is not None and second is not None
    assert pool.take() is None
    pool.put_back(first)
    assert pool.take() is first
    pool.drop(second)
    assert regions() - before == {first.name}
    third = pool.take()
    assert third is not None and third is not second
    pool.close()
    pool.put_back(third)
    assert pool.take() is None
    assert regions() == before


def test_a_slot_leaves_room_for_triton_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(tmp_path)
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(shared_memory, "KEPT_FREE", 2 * free.f_blocks * free.f_frsize)
    with pytest.raises(OSError, match="left to others"):
        SlotPool(1).take()
    assert not list(tmp_path.iterdir())


MAKE_A_SLOT = (
    "import sys, time; from gateway.shared_memory import Slot; print(Slot().name, flush=True); time.sleep(600)"
)


def test_regions_of_the_killed_are_removed_and_those_of_the_living_are_not() -> None:
    mine = Slot()
    process = subprocess.Popen([sys.executable, "-c", MAKE_A_SLOT], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        theirs = FOLDER / process.stdout.readline().strip()
        remove_stale()
        assert theirs.exists()
        process.kill()
        process.wait()
        remove_stale()
        assert not theirs.exists()
        assert (FOLDER / mine.name).exists()
    finally:
        process.kill()
        process.wait()
        mine.close()


def test_a_region_is_never_seen_without_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gateway removes it between its making and its locking: it is made again."""
    real = claims.fcntl.flock
    calls = []

    def removed_before(handle: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (file,) = (FOLDER / name for name in regions() - before)
            file.unlink()
        real(handle, operation)

    before = regions()
    monkeypatch.setattr(claims.fcntl, "flock", removed_before)
    slot = Slot()
    assert len(calls) == 2
    assert regions() - before == {slot.name}
    slot.close()


def test_a_pool_closes_its_files() -> None:
    before = open_files()
    for _ in range(5):
        pool = SlotPool(3)
        taken = [pool.take() for _ in range(3)]
        assert all(taken)
        pool.close()
    del pool, taken
    assert open_files() == before


class ForgetfulTriton:
    """Takes every region; lets go of one when it is asked for the second time."""

    def __init__(self, regions: set[str]) -> None:
        self.regions, self.asked = regions, 0

    def register_system_shared_memory(self, name: str, key: str, size: int, client_timeout: float) -> None:
        self.regions.add(name)

    def get_system_shared_memory_status(self, client_timeout: float) -> SimpleNamespace:
        return SimpleNamespace(regions=sorted(self.regions))

    def unregister_system_shared_memory(self, name: str, client_timeout: float) -> None:
        self.asked += 1
        if self.asked == 1:
            raise InferenceServerException("still in use", "INTERNAL")
        self.regions.discard(name)


def test_regions_that_are_gone_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ForgetfulTriton({f"{PREFIX}1-gone"})
    slots = RegisteredSlots(fake, "on", 1, TIMEOUT)  # type: ignore[arg-type]
    slot = slots.take()
    assert slot is not None
    assert (fake.asked, f"{PREFIX}1-gone" in fake.regions) == (1, True)
    now = time.monotonic()
    monkeypatch.setattr("gateway.triton.time.monotonic", lambda: now + 2 * TIMEOUT)
    slots.put_back(slot)
    assert slots.take() is slot  # nothing new is registered
    assert (fake.asked, fake.regions) == (2, {slot.name})
    slots.close()


def test_memory_that_is_short_for_a_while_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = RegisteredSlots(ForgetfulTriton(set()), "auto", 2, TIMEOUT)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "KEPT_FREE", 2**60)
        assert slots.take() is None
    assert slots.take() is None  # not asked for yet
    now = time.monotonic()
    monkeypatch.setattr("gateway.triton.time.monotonic", lambda: now + GROW_AGAIN)
    assert slots.take() is not None
    slots.close()


def test_who_is_not_wanted_any_more_waits_for_no_batch(triton: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    client, cancelled = client_of(triton, "off"), threading.Event()
    monkeypatch.setattr(client.grpc, "async_infer", lambda *_, **__: None)  # a Triton that hangs
    monkeypatch.setattr("gateway.triton.CLOSE_TIMEOUT", 0.0)
    batch = client.batch(1)
    fill(batch, 0)
    batch.send()
    threading.Timer(0.1, cancelled.set).start()
    with pytest.raises(Cancelled):
        batch.faces(cancelled)
    client.close()


# -- with Triton ------------------------------------------------------------------------------------------------------


def test_faces_are_the_same_both_ways(shared: TritonClient, triton: EmbeddedTriton) -> None:
    wire = client_of(triton, "off")
    for frames in (1, 8, LIPSYNC.max_batch_size):
        assert (faces_of(shared, frames, frames) == faces_of(wire, frames, frames)).all()
    assert sent(shared.metrics, "shared_memory") == 3
    assert sent(wire.metrics, "shared_memory") == 0
    assert sent(wire.metrics, "grpc") == 3
    wire.close()


def test_a_batch_that_is_held_is_not_written_over(shared: TritonClient) -> None:
    with shared.batch(2) as held:
        fill(held, 1)
        held.send()
        faces = held.faces()
        expected = faces.copy()
        for seed in range(2, 6):
            assert (faces_of(shared, seed) != expected).any()
        assert (faces == expected).all()
        assert not faces.flags.writeable
    for use in (held.faces, held.send, lambda: held.features, lambda: held.latents):
        with pytest.raises(RuntimeError):
            use()
    held.release()  # once more is nothing


def test_a_batch_is_filled_before_it_is_sent_and_sent_once(shared: TritonClient) -> None:
    with shared.batch(1) as batch:
        with pytest.raises(RuntimeError):
            batch.faces()
        fill(batch, 1)
        batch.send()
        for use in (batch.send, lambda: batch.features):
            with pytest.raises(RuntimeError):
                use()


def test_a_batch_given_up_keeps_its_slot_until_triton_is_done(shared: TritonClient) -> None:
    """Over and over, so that a slot that came back too early would be written over."""
    expected = faces_of(shared, 0)
    for seed in range(1, 4):
        with ExitStack() as given_up:
            for _ in range(2):
                batch = given_up.enter_context(shared.batch(16))
                fill(batch, seed)
                batch.send()
        assert (faces_of(shared, 0) == expected).all()
    wait_for(lambda: len(shared.slots._pool.free) == 3, 30)
    assert len(shared.slots) == 3


def test_more_batches_than_slots_travel_over_grpc(triton: EmbeddedTriton) -> None:
    client = client_of(triton, "auto", slots=1)
    with client.batch(1) as first, client.batch(1) as second:
        for batch in (first, second):
            fill(batch, 7)
            batch.send()
        assert (first.faces() == second.faces()).all()
    assert [sent(client.metrics, way) for way in ("shared_memory", "grpc")] == [1, 1]
    client.close()


def test_fifty_batches_leave_nothing(shared: TritonClient) -> None:
    faces_of(shared, 0)
    before = regions(), known(shared)
    files = open_files()
    for seed in range(50):
        faces_of(shared, seed, 1)
    assert (regions(), known(shared)) == before
    assert open_files() <= files  # other tests' connections may close meanwhile
    assert sent(shared.metrics, "grpc") == 0


def test_closing_tells_triton(triton: EmbeddedTriton) -> None:
    wire, client = client_of(triton, "off"), client_of(triton, "on")
    before = known(wire)
    faces_of(client, 1)
    mine = known(wire) - before
    assert mine
    time.sleep(0.5)  # Triton counts a region as in use a moment longer than its answer takes
    client.close()
    assert not known(wire) & mine
    wire.close()


def test_on_makes_all_slots_when_it_warms_up(shared: TritonClient) -> None:
    shared.warm_up()
    assert len(shared.slots) == 3
    assert all(slot.registered for slot in shared.slots._pool.free)


def test_a_refused_batch_is_an_error_and_its_slot_comes_back(
    shared: TritonClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces_of(shared, 1)
    count = len(shared.slots)
    with monkeypatch.context() as patch:
        patch.setitem(OFFSETS, FACES, SLOT_BYTES)  # beyond the end, which Triton refuses
        with shared.batch(1) as batch:
            fill(batch, 1)
            patch.setattr(shared_memory.Slot, "array", lambda *_: pytest.fail("no faces to be had"))
            batch.send()
            with pytest.raises(TritonFailed):
                batch.faces()
    faces_of(shared, 1)
    wait_for(lambda: len(shared.slots._pool.free) == count, 10)


def test_a_triton_that_does_not_see_our_memory_gets_grpc(
    triton: EmbeddedTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)  # as in another container
    client = client_of(triton, "auto")
    with caplog.at_level(logging.INFO):
        for seed in range(3):
            faces_of(client, seed)
    (said,) = (record.message for record in caplog.records if record.name == "gateway.triton")
    assert "over gRPC" in said and "Unable to open shared memory region" in said
    assert sent(client.metrics, "grpc") == 3
    assert not list(tmp_path.iterdir())
    client.close()
    demanding = client_of(triton, "on")
    with pytest.raises(SharedMemoryUnusable, match="Unable to open shared memory region"):
        demanding.warm_up()
    demanding.close()
    assert not list(tmp_path.iterdir())


def test_full_shared_memory_is_grpc_or_an_error_and_never_a_crash(
    triton: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, room = os.posix_fallocate, 1

    def fallocate(handle: int, offset: int, size: int) -> None:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= 1
        real(handle, offset, size)

    before = regions()
    monkeypatch.setattr(shared_memory.os, "posix_fallocate", fallocate)
    client = client_of(triton, "auto")
    with caplog.at_level(logging.INFO), ExitStack() as held:
        for _ in range(3):
            batch = held.enter_context(client.batch(1))
            fill(batch, 3)
            batch.send()
            batch.faces()
    said = [record.message for record in caplog.records if record.name == "gateway.triton"]
    assert len(said) == 2
    assert "beyond 1 at once" in said[1] and "No space left" in said[1]
    assert [sent(client.metrics, way) for way in ("shared_memory", "grpc")] == [1, 2]
    client.close()
    demanding = client_of(triton, "on")
    with pytest.raises(SharedMemoryUnusable, match="No space left"):
        demanding.warm_up()
    demanding.close()
    assert regions() == before


def test_no_triton_is_not_taken_for_a_refusal(triton: EmbeddedTriton) -> None:
    client = TritonClient("127.0.0.1:1", 5.0, Metrics(), "auto", 1)
    for _ in range(2):
        with pytest.raises(TritonUnavailable):
            client.batch(1)
    client.grpc.close()
    client.grpc = client.slots._client = client_of(triton, "off").grpc
    faces_of(client, 1)
    assert sent(client.metrics, "shared_memory") == 1
    client.close()


def test_a_triton_that_hangs_is_a_timeout_and_its_slot_waits(triton: EmbeddedTriton) -> None:
    client = TritonClient(triton.grpc_url, 1.0, Metrics(), "auto", 1)
    faces_of(client, 1, 1)
    assert triton.pid is not None
    os.kill(triton.pid, signal.SIGSTOP)
    try:
        with client.batch(1) as batch:
            fill(batch, 1)
            batch.send()
            with pytest.raises(TritonUnavailable):
                batch.faces()
        assert not client.slots._pool.free
    finally:
        os.kill(triton.pid, signal.SIGCONT)
    wait_for(lambda: len(client.slots._pool.free) == 1, 30)
    client.close()


def test_a_triton_started_anew_learns_the_regions_again(exported: Path, tmp_path: Path) -> None:
    before = regions()
    with EmbeddedTriton(exported / "model_repository/cpu", exported / "models", tmp_path) as own:
        client = client_of(own, "on")
        client.warm_up()
        expected = faces_of(client, 1)
        assert own.pid is not None
        first = own.pid
        with client.batch(LIPSYNC.max_batch_size) as lost:
            fill(lost, 2)
            lost.send()
            os.kill(first, signal.SIGKILL)
            with pytest.raises(TritonUnavailable):
                lost.faces()
        assert len(client.slots) == 2  # one is dropped: nobody knows what a lost Triton still writes
        wait_for(lambda: own.pid not in (None, first) and client.is_ready(), 90)
        for _ in range(4):
            assert (faces_of(client, 1) == expected).all()
        assert sent(client.metrics, "grpc") == 0
        client.close()
        assert regions() == before


def test_a_killed_gateway_leaves_nothing_after_the_next_start(
    settings: Settings, triton: EmbeddedTriton, lisa: str, tmp_path: Path
) -> None:
    """Neither in the system nor at a Triton that lives on."""
    sound = write_sound(tmp_path / "short.wav", tone(0.4), 16000)
    wire = client_of(triton, "off")

    def speak(up: Service) -> None:
        with sound.open("rb") as handle:
            answer = up.http.post("/lip_sync", data={"avatar_id": lisa}, files={"audio": handle})
        assert answer.status_code == 200, answer.text

    def left_by(pid: int) -> set[str]:
        return {file.name for file in FOLDER.glob(f"{PREFIX}{pid}-*")}

    folders = {"work_dir": tmp_path / "work", "storage_dir": tmp_path / "storage"}
    options = {**folders, "triton_url": triton.grpc_url, "shared_memory": "on"}
    with service(settings, tmp_path / "first.log", **options) as up:
        speak(up)
        killed = up.process.pid
        up.process.kill()
        up.process.wait(10)
    assert any(name.startswith(f"{PREFIX}{killed}-") for name in known(wire))
    with service(settings, tmp_path / "second.log", **options) as up:
        assert not left_by(killed)
        speak(up)
        assert not [name for name in known(wire) if name.startswith(f"{PREFIX}{killed}-")]
        assert left_by(up.process.pid)
        ended = up.process.pid
    assert not left_by(ended)
    wire.close()
