"""Audio features: the log-mel against a plain DFT, and which states each video frame sees."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from samples import SPEECH, tone

from gateway.audio import frame_count, speech
from gateway.features import AudioEncoder, Padding, Prompts, log_mel
from lipserve.contract import (
    AUDIO_WIDTH,
    FEATURES_PER_FRAME,
    N_LAYERS,
    SAMPLE_RATE,
    SEGMENT_SAMPLES,
    SEGMENT_STATES,
)
from lipserve.errors import InvalidParameter, ModelsMissing
from lipserve.media import Sound, read_sound

# -- log-mel ----------------------------------------------------------------------------------------------------------


def slaney(hertz: np.ndarray) -> np.ndarray:
    """Slaney's mel: linear to 1 kHz, 200/3 Hz a mel, then a factor of 6.4 every 27."""
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4))


def mel_filters() -> np.ndarray:
    """float64 (80, 201): triangles between 82 points, equal steps in mel, each of the same area."""
    steps = np.linspace(0, slaney(np.array(8000.0)), 82)
    fine = np.linspace(0, 8000, 800_001)
    points = np.interp(steps, slaney(fine), fine)
    bins = np.arange(201) * 40.0  # Hz
    rising = (bins - points[:-2, None]) / np.diff(points)[:-1, None]
    falling = (points[2:, None] - bins) / np.diff(points)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (points[2:] - points[:-2])[:, None]


