"""Sound: in memory, in a scratch file, and read from media files block by block."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import av
import numpy as np
from numpy.typing import NDArray

from lipserve.errors import AudioDamaged, AudioTooLong, NotAudio
from lipserve.media.kinds import MEDIA, stranger
from lipserve.media.source import SOUND_DECODERS, open_source

MAX_SOUND_RATE = 48_000  # Hz; more than that nobody hears, and a file may claim any rate
MIN_SOUND_RATE = 4_000  # Hz; at less nobody is understood, and a few bytes would become hours of 48 kHz
FULL_SCALE = 32768  # of 16 bit samples
PROBED_PIXELS = 2**22  # of a video whose sound is read
BLOCK = 2**15  # samples read at once, at least: packets hold a thousand, each of which would cost as much again
MAX_DAMAGED_PACKETS = 0.02  # share of a sound's packets that may fail to decode; an MP3 cut anywhere begins with one


class Samples(Protocol):
    """Sound that can be read piece by piece. `rate` in Hz; `length` in samples of one channel."""

    @property
    def rate(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def length(self) -> int: ...
    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 (channels, samples) in [-1, 1] from `start` to `stop`, or to the end of the sound."""


@dataclass(frozen=True)
class Sound:
    """Sound in memory: float32 (channels, samples) in [-1, 1], one or two channels. `rate` in Hz."""

    samples: NDArray[np.float32]
    rate: int

    @property
    def channels(self) -> int:
        return int(self.samples.shape[0])

    @property
    def length(self) -> int:
        return int(self.samples.shape[1])

    @property
    def seconds(self) -> float:
        return self.length / self.rate

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.samples[:, start:stop]


class StoredSound:
    """Sound in a file without a name, which is gone with its last user, however that ends. One thread at a time.

    Kept as 16 bit integers, or as float32 if `exact`.
    """

    def __init__(self, folder: Path, channels: int, rate: int, exact: bool = False) -> None:
        self.channels, self.rate, self.length = channels, rate, 0
        self._dtype = np.dtype(np.float32 if exact else np.int16)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()

    @property
    def seconds(self) -> float:
        return self.length / self.rate

    def append(self, samples: NDArray[np.float32]) -> None:
        """float32 (channels, n), put behind what is there; 16 bits hold [-1, 1] and clip the rest."""
        stored = samples
        if self._dtype != np.float32:
            stored = np.clip(np.round(samples * np.float32(FULL_SCALE)), -FULL_SCALE, FULL_SCALE - 1)
        self._file.seek(self.length * self._item)
        self._file.write(np.ascontiguousarray(stored.T, self._dtype).data)
        self.length += samples.shape[1]

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        """See Samples."""
        stop = min(stop, self.length)
        self._file.seek(start * self._item)
        data = self._file.read(max(0, stop - start) * self._item)
        found: NDArray[np.float32] = (
            np.frombuffer(data, self._dtype).reshape(-1, self.channels).T.astype(np.float32, copy=False)
        )
        return found if self._dtype == np.float32 else np.divide(found, FULL_SCALE, dtype=np.float32)

    def close(self) -> None:
        self._file.close()

    @property
    def _item(self) -> int:
        return self.channels * self._dtype.itemsize


