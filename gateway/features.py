"""From 16 kHz speech to the UNet's audio prompts, on the CPU: log-mel, the audio encoder, a window per video frame.

The numbers are Whisper's (`whisper/audio.py`) and MuseTalk's (`musetalk/utils/audio_processor.py`), but for the left
context: theirs shrinks and shifts with the frame rate, here a frame sees the same 4 states before it at every rate.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import librosa
import numpy as np
import onnxruntime as ort
from librosa.filters import mel
from numpy.typing import NDArray

from lipserve.contract import (
    AUDIO_WIDTH,
    FEATURES_PER_FRAME,
    HIDDEN_STATES,
    HOP_LENGTH,
    LOG_MEL,
    N_FFT,
    N_LAYERS,
    N_MELS,
    SAMPLE_RATE,
    SEGMENT_SAMPLES,
    SEGMENT_STATES,
    STATES_PER_FRAME,
    STATES_PER_SECOND,
    WEIGHTS_ID,
)
from lipserve.errors import InvalidParameter, ModelsMissing
from lipserve.media import Samples

F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
States = NDArray[np.floating[Any]]  # (1500, 5, 384)

AHEAD = SEGMENT_STATES // 4  # states of a segment that are used before the next segment is begun


@cache
def _mel_filters() -> F32:
    """(80, 201), Slaney's scale and normalisation."""
    return np.asarray(mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS), np.float32)


def log_mel(segment: F32) -> F32:
    """float32 (80, 3000) of one segment of at most 480 000 samples, which is padded with silence to 30 s.

    log10 of the mel power, clamped at 1e-10 and at 8 below the segment's maximum, then (x + 4) / 4.
    """
    padded = np.pad(segment, (0, SEGMENT_SAMPLES - segment.size))
    spectrum = librosa.stft(padded, n_fft=N_FFT, hop_length=HOP_LENGTH, window="hann", pad_mode="reflect")
    power = np.abs(spectrum[:, :-1]) ** 2
    log = np.log10(np.maximum(_mel_filters() @ power, 1e-10))
    return np.asarray((np.maximum(log, log.max() - 8) + 4) / 4, np.float32)


