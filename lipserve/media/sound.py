"""Sound files, decoded whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from lipserve.errors import AudioDamaged, AudioTooLong, NotAudio
from lipserve.media.source import open_source

MAX_SOUND_RATE = 48_000  # Hz; more than that nobody hears, and a file may claim any rate
PROBED_PIXELS = 2**22  # of a video whose sound is read
MAX_DAMAGED_PACKETS = 0.02  # share of a sound's packets that may fail to decode; an MP3 cut anywhere begins with one


@dataclass(frozen=True)
class Sound:
    """Decoded sound: float32 (channels, samples) in [-1, 1], one or two channels.

    `rate` in Hz is the file's own, 48 kHz at most.
    """

    samples: NDArray[np.float32]
    rate: int

    @property
    def seconds(self) -> float:
        return float(self.samples.shape[1] / self.rate)


def read_sound(path: Path, max_seconds: float) -> Sound:
    """The first audio stream of any media file; more than two channels are mixed down to stereo, peaks are clipped.

    Raises NotAudio, AudioDamaged or AudioTooLong.
    """
    hint = "Send speech as WAV, MP3, M4A, OGG or FLAC, or a video with a sound track."
    try:
        container = open_source(path, PROBED_PIXELS)
    except (av.FFmpegError, ValueError) as exc:
        raise NotAudio("The file is not a media file that can be read.", hint) from exc
    with container:
        if not container.streams.audio:
            raise NotAudio("The file has no audio stream.", hint)
        stream = container.streams.audio[0]
        if not stream.codec_context or not stream.rate or not stream.channels:
            raise NotAudio("The file's audio stream has no readable format.", hint)
        rate = min(int(stream.rate), MAX_SOUND_RATE)
        planar = _PlanarFloat("mono" if stream.channels == 1 else "stereo", rate)
        blocks: list[NDArray[Any]] = []
        samples = packets = damaged = 0
        try:
            for packet in container.demux(stream):
                packets += 1
                try:
                    decoded = packet.decode()
                except av.InvalidDataError:
                    damaged += 1
                    continue
                for frame in decoded:
                    converted = planar.convert(frame)
                    samples += sum(block.shape[1] for block in converted)
                    blocks += converted
                if samples > max_seconds * rate:
                    raise AudioTooLong(f"The audio is longer than {max_seconds:g} seconds.", "Send it in parts.")
            blocks += planar.rest()
        except (av.FFmpegError, ValueError) as exc:
            raise AudioDamaged(f"The audio cannot be decoded after {samples / rate:.2f} s.", hint) from exc
    if damaged > max(2, MAX_DAMAGED_PACKETS * packets):
        raise AudioDamaged(f"{damaged} of the audio's {packets} packets cannot be decoded.", hint)
    if not blocks:
        raise NotAudio("The audio stream is empty.", hint)
    joined = np.concatenate(blocks, axis=1, dtype=np.float32)
    blocks.clear()
    np.nan_to_num(joined, copy=False, nan=0.0)
    return Sound(np.clip(joined, -1, 1, out=joined), rate)


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
