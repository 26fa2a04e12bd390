"""Text to speech with the time of every phoneme, through eSpeak NG.

Knows how to ask for an utterance and in what form it comes; nothing of mouths. The library's process is
`synthesiser.py`: the same request always gives the same samples.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
from numpy.typing import NDArray

from export.speech.synthesiser import LIBRARY
from lipserve.contract import SAMPLE_RATE

SYNTHESISER = Path(__file__).with_name("synthesiser.py")
TIMEOUT = 60.0  # seconds for one utterance
PAUSE = ""  # symbol of a pause

_thread = threading.local()


class SpeechUnavailable(Exception):
    """eSpeak NG is missing or cannot say what was asked; the message says what to do."""


@dataclass(frozen=True)
class Phone:
    """One phoneme or pause: an IPA symbol as eSpeak NG writes it, and when it sounds, in seconds."""

    symbol: str
    start: float
    end: float


@dataclass(frozen=True)
class Speech:
    """Sound and what is said in it. `samples`: float32 (n,) in [-1, 1], 16 kHz mono; phones in order, no gaps."""

    samples: NDArray[np.float32]
    phones: tuple[Phone, ...]

    @property
    def seconds(self) -> float:
        return self.samples.size / SAMPLE_RATE


def is_available() -> bool:
    """Whether the library can be loaded at all."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def speak(text: str, voice: str = "en-gb", speed: int = 150, pitch: int = 50, variant: str | None = None) -> Speech:
    """Say a text. `voice`: a language, with a variant if wanted, like en-gb or de+f3; `speed`: words a minute, 80 to
    450; `pitch`: 0 to 100; `variant`: the definition, as in eSpeak's own files, of the variant INVENTED in `voice`.
    Raises SpeechUnavailable.
    """
    how = {"voice": voice, "speed": speed, "pitch": pitch, "variant": variant, "folder": _own_folder()}
    request = json.dumps({"text": text} | how)
    command = [sys.executable, "-S", "-E", str(SYNTHESISER)]
    try:
        done = subprocess.run(command, input=request.encode(), capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as exc:
        raise SpeechUnavailable(f"eSpeak NG did not finish {text[:60]!r} within {TIMEOUT:g} s") from exc
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise SpeechUnavailable(reason or f"eSpeak NG ended with code {done.returncode}")
    head, _, data = done.stdout.partition(b"\n")
    said = json.loads(head)
    wave = np.frombuffer(data, np.int16).astype(np.float32) / np.float32(32768)
    if not wave.size or not any(symbol for symbol, _ in said["phones"]):
        raise SpeechUnavailable(f"eSpeak NG has nothing to say for {text[:60]!r}")
    sounds = [(symbol, sample / said["rate"]) for symbol, sample in said["phones"] if not is_switch(symbol)]
    phones = _intervals(sounds, wave.size / said["rate"])
    resampled = librosa.resample(wave, orig_sr=said["rate"], target_sr=SAMPLE_RATE, res_type="soxr_hq")
    return Speech(np.asarray(resampled, np.float32), phones)


def _own_folder() -> str:
    """This thread's, for eSpeak's data with an invented voice: its hundreds of links cost more than the speech."""
    if not hasattr(_thread, "folder"):
        _thread.folder = tempfile.TemporaryDirectory(prefix="lipserve-voice-")
    return str(_thread.folder.name)


def is_switch(symbol: str) -> bool:
    """Whether it says no sound but another language, like (en) before an English name in French."""
    return symbol.startswith("(")


def silence(seconds: float) -> Speech:
    """Digital silence."""
    return Speech(np.zeros(round(seconds * SAMPLE_RATE), np.float32), (Phone(PAUSE, 0.0, seconds),))


def join(parts: list[Speech]) -> Speech:
    """One after another."""
    phones: list[Phone] = []
    start = 0.0
    for part in parts:
        phones += [Phone(phone.symbol, phone.start + start, phone.end + start) for phone in part.phones]
        start += part.seconds
    return Speech(np.concatenate([part.samples for part in parts]), tuple(phones))


def _intervals(starts: list[tuple[str, float]], seconds: float) -> tuple[Phone, ...]:
    """Every phoneme lasts until the next one starts; what comes before the first is a pause."""
    marks = [(PAUSE, 0.0), *starts]
    ends = [start for _, start in marks[1:]] + [seconds]
    intervals = [Phone(symbol, start, end) for (symbol, start), end in zip(marks, ends, strict=True)]
    return tuple(phone for phone in intervals if phone.end > phone.start)
