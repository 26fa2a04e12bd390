"""From a sound file to speech, to a frame count, and to what AAC can hold."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import soxr
from samples import tone, write_sound

from gateway.audio import PLAYBACK_RATE, frame_count, recorded, speech
from lipserve.contract import SAMPLE_RATE
from lipserve.errors import AudioTooLong, AudioTooShort, Cancelled
from lipserve.media import AAC_RATES, Sound, SoundReader, StoredSound, read_sound


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
    if frames:
        assert frame_count(samples, fps) == frames
    else:
        with pytest.raises(AudioTooShort):
            frame_count(samples, fps)


@pytest.mark.parametrize(("samples", "said"), [(0, "0 ms"), (639, "40 ms"), (320, "20 ms")])
def test_less_than_a_frame_is_too_short(samples: int, said: str) -> None:
    with pytest.raises(AudioTooShort) as caught:
        frame_count(samples, 25)
    assert caught.value.message == f"The audio lasts {said}, less than one frame at 25 fps."
    assert (caught.value.kind, caught.value.status) == ("audio_too_short", 422)


# -- recordings -------------------------------------------------------------------------------------------------------


def record(tmp_path: Path, samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, int]:
    """What is heard and what is played of a WAV, and the rate of that."""
    with recorded(write_sound(tmp_path / "a.wav", samples, rate), 60, tmp_path) as found:
        assert (found.heard.rate, found.heard.channels) == (SAMPLE_RATE, 1)
        heard, played = (part.block(0, part.length) for part in (found.heard, found.played))
        return heard[0], played, found.played.rate


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 12345])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_heard_is_the_whole_sounds_speech(tmp_path: Path, rate: int, channels: int) -> None:
    samples = tone(1.7, rate, channels)
    heard, _, _ = record(tmp_path, samples, rate)
    whole = read_sound(tmp_path / "a.wav", 60)
    assert heard.size == -(-whole.length * SAMPLE_RATE // rate)
    assert (heard == speech(whole)).all()


@pytest.mark.parametrize("rate", AAC_RATES[2:])
def test_what_aac_can_hold_is_played_as_it_is(tmp_path: Path, rate: int) -> None:
    _, played, found = record(tmp_path, tone(0.1, rate, 2), rate)
    whole = read_sound(tmp_path / "a.wav", 60)
    assert found == whole.rate == min(rate, 48_000)
    assert np.abs(played - whole.samples).max() <= 0.5 / 32768


@pytest.mark.parametrize("rate", [6000, 12345, 37800])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_rates_are_played_at_48_khz(tmp_path: Path, rate: int, channels: int) -> None:
    _, played, found = record(tmp_path, tone(1.0, rate, channels), rate)
    assert found == PLAYBACK_RATE == 48_000
    assert played.shape == (channels, 48_000)
    assert played.dtype == np.float32
    for channel in played:
        assert np.corrcoef(channel, tone(1.0, 48_000)[0])[0, 1] > 0.999


def test_channels_are_resampled_apart(tmp_path: Path) -> None:
    left, right = tone(1.0, 12345)[0], np.zeros(12345, np.float32)
    _, played, _ = record(tmp_path, np.stack([left, right]), 12345)
    assert np.abs(played[0]).max() == pytest.approx(0.5, abs=0.01)
    assert not played[1].any()


def test_a_recording_leaves_nothing_behind(tmp_path: Path) -> None:
    file, folder = write_sound(tmp_path / "a.wav", tone(1.0), SAMPLE_RATE), tmp_path / "scratch"
    folder.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with recorded(file, 60, folder) as found:
        assert list(folder.iterdir()) == []  # so a killed process leaves nothing either
        assert found.heard.length == SAMPLE_RATE
    with pytest.raises(AudioTooLong), recorded(file, 0.5, folder):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("after", [0, 3])
def test_decoding_ends_when_it_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Within a block, and nothing stays open."""
    file = write_sound(tmp_path / "a.wav", tone(30.0), SAMPLE_RATE)
    cancelled, blocks, iterate = Event(), 0, SoundReader.__iter__

    def counted(reader: SoundReader) -> Iterator[np.ndarray]:
        nonlocal blocks
        for block in iterate(reader):
            if blocks == after:
                cancelled.set()
            blocks += 1
            yield block

    monkeypatch.setattr(SoundReader, "__iter__", counted)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(Cancelled), recorded(file, 60, tmp_path, cancelled=cancelled):
        pytest.fail("recorded to the end")
    assert blocks == after + 1
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_not_cancelled_is_recorded(tmp_path: Path) -> None:
    file = write_sound(tmp_path / "a.wav", tone(1.0), SAMPLE_RATE)
    with recorded(file, 60, tmp_path, cancelled=Event()) as found:
        assert found.heard.length == SAMPLE_RATE


# -- scratch files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("exact", [True, False])
def test_a_stored_sound_is_read_back_anywhere(tmp_path: Path, channels: int, exact: bool) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (channels, 1000)).astype(np.float32)
    with closing(StoredSound(tmp_path, channels, 16000, exact)) as stored:
        for start in range(0, 1000, 300):
            stored.append(samples[:, start : start + 300])
        assert (stored.length, stored.seconds) == (1000, 1000 / 16000)
        for start, stop in ((0, 1000), (250, 650), (990, 2000), (1000, 1100), (0, 0)):
            found = stored.block(start, stop)
            assert found.shape == (channels, max(0, min(stop, 1000) - start))
            assert found.dtype == np.float32
            assert np.abs(found - samples[:, start:stop]).max(initial=0) <= (0 if exact else 0.5 / 32768 + 1e-9)


def test_sixteen_bits_clip(tmp_path: Path) -> None:
    with closing(StoredSound(tmp_path, 1, 16000)) as stored:
        stored.append(np.array([[-3.0, -1.0, 1.0, 3.0]], np.float32))
        assert stored.block(0, 4)[0].tolist() == [-1, -1, 32767 / 32768, 32767 / 32768]
