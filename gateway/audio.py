"""From a sound file to what the networks hear and what the video plays, block by block."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import soxr
from numpy.typing import NDArray

from lipserve.contract import SAMPLE_RATE
from lipserve.errors import AudioTooShort, Cancelled
from lipserve.media import AAC_RATES, Sound, SoundReader, StoredSound

F32 = NDArray[np.float32]

PLAYBACK_RATE = 48_000  # Hz, for sounds whose own rate AAC does not have


@dataclass(frozen=True)
class Recording:
    """One file's sound. `heard`: mono, 16 kHz, what the networks get; `played`: what the video gets."""

    heard: StoredSound
    played: StoredSound


@contextmanager
def recorded(
    path: Path, max_seconds: float, folder: Path, pad_seconds: float = 0.0, cancelled: Event | None = None
) -> Iterator[Recording]:
    """The sound of a media file, decoded into files without a name in `folder`: any length in constant memory.

    `pad_seconds`: of silence after it, which `max_seconds` does not count.

    Raises NotAudio, AudioDamaged or AudioTooLong, and Cancelled within a block of `cancelled` being set.
    """
    with ExitStack() as stack:
        with SoundReader(path, max_seconds) as reader:
            heard = stack.enter_context(closing(StoredSound(folder, 1, SAMPLE_RATE, exact=True)))
            rate, channels = playback_rate(reader.rate), reader.channels
            played = stack.enter_context(closing(StoredSound(folder, channels, rate)))
            to_heard, to_played = Resampler(reader.rate, SAMPLE_RATE, 1), Resampler(reader.rate, rate, channels)
            for block in reader:
                if cancelled is not None and cancelled.is_set():
                    raise Cancelled("The request was cancelled.")
                heard.append(to_heard.convert(block.mean(axis=0, keepdims=True)))
                played.append(to_played.convert(block))
            heard.append(to_heard.rest())
            played.append(to_played.rest())
        for sound in (heard, played) if pad_seconds else ():
            sound.append(np.zeros((sound.channels, round(pad_seconds * sound.rate)), np.float32))
        yield Recording(heard, played)


def speech(sound: Sound) -> F32:
    """float32 (samples,) mono at 16 kHz: the channels' mean, resampled with soxr HQ, as `librosa.load` does."""
    resampler = Resampler(sound.rate, SAMPLE_RATE, 1)
    parts = [resampler.convert(sound.samples.mean(axis=0, keepdims=True)), resampler.rest()]
    joined: F32 = np.concatenate(parts, axis=1)[0]
    return joined


def frame_count(samples: int, fps: int) -> int:
    """Video frames that so many 16 kHz samples fill. Raises AudioTooShort for less than one."""
    count = samples * fps // SAMPLE_RATE
    if count < 1:
        raise AudioTooShort(
            f"The audio lasts {samples / SAMPLE_RATE * 1000:.0f} ms, less than one frame at {fps} fps.",
            "Send at least a tenth of a second.",
        )
    return count


def playback_rate(rate: int) -> int:
    """The sound's own rate if AAC has it."""
    return rate if rate in AAC_RATES else PLAYBACK_RATE


class Resampler:
    """Sound at another rate, block by block: soxr HQ, the same samples as at once. Blocks are float32 (channels, n)."""

    def __init__(self, rate: int, new_rate: int, channels: int) -> None:
        self._rates, self._channels = (rate, new_rate), channels
        self._stream = None
        if rate != new_rate:
            self._stream = soxr.ResampleStream(rate, new_rate, channels, dtype="float32", quality="HQ")
        self._taken = self._given = 0  # samples

    def convert(self, block: F32) -> F32:
        """What can be said now."""
        if self._stream is None:
            return block
        self._taken += block.shape[1]
        made = self._resampled(block, last=False)
        self._given += made.shape[1]
        return made

    def rest(self) -> F32:
        """What is still inside; in all, each sample begun counts, as librosa has it."""
        if self._stream is None:
            return np.zeros((self._channels, 0), np.float32)
        made = self._resampled(np.zeros((self._channels, 0), np.float32), last=True)
        wanted = -(-self._taken * self._rates[1] // self._rates[0]) - self._given
        padding = max(0, wanted - made.shape[1])
        return np.concatenate((made[:, :wanted], np.zeros((self._channels, padding), np.float32)), axis=1)

    def _resampled(self, block: F32, last: bool) -> F32:
        assert self._stream is not None
        made = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last)
        columns: F32 = np.asarray(made, np.float32).reshape(-1, self._channels)
        return np.ascontiguousarray(columns.T)