def whisper_log_mel(segment: np.ndarray) -> np.ndarray:
    """float64 (80, 3000): Whisper's formula, every sum written out."""
    signal = np.zeros(480_000)
    signal[: segment.size] = segment
    padded = np.concatenate([signal[200:0:-1], signal, signal[-2:-202:-1]])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    starts = 160 * np.arange(3000)
    frames = padded[starts[:, None] + np.arange(400)] * window
    angle = 2 * np.pi * np.outer(np.arange(400), np.arange(201)) / 400
    power = (frames @ np.cos(angle)) ** 2 + (frames @ np.sin(angle)) ** 2
    log = np.log10(np.maximum(mel_filters() @ power.T, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize(
    "segment",
    [
        speech(read_sound(SPEECH, 60)),
        tone(1.0)[0],
        noise(SEGMENT_SAMPLES),
        noise(SAMPLE_RATE + 1),
        noise(1),
        noise(399),
        1e-5 * noise(20_000),
    ],
    ids=["speech", "tone", "30 s", "odd", "one sample", "less than a window", "very quiet"],
)
def test_log_mel_is_whispers(segment: np.ndarray) -> None:
    found = log_mel(segment)
    assert found.shape == (80, 3000)
    assert found.dtype == np.float32
    assert np.abs(found - whisper_log_mel(segment)).max() <= 1e-4


def test_silence_is_the_floor() -> None:
    for samples in (0, 16000, SEGMENT_SAMPLES):
        assert log_mel(np.zeros(samples, np.float32)) == pytest.approx(-1.5, abs=1e-6)  # (log10(1e-10) + 4) / 4


def test_the_floor_is_eight_below_the_maximum() -> None:
    found = log_mel(tone(1.0)[0])
    assert found.max() - found.min() == pytest.approx(2.0, abs=1e-6)


# -- windows ----------------------------------------------------------------------------------------------------------


class Numbered:
    """In the audio encoder's place, for `sound`: state s of all segments holds the number s + 1; 0 is padding."""

    def __init__(self) -> None:
        self.segments: list[int] = []  # samples

    def __call__(self, segment: np.ndarray) -> np.ndarray:
        first = SEGMENT_STATES * int(segment[0])
        self.segments.append(segment.size)
        states = np.arange(first + 1, first + SEGMENT_STATES + 1, dtype=np.float32)
        return np.broadcast_to(states[:, None, None], (SEGMENT_STATES, N_LAYERS, AUDIO_WIDTH))


def sound(samples: int) -> Sound:
    """Its samples are the numbers of their segments."""
    return Sound((np.arange(samples) // SEGMENT_SAMPLES).astype(np.float32)[None], SAMPLE_RATE)


def made(seconds: float, fps: int, padding: Padding | None = None) -> Prompts:
    return Prompts(sound(round(seconds * SAMPLE_RATE)), fps, padding or Padding(), Numbered())


def seen(heard: Prompts, frame: int) -> list[int]:
    """Numbers of the ten states a frame sees, counted from 0; −1 is padding."""
    batch = heard.batch(frame, frame + 1)
    assert batch.shape == (1, FEATURES_PER_FRAME, AUDIO_WIDTH)
    assert batch.dtype == np.float16
    values = batch.reshape(10, N_LAYERS, AUDIO_WIDTH)
    assert (values == values[:, :1, :1]).all()
    return [int(value) - 1 for value in values[:, 0, 0]]


def run(first: int, stop: int) -> list[int]:
    """States first … stop − 1 of a sound with 100 of them."""
    return [state if 0 <= state < 100 else -1 for state in range(first, stop)]


@pytest.mark.parametrize(
    ("fps", "frame", "own"),
    [
        # A frame at i/fps seconds begins in state floor(50·i/fps); it sees 4 before it and 6 from there.
        (25, 0, 0),
        (25, 1, 2),
        (25, 2, 4),
        (25, 10, 20),
        (25, 49, 98),
        (30, 0, 0),
        (30, 1, 1),
        (30, 2, 3),
        (30, 3, 5),
        (30, 59, 98),
        (24, 0, 0),
        (24, 1, 2),
        (24, 12, 25),
        (24, 13, 27),
        (24, 47, 97),
        (50, 0, 0),
        (50, 7, 7),
        (50, 99, 99),
        (60, 0, 0),
        (60, 1, 0),
        (60, 2, 1),
        (60, 5, 4),
        (60, 6, 5),
        (60, 119, 99),
        (1, 0, 0),
        (1, 1, 50),
    ],
)
def test_which_states_a_frame_sees(fps: int, frame: int, own: int) -> None:
    assert seen(made(2.0, fps), frame) == run(own - 4, own + 6)


@pytest.mark.parametrize(("left", "right"), [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0)])
def test_padding_moves_the_window(left: int, right: int) -> None:
    heard = made(2.0, 25, Padding(left, right))
    for frame in (0, 5, 49):
        assert seen(heard, frame) == run(2 * frame - 2 * left, 2 * frame + 2 * right + 2)


@pytest.mark.parametrize(("left", "right"), [(3, 3), (0, 0), (-1, 5), (5, -1), (2, 3)])
def test_padding_that_does_not_fit_the_model(left: int, right: int) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Padding(left, right)
    assert f"_left {left} and _right {right}" in caught.value.message
    assert "sum 4" in caught.value.hint


def test_states_are_state_major() -> None:
    """Prompt token 5·s + l is layer l of the window's state s."""

    def encode(segment: np.ndarray) -> np.ndarray:
        state, layer = np.meshgrid(np.arange(SEGMENT_STATES), np.arange(N_LAYERS), indexing="ij")
        return np.repeat((10 * state + layer)[:, :, None], AUDIO_WIDTH, axis=2).astype(np.float32)

    (tokens,) = Prompts(sound(16000), 25, Padding(), encode).batch(4, 5)  # states 4 … 13
    assert tokens[:, 0].tolist() == [10 * state + layer for state in range(4, 14) for layer in range(5)]


@pytest.mark.parametrize("fps", [1, 24, 25, 30, 50, 60])
@pytest.mark.parametrize("samples", [16000, 16001, 15999, 479_999, 480_000, 480_001, 500_123, 12_345])
def test_every_frame_of_every_length_has_its_window(fps: int, samples: int) -> None:
    frames = samples * fps // SAMPLE_RATE
    if frames:
        assert frame_count(samples, fps) == frames
        states, last = samples * 50 // 16000, (frames - 1) * 50 // fps
        expected = range(last - 4, last + 6)
        found = seen(Prompts(sound(samples), fps, Padding(), Numbered()), frames - 1)
        assert found == [state if 0 <= state < states else -1 for state in expected]


def test_a_batch_is_its_frames_one_after_another() -> None:
    heard = made(2.0, 30)
    batch = heard.batch(7, 19)
    assert batch.shape == (12, FEATURES_PER_FRAME, AUDIO_WIDTH)
    for offset in range(12):
        assert (batch[offset] == heard.batch(7 + offset, 8 + offset)[0]).all()


# -- segments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "segments"),
    [
        (16000, [16000]),
        (SEGMENT_SAMPLES, [SEGMENT_SAMPLES]),
        (SEGMENT_SAMPLES + 1, [SEGMENT_SAMPLES]),  # the one is no state
        (SEGMENT_SAMPLES + 320, [SEGMENT_SAMPLES, 320]),
        (2 * SEGMENT_SAMPLES, [SEGMENT_SAMPLES] * 2),
        (2 * SEGMENT_SAMPLES + 8000, [SEGMENT_SAMPLES] * 2 + [8000]),
    ],
)
def test_a_sound_is_encoded_thirty_seconds_at_a_time(samples: int, segments: list[int]) -> None:
    encode = Numbered()
    heard = Prompts(sound(samples), 25, Padding(), encode)
    for start in range(0, samples * 25 // SAMPLE_RATE, 8):
        heard.batch(start, start + 8)
    assert encode.segments == segments


def test_segments_are_the_sounds_own_samples() -> None:
    waveform, heard = np.arange(SEGMENT_SAMPLES + 320, dtype=np.float32), []

    def encode(segment: np.ndarray) -> np.ndarray:
        heard.append(segment)
        return np.zeros((SEGMENT_STATES, N_LAYERS, AUDIO_WIDTH), np.float32)

    told = Prompts(Sound(waveform[None], SAMPLE_RATE), 25, Padding(), encode)
    told.batch(0, 750)
    assert (np.concatenate(heard) == waveform).all()


def test_two_segments_are_joined_without_a_seam() -> None:
    heard = Prompts(sound(SEGMENT_SAMPLES + 8000), 25, Padding(), Numbered())  # 30.5 s: 1525 states
    for frame in range(740, 762):
        expected = range(2 * frame - 4, 2 * frame + 6)
        assert seen(heard, frame) == [state if state < 1525 else -1 for state in expected]


def test_a_partial_state_is_no_state() -> None:
    for samples, count in ((320, 1), (639, 1), (640, 2)):
        assert seen(Prompts(sound(samples), 60, Padding(), Numbered()), 0)[4:7] == [*range(count), *[-1] * (3 - count)]


def test_segments_behind_are_forgotten_and_the_next_is_begun_meanwhile() -> None:
    encode = Numbered()
    with ThreadPoolExecutor(1) as helper:
        heard = Prompts(sound(5 * SEGMENT_SAMPLES), 25, Padding(), encode, helper)
        for start in range(0, 184, 8):
            heard.batch(start, start + 8)
        helper.submit(lambda: None).result()
        assert len(encode.segments) == 1  # nothing competes with what the first frames wait for
        heard.batch(184, 192)
        helper.submit(lambda: None).result()
        assert len(encode.segments) == 2
        for start in range(192, 5 * 750, 8):
            heard.batch(start, min(start + 8, 5 * 750))
            assert len(heard._encoded) <= 3
        assert len(encode.segments) == 5


def test_nothing_waits_for_a_long_sound_before_the_first_batch() -> None:
    """With a helper that never gets to the second segment, the first one's frames are there."""
    encode, stuck = Numbered(), Event()
    with ThreadPoolExecutor(1) as helper:

        def slow(segment: np.ndarray) -> np.ndarray:
            if encode.segments:
                assert stuck.wait(30)
            return encode(segment)

        heard = Prompts(sound(20 * SEGMENT_SAMPLES), 25, Padding(), slow, helper)
        assert heard.batch(0, 700).shape[0] == 700
        heard.close()
        stuck.set()
    assert len(encode.segments) <= 2  # of what was not wanted any more, only what had begun


# -- the encoder ------------------------------------------------------------------------------------------------------


def test_a_missing_encoder_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ModelsMissing, match=r"audio_encoder\.onnx") as caught:
        AudioEncoder(tmp_path / "audio_encoder.onnx", 1)
    assert "git checkout models/demo" in caught.value.hint


def test_the_encoder_gives_all_states_and_hears_when_the_sound_is(exported: Path) -> None:
    encoder = AudioEncoder(exported / "models/demo/audio_encoder.onnx", 2)
    assert encoder.weights_id
    found = encoder.hidden_states(np.zeros(16000, np.float32))
    assert found.shape == (SEGMENT_STATES, N_LAYERS, AUDIO_WIDTH)
    assert found.dtype == np.float16
    late = np.zeros(10 * SAMPLE_RATE, np.float32)
    late[5 * SAMPLE_RATE : 6 * SAMPLE_RATE] = tone(1.0)[0]
    change = np.abs(encoder.hidden_states(late) - encoder.hidden_states(np.zeros_like(late)))[:, 0].mean(
        axis=1, dtype=np.float32
    )
    assert 250 <= int(change.argmax()) < 300  # 50 states a second: the first layer changes where the sound is


def test_the_same_segment_is_encoded_once(exported: Path) -> None:
    known: list[bool] = []
    encoder = AudioEncoder(exported / "models/demo/audio_encoder.onnx", 2, 2, known.append)
    one, two, three = (tone(seconds)[0] for seconds in (1.0, 2.0, 3.0))
    first = encoder.hidden_states(one)
    assert encoder.hidden_states(one.copy()) is first
    encoder.hidden_states(two)
    encoder.hidden_states(one)
    encoder.hidden_states(three)  # the least recently used of three goes: two
    assert encoder.hidden_states(one) is first
    encoder.hidden_states(two)
    assert known == [False, True, False, True, False, True, False]
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
