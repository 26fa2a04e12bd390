"""From a decoded sound to speech, to a frame count, and to what AAC can hold."""

import numpy as np
import pytest
import soxr
from samples import tone

from gateway.audio import PLAYBACK_RATE, frame_count, playable, speech
from lipserve.contract import SAMPLE_RATE
from lipserve.errors import AudioTooShort
from lipserve.media import AAC_RATES, Sound


def test_speech_at_its_own_rate_is_untouched() -> None:
    samples = tone(0.5)
    found = speech(Sound(samples, SAMPLE_RATE))
    assert found.dtype == np.float32
    assert (found == samples[0]).all()


def test_speech_is_the_mean_of_the_channels() -> None:
    left, right = tone(0.5)[0], np.full(8000, 0.25, np.float32)
    assert speech(Sound(np.stack([left, right]), SAMPLE_RATE)) == pytest.approx((left + right) / 2, abs=1e-7)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000, 96000, 12345])
def test_speech_is_resampled_to_16_khz(rate: int) -> None:
    found = speech(Sound(tone(1.0, rate, 2), rate))
    assert found.shape == (SAMPLE_RATE,)
    assert found.dtype == np.float32
    assert np.abs(found - tone(1.0)[0])[200:-200].max() < 2e-3
    assert np.corrcoef(found, tone(1.0)[0])[0, 1] > 0.9999


def test_resampling_is_soxrs_high_quality() -> None:
    samples = tone(1.0, 44100)
    assert (speech(Sound(samples, 44100)) == soxr.resample(samples[0], 44100, SAMPLE_RATE, quality="HQ")).all()


def test_resampling_lets_nothing_through_that_16_khz_cannot_hold() -> None:
    t = np.arange(48000) / 48000
    found = speech(Sound(np.sin(2 * np.pi * 12_000 * t).astype(np.float32)[None], 48000))
    assert np.abs(found[1000:-1000]).max() < 1e-4


@pytest.mark.parametrize(
    ("samples", "fps", "frames"),
    [
        (16000, 25, 25),
        (15999, 25, 24),
        (16001, 25, 25),
        (640, 25, 1),
        (1279, 25, 1),
        (1280, 25, 2),
        (16000, 1, 1),
        (31999, 1, 1),
        (16000, 60, 60),
        (266, 60, 0),
        (267, 60, 1),
        (480_000, 30, 900),
        (16000 * 900, 24, 21_600),
    ],
)
def test_frames_are_those_that_are_filled(samples: int, fps: int, frames: int) -> None:
    waveform = np.zeros(samples, np.float32)
    if frames:
        assert frame_count(waveform, fps) == frames
    else:
        with pytest.raises(AudioTooShort):
            frame_count(waveform, fps)


@pytest.mark.parametrize(("samples", "said"), [(0, "0 ms"), (639, "40 ms"), (320, "20 ms")])
def test_less_than_a_frame_is_too_short(samples: int, said: str) -> None:
    with pytest.raises(AudioTooShort) as caught:
        frame_count(np.zeros(samples, np.float32), 25)
    assert caught.value.message == f"The audio lasts {said}, less than one frame at 25 fps."
    assert (caught.value.kind, caught.value.status) == ("audio_too_short", 422)


@pytest.mark.parametrize("rate", AAC_RATES)
def test_what_aac_can_hold_is_played_as_it_is(rate: int) -> None:
    sound = Sound(tone(0.1, rate, 2), rate)
    assert playable(sound) is sound


@pytest.mark.parametrize("rate", [6000, 12345, 37800, 192_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_rates_are_played_at_48_khz(rate: int, channels: int) -> None:
    found = playable(Sound(tone(1.0, rate, channels), rate))
    assert found.rate == PLAYBACK_RATE == 48_000
    assert found.samples.shape == (channels, 48_000)
    assert found.samples.dtype == np.float32
    for channel in found.samples:
        assert np.corrcoef(channel, tone(1.0, 48_000)[0])[0, 1] > 0.999


def test_channels_are_resampled_apart() -> None:
    left, right = tone(1.0, 12345)[0], np.zeros(12345, np.float32)
    found = playable(Sound(np.stack([left, right]), 12345))
    assert np.abs(found.samples[0]).max() == pytest.approx(0.5, abs=0.01)
    assert not found.samples[1].any()
