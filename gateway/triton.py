"""Everything that talks to Triton. The only module that imports tritonclient; its errors end here.

A batch's tensors lie in shared memory where Triton is on the same host, and travel in gRPC messages otherwise.

No inference is cancelled at Triton, nor given a deadline, which comes to the same there: Triton 2.51 may end with
SIGSEGV of that (docs/decisions/0018-triton-under-many-small-requests.md). Whoever has waited long enough walks away.
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any, Self

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from gateway.metrics import Metrics
from gateway.places import WAIT_STEP, Places
from gateway.shared_memory import OFFSETS, SLOT_BYTES, Slot, SlotPool, exists, is_ours, remove_stale, tensor_bytes
from lipserve.colour import U8
from lipserve.contract import (
    AUDIO_FEATURES,
    CROPS,
    FACE_LATENTS,
    FACES,
    LATENT_CHANNELS,
    LIPSYNC,
    LOWER_LIPSYNC,
    NORM_SUMS,
    REFERENCE_LATENTS,
    REFERENCE_SUMS,
    VAE_ENCODER,
    WEIGHTS_ID,
    Model,
    Priority,
    Tensor,
)
from lipserve.errors import Cancelled, ServiceBusy, SharedMemoryUnusable, TritonFailed, TritonUnavailable
from lipserve.settings import SharedMemoryMode

log = logging.getLogger(__name__)

# A server that comes back is found within a second, not after gRPC's usual two minutes. A host that is gone without a
# word is noticed: by what it does not acknowledge, or by a ping. Triton takes more pings than one in 5 min amiss.
CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 60_000),
]
CONTROL_TIMEOUT = 5.0  # seconds, for questions that need no computing
CLOSE_TIMEOUT = 10.0  # seconds for what is at Triton to be finished: closing a connection cancels what is on it
MAX_OUTSTANDING = (
    32  # inferences of one gateway at Triton: half of what its queues take, and as fast in shared memory as more
)
GROW_AGAIN = 60.0  # seconds after which the system is asked anew for memory that it did not have
LOAD_TIMEOUT = 600.0  # seconds: engines with CUDA graphs take minutes to warm up
_GONE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
# Triton's words; the status is UNAVAILABLE, too.
_QUEUE_FULL = ("Request timeout expired", "Exceeds maximum queue size")


class TritonClient:
    """One Triton server. Safe to use from several threads."""

    def __init__(
        self, url: str, timeout: float, metrics: Metrics, shared_memory: SharedMemoryMode = "off", slots: int = 0
    ) -> None:
        """`url`: host:port of gRPC; `timeout`: seconds one inference may take; `slots`: batches that may lie in shared
        memory at once. Does not connect yet."""
        self.url = url
        self.timeout, self.metrics = timeout, metrics
        self.grpc = grpc.InferenceServerClient(url, channel_args=CHANNEL_ARGUMENTS)
        self.places = Places(MAX_OUTSTANDING)
        self.slots = RegisteredSlots(self.grpc, shared_memory, slots, timeout)

    def close(self) -> None:
        """What is at Triton is finished first, if it is soon."""
        if not self.places.wait_until_free(CLOSE_TIMEOUT):
            log.warning("%d requests were not answered by Triton in %.0f s", self.places.taken, CLOSE_TIMEOUT)
        self.slots.close()
        self.grpc.close()

    def is_ready(self, timeout: float = CONTROL_TIMEOUT) -> bool:
        """Whether the ensemble, and so everything in it, can be used now."""
        try:
            return bool(self.grpc.is_model_ready(LIPSYNC.name, client_timeout=timeout))
        except InferenceServerException:
            return False

    def is_live(self, timeout: float = CONTROL_TIMEOUT) -> bool:
        """Whether the server answers, with whatever models. It calls itself unready while one is loaded or let go."""
        try:
            return bool(self.grpc.is_server_live(client_timeout=timeout))
        except InferenceServerException:
            return False

    def weights_id(self, model: Model = LIPSYNC) -> str:
        """The identity of the weights the server runs. Raises TritonUnavailable."""
        with self.translated():
            config = self.grpc.get_model_config(model.name, client_timeout=CONTROL_TIMEOUT).config
        return str(config.parameters[WEIGHTS_ID].string_value)

    def takes_norm_sums(self) -> bool:
        """Whether the ensemble's decoder draws only the lower rows, for which it wants sums of each avatar frame.
        Raises TritonUnavailable."""
        with self.translated():
            config = self.grpc.get_model_config(LIPSYNC.name, client_timeout=CONTROL_TIMEOUT).config
        return NORM_SUMS.name in {tensor.name for tensor in config.input}

    def is_loaded(self, name: str) -> bool:
        """Raises TritonUnavailable."""
        with self.translated():
            return bool(self.grpc.is_model_ready(name, client_timeout=CONTROL_TIMEOUT))

    def load(self, name: str) -> None:
        """Returns when the model is there; an ensemble brings its members. Only where models are loaded on demand.

        Raises TritonUnavailable or TritonFailed.
        """
        with self.translated():
            self.grpc.load_model(name, client_timeout=LOAD_TIMEOUT)

    def unload(self, name: str) -> None:
        """An ensemble's members go too; Triton would keep them. What is being inferred is finished first."""
        with self.translated():
            self.grpc.unload_model(name, unload_dependents=True, client_timeout=CONTROL_TIMEOUT)

    def encode_faces(self, crops: U8) -> NDArray[np.float16]:
        """uint8 (n, 256, 256, 3) BGR to float16 (n, 8, 32, 32), in batches of as many as the encoder takes at once.

        Raises TritonUnavailable, ServiceBusy or TritonFailed.
        """
        return np.asarray(self._infer(VAE_ENCODER, CROPS, crops), np.float16)

    def reference_sums(self, latents: NDArray[np.float16]) -> NDArray[np.float32]:
        """Of avatar frames' own latents, float16 (n, 4, 32, 32): float32 (n, 19, 32, 2).

        Raises TritonUnavailable, ServiceBusy or TritonFailed.
        """
        return np.asarray(self._infer(REFERENCE_SUMS, REFERENCE_LATENTS, latents), np.float32)

    def _infer(self, model: Model, tensor: Tensor, values: NDArray[Any]) -> NDArray[Any]:
        """A model of one input and one output, over gRPC, in batches of at most its largest."""
        most = model.max_batch_size
        answers = [self._inferred(model, tensor, values[start : start + most]) for start in range(0, len(values), most)]
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def _inferred(self, model: Model, tensor: Tensor, values: NDArray[Any]) -> NDArray[Any]:
        """One batch of them."""
        with self.translated():
            inputs, outputs = _inputs(model, {tensor: values}), _outputs(model)
            result = self.answer(self.submit(model, inputs, outputs, Priority.BATCH))
        answer: NDArray[Any] = result.as_numpy(model.outputs[0].name)
        return answer

    def batch(self, frames: int, priority: Priority = Priority.BATCH, norm_sums: bool = False) -> "Batch":
        """An empty batch for the ensemble, of 1 to LIPSYNC.max_batch_size frames, with `norm_sums` for one that takes
        them. A server whose models have no levels of priority takes no notice of it.

        Raises TritonUnavailable, and SharedMemoryUnusable if there must be shared memory and cannot be.
        """
        model = LOWER_LIPSYNC if norm_sums else LIPSYNC
        if not 1 <= frames <= model.max_batch_size:
            raise ValueError(f"a batch has 1 to {model.max_batch_size} frames, not {frames}")
        with self.translated():
            return Batch(self, model, frames, priority, self.slots.take())

    def warm_up(self) -> None:
        """One frame through every model. Raises TritonUnavailable, TritonFailed or SharedMemoryUnusable."""
        latents = self.encode_faces(np.zeros((1, *CROPS.shape), CROPS.dtype))
        sums = self.reference_sums(latents[:, LATENT_CHANNELS:]) if self.takes_norm_sums() else None
        self.connect()
        with self.batch(1, norm_sums=sums is not None) as batch:
            batch.features[:] = 0
            batch.latents[:] = latents
            if sums is not None:
                batch.norm_sums[:] = sums
            batch.send()
            batch.faces()

    def connect(self) -> None:
        """All that can be made ready without a model. Raises TritonUnavailable or SharedMemoryUnusable."""
        with self.translated():
            self.grpc.is_server_live(client_timeout=CONTROL_TIMEOUT)
            self.slots.reserve()

    def submit(
        self,
        model: Model,
        inputs: list[grpc.InferInput],
        outputs: list[grpc.InferRequestedOutput],
        priority: Priority,
        cancelled: Event | None = None,
    ) -> Future[Any]:
        """Send an inference as soon as it may have a place at Triton, which it keeps until Triton has answered.

        Raises ServiceBusy if none was free in time, and Cancelled.
        """
        if not self.places.take(priority, self.timeout, cancelled):
            raise ServiceBusy(
                f"Triton is at work on {self.places.taken} requests of this gateway, and had no place for another one "
                f"in {self.timeout:g} s.",
                "Try again in a few seconds.",
            )
        future: Future[Any] = Future()
        future.add_done_callback(lambda _: self.places.give_back())

        def done(result: Any, error: InferenceServerException | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        try:
            self.grpc.async_infer(model.name, inputs, callback=done, outputs=outputs, priority=priority)
        except BaseException:
            self.places.give_back()
            raise
        return future

    def answer(self, future: Future[Any], cancelled: Event | None = None) -> Any:
        """Wait for it, by the clock. What is given up stays at Triton and keeps its place until it is done.

        Raises InferenceServerException, TritonUnavailable and Cancelled.
        """
        until = time.monotonic() + self.timeout
        while True:
            try:
                return future.result(WAIT_STEP)
            except TimeoutError as exc:
                if cancelled is not None and cancelled.is_set():
                    raise Cancelled("The request was cancelled.") from exc
                if time.monotonic() > until:
                    raise self.unavailable() from exc

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as exc:
            if any(words in str(exc.message()) for words in _QUEUE_FULL):
                raise ServiceBusy("Triton's queue is too long.", "Try again in a few seconds.") from exc
            if _is_gone(exc) or "unavailable" in str(exc.message()).lower():
                raise self.unavailable() from exc
            raise TritonFailed(f"Triton refused the request: {exc.message()}", "See Triton's log.") from exc

    def unavailable(self) -> TritonUnavailable:
        return TritonUnavailable(
            f"Triton at {self.url} does not answer.", "Try again in a few seconds; is the server running?"
        )


class Batch:
    """A batch for the ensemble: fill `features`, `latents` and, if it takes them, `norm_sums`, send it, take its faces,
    release it.

    features: float16 (n, 50, 384), latents: float16 (n, 8, 32, 32), norm_sums: float32 (n, 19, 32, 2), to be written by
    the caller before `send`. They and the faces may be views of memory that the next batch is written to, so nothing of
    them may be used after `release`,
    which leaving a `with` block is too. Used by one thread at a time.
    """

    def __init__(self, client: TritonClient, model: Model, frames: int, priority: Priority, slot: Slot | None) -> None:
        self._model = model
        self._client, self._frames, self._priority, self._slot = client, frames, priority, slot
        self._shared = slot is not None
        self._arrays = {
            tensor: np.empty((frames, *tensor.shape), tensor.dtype) if slot is None else slot.array(tensor, frames)
            for tensor in model.inputs
        }
        self._future: Future[Any] | None = None
        self._released = False

    @property
    def features(self) -> NDArray[np.float16]:
        return self._array(AUDIO_FEATURES)

    @property
    def latents(self) -> NDArray[np.float16]:
        return self._array(FACE_LATENTS)

    @property
    def norm_sums(self) -> NDArray[np.float32]:
        return self._array(NORM_SUMS)

    def _array(self, tensor: Tensor) -> NDArray[Any]:
        if self._released or self._future is not None:
            raise RuntimeError("a batch is filled before it is sent")
        return self._arrays[tensor]

    def send(self, cancelled: Event | None = None) -> None:
        """To the ensemble; waits only while MAX_OUTSTANDING others of this gateway are there.

        Raises ServiceBusy if that takes too long or, once `cancelled` is set, Cancelled.
        """
        if self._released or self._future is not None:
            raise RuntimeError("a batch is sent once")
        with self._client.translated():
            self._send(cancelled)

    def faces(self, cancelled: Event | None = None) -> U8:
        """Waits: uint8 (n, 256, 256, 3) BGR, read-only. Raises TritonUnavailable, ServiceBusy, TritonFailed or, once
        `cancelled` is set, Cancelled."""
        if self._released or self._future is None:
            raise RuntimeError("a batch has faces between send and release")
        with self._client.translated():
            try:
                result = self._client.answer(self._future, cancelled)
            except InferenceServerException as exc:
                if not (self._shared and _has_forgotten(exc)):
                    raise
                result = self._again(cancelled)
        if not self._shared:
            return np.asarray(result.as_numpy(FACES.name), np.uint8)
        assert self._slot is not None
        faces = self._slot.array(FACES, self._frames)
        faces.flags.writeable = False
        return faces

    def release(self) -> None:
        """Its memory may be used for another batch as soon as Triton is done with it, which goes on. Never waits."""
        if self._released:
            return
        self._released = True
        future, slot = self._future, self._slot
        if slot is None:
            return
        if future is None:
            self._client.slots.put_back(slot)
        else:
            future.add_done_callback(lambda done: self._client.slots.take_back(slot, done.exception()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _send(self, cancelled: Event | None) -> Future[Any]:
        slot = self._slot if self._shared else None
        inputs, outputs = _inputs(self._model, self._arrays, slot), _outputs(self._model, slot, self._frames)
        self._future = future = self._client.submit(self._model, inputs, outputs, self._priority, cancelled)
        metrics = self._client.metrics
        metrics.batches("grpc" if slot is None else "shared_memory")
        metrics.batches_in_flight.inc()
        future.add_done_callback(lambda _: metrics.batches_in_flight.dec())
        return future

    def _again(self, cancelled: Event | None) -> Any:
        """Triton was started anew and knows no regions: once more, with the slot or, if that is refused, without."""
        assert self._slot is not None
        self._slot.registered = False
        self._shared = self._client.slots.register(self._slot)
        return self._client.answer(self._send(cancelled), cancelled)


class RegisteredSlots:
    """Slots of shared memory that Triton knows. What it refuses, or the system, is logged once; raised if `on`.

    That Triton can open a region of ours by its random name proves that both see the same memory: an address proves
    nothing, since a container has its own /dev/shm and a tunnel looks local.
    """

    def __init__(self, client: grpc.InferenceServerClient, mode: SharedMemoryMode, limit: int, timeout: float) -> None:
        """`timeout`: seconds after which Triton has finished any batch, or never will."""
        self._client, self._mode, self._limit, self._timeout = client, mode, limit, timeout
        remove_stale()
        self._pool = SlotPool(limit)
        self._refused = mode == "off"
        self._said: set[str] = set()
        self._sweep_at: float | None = 0.0  # monotonic time when Triton is to forget regions that are no more
        self._grow_at = 0.0  # monotonic time until when no more memory is asked for
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._pool)

    def reserve(self) -> None:
        """With `on`, make and register all slots now. Raises SharedMemoryUnusable or InferenceServerException."""
        if self._mode != "on":
            return
        taken = []
        try:
            for _ in range(self._limit):
                slot = self.take()
                if slot is None:
                    break
                taken.append(slot)
        finally:
            for slot in taken:
                self.put_back(slot)

    def take(self) -> Slot | None:
        """None: the batch is to travel over gRPC. Raises SharedMemoryUnusable or InferenceServerException."""
        if self._refused:
            return None
        try:
            slot = self._pool.take(grow=time.monotonic() >= self._grow_at)
        except OSError as exc:
            reason = f"no {SLOT_BYTES / 1e6:.0f} MB of shared memory for a batch: {exc.strerror}"
            self._require_not_on(reason)
            self._grow_at = time.monotonic() + GROW_AGAIN
            self._say(f"Batches beyond {len(self._pool)} at once travel to Triton over gRPC, for a while: {reason}.")
            return None
        if slot is None:
            return None
        try:
            if slot.registered:
                self._sweep()
            usable = slot.registered or self.register(slot)
        except BaseException:
            self.put_back(slot)
            raise
        return slot if usable else None

    def register(self, slot: Slot) -> bool:
        """Make the slot known to Triton; False: it was refused, and no slot is to be used any more.

        Raises SharedMemoryUnusable with `on`, and InferenceServerException if Triton does not answer.
        """
        try:
            self._client.register_system_shared_memory(slot.name, slot.key, SLOT_BYTES, client_timeout=CONTROL_TIMEOUT)
        except InferenceServerException as exc:
            if _is_gone(exc):
                raise
            if "ALREADY_EXISTS" not in str(exc.status()):  # the answer to an earlier attempt was lost
                self._give_up(f"Triton cannot use it: {exc.message()}")
                return False
        slot.registered = True
        self._say("Batches travel to Triton through shared memory.")
        self._sweep()
        return True

    def put_back(self, slot: Slot) -> None:
        """A slot that Triton has no batch in."""
        self._pool.put_back(slot)

    def take_back(self, slot: Slot, error: BaseException | None) -> None:
        """A slot whose batch has ended, with this error or none."""
        if error is None or (isinstance(error, InferenceServerException) and _is_answer(error)):
            slot.registered = slot.registered and not (error is not None and _has_forgotten(error))
            self._pool.put_back(slot)
            return
        # The connection was lost: should that Triton still live, it may still write. What is dropped it may keep.
        self._pool.drop(slot)
        with self._lock:
            self._sweep_at = self._sweep_at or time.monotonic() + self._timeout

    def close(self) -> None:
        """Regions are gone from the system, and from Triton if it is there."""
        for slot in self._pool.free:
            if slot.registered:
                try:
                    self._client.unregister_system_shared_memory(slot.name, client_timeout=1.0)
                except InferenceServerException as exc:
                    if _is_gone(exc):
                        break
        self._pool.close()

    def _give_up(self, reason: str) -> None:
        """Go on over gRPC. Raises SharedMemoryUnusable with `on`."""
        self._require_not_on(reason)
        self._refused = True
        self._pool.close()
        self._say(f"Batches travel to Triton over gRPC, not through shared memory: {reason}.")

    def _require_not_on(self, reason: str) -> None:
        if self._mode == "on":
            raise SharedMemoryUnusable(
                f"Shared memory with Triton cannot be used: {reason}.",
                "LIPSERVE_SHARED_MEMORY=on demands it; auto goes on over gRPC.",
            )

    def _say(self, what: str) -> None:
        with self._lock:
            if what in self._said:
                return
            self._said.add(what)
        log.info("%s", what)

    def _sweep(self) -> None:
        """Triton forgets regions whose files are gone: of a killed gateway, or dropped long ago."""
        with self._lock:
            if self._sweep_at is None or time.monotonic() < self._sweep_at:
                return
            self._sweep_at = None
        again = False  # Triton is away, or a region still in use there
        try:
            known = self._client.get_system_shared_memory_status(client_timeout=CONTROL_TIMEOUT).regions
        except InferenceServerException:
            known, again = (), True
        for name in known:
            if is_ours(name) and not exists(name):
                try:
                    self._client.unregister_system_shared_memory(name, client_timeout=CONTROL_TIMEOUT)
                except InferenceServerException:
                    again = True
        if again:
            with self._lock:
                self._sweep_at = time.monotonic() + self._timeout


def _is_gone(error: InferenceServerException) -> bool:
    """Whether it is that there was no answer, or not in time."""
    return any(name in str(error.status()) for name in _GONE)


def _is_answer(error: InferenceServerException) -> bool:
    """Whether it is certainly from Triton itself, which then is done with the request."""
    by_status = any(name in str(error.status()) for name in ("NOT_FOUND", "INVALID_ARGUMENT"))
    return by_status or any(words in str(error.message()) for words in _QUEUE_FULL)


def _has_forgotten(error: BaseException) -> bool:
    """Whether Triton does not know the region that the request named."""
    if not isinstance(error, InferenceServerException):
        return False
    return "NOT_FOUND" in str(error.status()) and "shared memory region" in str(error.message())


def _inputs(model: Model, arrays: dict[Tensor, NDArray[Any]], slot: Slot | None = None) -> list[grpc.InferInput]:
    """The arrays themselves, or where they lie in `slot`."""
    inputs = []
    for tensor in model.inputs:
        array = arrays[tensor]
        wire = grpc.InferInput(tensor.name, list(array.shape), tensor.triton_dtype)
        if slot is None:
            wire.set_data_from_numpy(np.ascontiguousarray(array, tensor.dtype))
        else:
            wire.set_shared_memory(slot.name, tensor_bytes(tensor, len(array)), OFFSETS[tensor])
        inputs.append(wire)
    return inputs


def _outputs(model: Model, slot: Slot | None = None, frames: int = 0) -> list[grpc.InferRequestedOutput]:
    """To be sent back, or to be written into `slot`."""
    outputs = []
    for tensor in model.outputs:
        wanted = grpc.InferRequestedOutput(tensor.name)
        if slot is not None:
            wanted.set_shared_memory(slot.name, tensor_bytes(tensor, frames), OFFSETS[tensor])
        outputs.append(wanted)
    return outputs
