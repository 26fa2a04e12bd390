"""Everything that talks to Triton. The only module that imports tritonclient; its errors end here."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from gateway.metrics import Metrics
from lipserve.colour import U8
from lipserve.contract import (
    AUDIO_FEATURES,
    CROPS,
    FACE_LATENTS,
    FACES,
    LIPSYNC,
    VAE_ENCODER,
    WEIGHTS_ID,
    Model,
    Priority,
    Tensor,
)
from lipserve.errors import Cancelled, ServiceBusy, TritonFailed, TritonUnavailable

# A server that comes back is found within a second, not after gRPC's usual two minutes.
CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
CONTROL_TIMEOUT = 5.0  # seconds, for questions that need no computing
_GONE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
_QUEUE_FULL = (
    "Request timeout expired",
    "Exceeds maximum queue size",
)  # Triton's words; the status is UNAVAILABLE, too


class TritonClient:
    """One Triton server. Safe to use from several threads."""

    def __init__(self, url: str, timeout: float, metrics: Metrics) -> None:
        """`url`: host:port of gRPC; `timeout`: seconds one inference may take. Does not connect yet."""
        self.url = url
        self._timeout, self._metrics = timeout, metrics
        self._client = grpc.InferenceServerClient(url, channel_args=CHANNEL_ARGUMENTS)

    def close(self) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        """Whether the ensemble, and so everything in it, can be used now."""
        try:
            return bool(self._client.is_model_ready(LIPSYNC.name, client_timeout=CONTROL_TIMEOUT))
        except InferenceServerException:
            return False

    def weights_id(self) -> str:
        """The identity of the weights the server runs. Raises TritonUnavailable."""
        with self._translated():
            config = self._client.get_model_config(LIPSYNC.name, client_timeout=CONTROL_TIMEOUT).config
        return str(config.parameters[WEIGHTS_ID].string_value)

    def encode_faces(self, crops: U8) -> NDArray[np.float16]:
        """uint8 (n, 256, 256, 3) BGR to float16 (n, 8, 32, 32).

        Raises TritonUnavailable, ServiceBusy or TritonFailed.
        """
        with self._translated():
            result = self._client.infer(
                VAE_ENCODER.name,
                _inputs(VAE_ENCODER, {CROPS: crops}),
                outputs=_outputs(VAE_ENCODER),
                priority=Priority.BATCH,
                client_timeout=self._timeout,
            )
        return np.asarray(result.as_numpy(FACE_LATENTS.name), np.float16)

    def submit(
        self, features: NDArray[np.float16], latents: NDArray[np.float16], priority: Priority = Priority.BATCH
    ) -> "PendingFaces":
        """Sends a batch to the ensemble and returns at once. (n, 50, 384) and (n, 8, 32, 32).

        A server whose models have no levels of priority takes no notice of it.
        """
        future: Future[Any] = Future()

        def done(result: Any, error: InferenceServerException | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        with self._translated():
            call = self._client.async_infer(
                LIPSYNC.name,
                _inputs(LIPSYNC, {AUDIO_FEATURES: features, FACE_LATENTS: latents}),
                callback=done,
                outputs=_outputs(LIPSYNC),
                priority=priority,
                client_timeout=self._timeout,
            )
        self._metrics.batches_in_flight.inc()
        future.add_done_callback(lambda _: self._metrics.batches_in_flight.dec())
        return PendingFaces(self, future, call)

    def warm_up(self) -> None:
        """One frame through every model. Raises TritonUnavailable or TritonFailed."""
        latents = self.encode_faces(np.zeros((1, *CROPS.shape), CROPS.dtype))
        self.submit(np.zeros((1, *AUDIO_FEATURES.shape), AUDIO_FEATURES.dtype), latents).result()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as exc:
            status = str(exc.status())
            if "CANCELLED" in status and "Locally cancelled" in str(exc.message()):
                raise Cancelled("The request was cancelled.") from exc
            if any(words in str(exc.message()) for words in _QUEUE_FULL):
                raise ServiceBusy("Triton's queue is too long.", "Try again in a few seconds.") from exc
            if any(name in status for name in _GONE) or "unavailable" in str(exc.message()).lower():
                raise TritonUnavailable(
                    f"Triton at {self.url} does not answer.", "Try again in a few seconds; is the server running?"
                ) from exc
            raise TritonFailed(f"Triton refused the request: {exc.message()}", "See Triton's log.") from exc


@dataclass
class PendingFaces:
    """A batch on its way."""

    _client: TritonClient
    _future: "Future[Any]"
    _call: Any

    def result(self) -> U8:
        """Waits: uint8 (n, 256, 256, 3) BGR. Raises TritonUnavailable, ServiceBusy or TritonFailed."""
        with self._client._translated():
            return np.asarray(self._future.result().as_numpy(FACES.name), np.uint8)

    def cancel(self) -> None:
        if not self._future.done():
            self._call.cancel()


def _inputs(model: Model, arrays: dict[Tensor, NDArray[Any]]) -> list[grpc.InferInput]:
    inputs = []
    for tensor in model.inputs:
        array = np.ascontiguousarray(arrays[tensor], tensor.dtype)
        wire = grpc.InferInput(tensor.name, list(array.shape), tensor.triton_dtype)
        wire.set_data_from_numpy(array)
        inputs.append(wire)
    return inputs


def _outputs(model: Model) -> list[grpc.InferRequestedOutput]:
    return [grpc.InferRequestedOutput(tensor.name) for tensor in model.outputs]
