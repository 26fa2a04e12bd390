"""From a decoded sound to what the networks hear and what the video plays. Knows arrays, not files."""

import librosa
import numpy as np
from numpy.typing import NDArray

from lipserve.contract import SAMPLE_RATE
from lipserve.errors import AudioTooShort
from lipserve.media import AAC_RATES, Sound

PLAYBACK_RATE = 48_000  # Hz, for sounds whose own rate AAC does not have


def speech(sound: Sound) -> NDArray[np.float32]:
    """float32 (samples,) mono at 16 kHz: the channels' mean, resampled with soxr HQ, as `librosa.load` does."""
    mono = sound.samples.mean(axis=0)
    return _resample(mono, sound.rate, SAMPLE_RATE)


def frame_count(waveform: NDArray[np.float32], fps: int) -> int:
    """Video frames that 16 kHz samples fill. Raises AudioTooShort for less than one."""
    count = waveform.size * fps // SAMPLE_RATE
    if count < 1:
        raise AudioTooShort(
            f"The audio lasts {waveform.size / SAMPLE_RATE * 1000:.0f} ms, less than one frame at {fps} fps.",
            "Send at least a tenth of a second.",
        )
    return int(count)


def playable(sound: Sound) -> Sound:
    """The sound at a rate that AAC has."""
    if sound.rate in AAC_RATES:
        return sound
    return Sound(_resample(sound.samples, sound.rate, PLAYBACK_RATE), PLAYBACK_RATE)


def _resample(samples: NDArray[np.float32], rate: int, new_rate: int) -> NDArray[np.float32]:
    if rate == new_rate:
        return samples
    resampled = librosa.resample(samples, orig_sr=rate, target_sr=new_rate, res_type="soxr_hq")
    return np.asarray(resampled, np.float32)
