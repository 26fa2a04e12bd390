"""From 16 kHz speech to the UNet's audio prompts, on the CPU: log-mel, the audio encoder, a window per video frame.

The numbers are Whisper's (`whisper/audio.py`) and MuseTalk's (`musetalk/utils/audio_processor.py`), but for the left
context: theirs shrinks and shifts with the frame rate, here a frame sees the same 4 states before it at every rate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
    STATES_PER_FRAME,
    STATES_PER_SECOND,
    WEIGHTS_ID,
)
from lipserve.errors import InvalidParameter, ModelsMissing

F32 = NDArray[np.float32]


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
    """Whisper's encoder in ONNX Runtime; loads once, runs from any thread."""

    def __init__(self, file: Path, threads: int) -> None:
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

    def hidden_states(self, segment: F32) -> F32:
        """float32 (1500, 5, 384): all five hidden states of one segment of at most 30 s, 50 per second."""
        outputs = self._session.run([HIDDEN_STATES.name], {LOG_MEL.name: log_mel(segment)[None]})
        return np.asarray(outputs[0][0], np.float32)

    def warm_up(self) -> None:
        self.hidden_states(np.zeros(SAMPLE_RATE, np.float32))


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


@dataclass(frozen=True)
class Prompts:
    """The audio prompts of a whole request, made batch by batch. `states`: float32 (t, 5, 384), padded at both ends."""

    states: F32
    fps: int

    def batch(self, start: int, stop: int) -> NDArray[np.float16]:
        """float16 (stop − start, 50, 384): frame i sees states floor(i·50/fps) … +10 of the padded sequence."""
        first = np.arange(start, stop) * STATES_PER_SECOND // self.fps
        windows = self.states[first[:, None] + np.arange(STATES_PER_FRAME)]
        return np.asarray(windows.reshape(-1, FEATURES_PER_FRAME, AUDIO_WIDTH), np.float16)


def prompts(
    waveform: F32, fps: int, padding: Padding, encode: Callable[[F32], F32], between: Callable[[], None] = lambda: None
) -> Prompts:
    """Prompts of 16 kHz mono speech of any length; `encode` is AudioEncoder.hidden_states, 30 s at a time.

    `between` is called before each segment; what it raises ends the work.
    """
    segments = []
    for start in range(0, waveform.size, SEGMENT_SAMPLES):
        between()
        segments.append(encode(waveform[start : start + SEGMENT_SAMPLES]))
    states = np.concatenate(segments)[: waveform.size * STATES_PER_SECOND // SAMPLE_RATE]
    before = np.zeros((2 * padding.left, N_LAYERS, AUDIO_WIDTH), np.float32)
    after = np.zeros((STATES_PER_FRAME, N_LAYERS, AUDIO_WIDTH), np.float32)
    return Prompts(np.concatenate([before, states, after]), fps)