class AudioEncoder:
    """Whisper's encoder in ONNX Runtime; loads once, runs from any thread, and knows the last segments again.

    `kept`: segments whose states are kept, 5.8 MB each; `looked_up`: told of each segment whether it was known.
    """

    def __init__(
        self, file: Path, threads: int, kept: int = 0, looked_up: Callable[[bool], None] = lambda known: None
    ) -> None:
        if not file.is_file():
            raise ModelsMissing(
                f"The audio encoder {file} is not there.",
                "The demo's comes with the repository (git checkout models/demo), in the folder LIPSERVE_MODELS_DIR.",
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.weights_id: str = self._session.get_modelmeta().custom_metadata_map.get(WEIGHTS_ID, "")
        self._kept, self._looked_up = kept, looked_up
        self._known: OrderedDict[bytes, F16] = OrderedDict()
        self._lock = Lock()

    def hidden_states(self, segment: F32) -> F16:
        """float16 (1500, 5, 384), read-only: all five hidden states of one segment of at most 30 s, 50 per
        second, in the prompts' precision.
        """
        digest = hashlib.sha256(np.ascontiguousarray(segment).data).digest()
        with self._lock:
            known = self._known.get(digest)
            if known is not None:
                self._known.move_to_end(digest)
        self._looked_up(known is not None)
        if known is not None:
            return known
        states = self.exact_states(segment).astype(np.float16)
        states.setflags(write=False)
        with self._lock:
            self._known[digest] = states
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        return states

    def exact_states(self, segment: F32) -> F32:
        """The same as float32, always anew."""
        outputs = self._session.run([HIDDEN_STATES.name], {LOG_MEL.name: log_mel(segment)[None]})
        return np.asarray(outputs[0][0], np.float32)

    def warm_up(self) -> None:
        self.exact_states(np.zeros(SAMPLE_RATE, np.float32))


@dataclass(frozen=True)
class Padding:
    """Context of a frame in states pairs: MuseTalk's `audio_padding_length_left` and `_right`.

    The window is 2·(left + right + 1) states, which the exported UNet fixes at 10: left + right must be 4.
    """

    left: int = 2
    right: int = 2

    def __post_init__(self) -> None:
        if min(self.left, self.right) < 0 or 2 * (self.left + self.right + 1) != STATES_PER_FRAME:
            raise InvalidParameter(
                f"audio_padding_length_left {self.left} and _right {self.right} do not fit the model.",
                f"Both must be at least 0, and their sum {STATES_PER_FRAME // 2 - 1}.",
            )


class Prompts:
    """The audio prompts of one request, made batch by batch of a sound of any length. One thread at a time.

    Segments of 30 s are encoded when a batch needs them, the next one in good time before that, but not while the first
    frames are waited for; those behind are forgotten.
    """

    def __init__(
        self,
        sound: Samples,
        fps: int,
        padding: Padding,
        encode: Callable[[F32], States],
        helper: Executor | None = None,
    ) -> None:
        """`sound`: mono, 16 kHz; `encode`: AudioEncoder.hidden_states; `helper` runs it ahead, without one `batch`
        does it.
        """
        self.fps = fps
        self._sound, self._left, self._encode, self._helper = sound, 2 * padding.left, encode, helper
        self._states = sound.length * STATES_PER_SECOND // SAMPLE_RATE
        self._segments = -(-sound.length // SEGMENT_SAMPLES)
        self._encoded: dict[int, Future[States]] = {}

    def windows(self, start: int, stop: int, out: States) -> None:
        """Into `out`, floats (stop − start, 50, 384) in C order: frame i sees ten states from floor(i·50/fps) − 2·left
        on, zeros outside.
        """
        first = np.arange(start, stop) * STATES_PER_SECOND // self.fps - self._left
        low, high = int(first[0]), int(first[-1]) + STATES_PER_FRAME
        seen = np.zeros((high - low, N_LAYERS, AUDIO_WIDTH), out.dtype)
        begin, end = max(low, 0), min(high, self._states)
        for number in range(begin // SEGMENT_STATES, -(-end // SEGMENT_STATES)):
            offset = number * SEGMENT_STATES
            here = slice(max(begin, offset), min(end, offset + SEGMENT_STATES))
            states = self._begun(number).result()
            seen[here.start - low : here.stop - low] = states[here.start - offset : here.stop - offset]
            if self._helper is not None and here.stop - offset > AHEAD and number + 1 < self._segments:
                self._begun(number + 1)
        for number in [old for old in self._encoded if old < begin // SEGMENT_STATES]:
            del self._encoded[number]
        for window, place in zip(out, (first - low).tolist(), strict=True):
            window.reshape(STATES_PER_FRAME, N_LAYERS, AUDIO_WIDTH)[...] = seen[place : place + STATES_PER_FRAME]

    def batch(self, start: int, stop: int, out: F16 | None = None) -> F16:
        """The windows as they are sent: float16 (stop − start, 50, 384), in `out` if that is given."""
        if out is None:
            out = np.empty((stop - start, FEATURES_PER_FRAME, AUDIO_WIDTH), np.float16)
        self.windows(start, stop, out)
        return out

    def _begun(self, number: int) -> "Future[States]":
        """The segment's states, which are being made from now on if they were not."""
        if number not in self._encoded:
            start = number * SEGMENT_SAMPLES
            self._encoded[number] = self._begin(self._sound.block(start, start + SEGMENT_SAMPLES)[0])
        return self._encoded[number]

    def _begin(self, samples: F32) -> "Future[States]":
        if self._helper is not None:
            return self._helper.submit(self._encode, samples)
        done: Future[States] = Future()
        done.set_result(self._encode(samples))
        return done

    def close(self) -> None:
        """What has not begun is not wanted any more."""
        for future in self._encoded.values():
            future.cancel()