class SoundReader:
    """The first audio stream of any media file; more than two channels are mixed down to stereo, peaks are clipped.

    Iterating, once, gives float32 (channels, n) in [-1, 1]; `rate`, the file's own but 48 kHz at most, and `channels`
    are known from the start. Raises NotAudio, AudioDamaged or AudioTooLong. Use as a context manager.
    """

    _HINT = "Send speech as WAV, MP3, M4A, OGG, FLAC, AAC or WebM, or a video with a sound track."

    def __init__(self, path: Path, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        if words := stranger(path, MEDIA):
            raise NotAudio(f"The file is {words}.", self._HINT)
        try:
            self._container = open_source(path, PROBED_PIXELS)
        except (av.FFmpegError, ValueError) as exc:
            raise NotAudio("The file is not a media file that can be read.", self._HINT) from exc
        try:
            self._stream = self._first_stream()
        except BaseException:
            self._container.close()
            raise
        self.rate = min(int(self._stream.rate), MAX_SOUND_RATE)
        self.channels = 1 if self._stream.channels == 1 else 2

    def _first_stream(self) -> Any:
        if not self._container.streams.audio:
            raise NotAudio("The file has no audio stream.", self._HINT)
        stream = self._container.streams.audio[0]
        if not stream.codec_context or not stream.rate or not stream.channels:
            raise NotAudio("The file's audio stream has no readable format.", self._HINT)
        if stream.rate < MIN_SOUND_RATE:
            raise NotAudio(f"The file's sound has {stream.rate} samples a second.", self._HINT)
        if (name := stream.codec_context.name) not in SOUND_DECODERS.split(","):
            raise NotAudio(f"The file's sound is coded as {name}, which is not taken.", self._HINT)
        return stream

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        held: list[NDArray[np.float32]] = []
        count = 0
        for block in self._decoded():
            held.append(block)
            count += block.shape[1]
            if count >= BLOCK:
                yield _clean(np.concatenate(held, axis=1))
                held, count = [], 0
        if held:
            yield _clean(np.concatenate(held, axis=1))

    def _decoded(self) -> Iterator[NDArray[np.float32]]:
        """Packet by packet, as they are. Each may claim a rate of its own, so they are counted before conversion."""
        samples = packets = damaged = 0
        announced = 0.0  # samples at our rate
        planar = _PlanarFloat("mono" if self.channels == 1 else "stereo", self.rate)
        try:
            for packet in self._container.demux(self._stream):
                packets += 1
                try:
                    decoded = packet.decode()
                except av.InvalidDataError:
                    damaged += 1
                    continue
                for frame in decoded:
                    if frame.sample_rate < MIN_SOUND_RATE:
                        raise AudioDamaged(f"A part of the audio has {frame.sample_rate} samples a second.", self._HINT)
                    announced += frame.samples * self.rate / frame.sample_rate
                    if announced > self._max_seconds * self.rate + 1:
                        raise AudioTooLong(
                            f"The audio is longer than {self._max_seconds:g} seconds.", "Send it in parts."
                        )
                    for block in planar.convert(frame):
                        samples += block.shape[1]
                        yield block
            for block in planar.rest():
                samples += block.shape[1]
                yield block
        except (av.FFmpegError, ValueError) as exc:
            raise AudioDamaged(f"The audio cannot be decoded after {samples / self.rate:.2f} s.", self._HINT) from exc
        if damaged > max(2, MAX_DAMAGED_PACKETS * packets):
            raise AudioDamaged(f"{damaged} of the audio's {packets} packets cannot be decoded.", self._HINT)
        if not samples:
            raise NotAudio("The audio stream is empty.", self._HINT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


def read_sound(path: Path, max_seconds: float) -> Sound:
    """A whole file in memory. Raises as SoundReader does."""
    with SoundReader(path, max_seconds) as reader:
        return Sound(np.concatenate(list(reader), axis=1), reader.rate)


def _clean(block: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(np.nan_to_num(block, nan=0.0), -1, 1)


class _PlanarFloat:
    """Turns decoded frames into float32 (channels, samples) of one layout and rate, though theirs change midway."""

    def __init__(self, layout: str, rate: int) -> None:
        self._layout, self._rate = layout, rate
        self._source: tuple[str, str, int] | None = None
        self._resampler: Any = None

    def convert(self, frame: Any) -> list[NDArray[np.float32]]:
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        before = self.rest() if source != self._source else []
        if self._resampler is None:
            self._source = source
            self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate)
        return before + [block.to_ndarray() for block in self._resampler.resample(frame)]

    def rest(self) -> list[NDArray[np.float32]]:
        """What is still inside."""
        resampler, self._resampler = self._resampler, None
        return [block.to_ndarray() for block in resampler.resample(None)] if resampler is not None else []
