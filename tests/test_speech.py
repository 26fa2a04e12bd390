"""Speech with a known mouth: rules that hold exactly, timing against the sound, and what augmentation leaves alone."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from export.portrait.controls import REST_MOUTH
from export.speech import augment, espeak, texts, voices
from export.speech.coarticulation import (
    COLUMN,
    CONTROLS,
    REST_ROW,
    classes_at,
    closures,
    frame_times,
    mouth_at,
    mouth_track,
    mouths,
    opening,
)
from export.speech.espeak import Phone, Speech, SpeechUnavailable, join, silence, speak
from export.speech.visemes import CLASS_OF, NAMES, VISEMES, gestures
from gateway.features import log_mel
from lipserve.contract import SAMPLE_RATE

needs_espeak = pytest.mark.skipif(not espeak.is_available(), reason="needs libespeak-ng: apt-get install espeak-ng")
LIPS = "Papa bought my five maps, please. Then we saw the moon."


def said(*symbols: str, length: float = 0.12, around: float = 0.4) -> Speech:
    """Phonemes of equal length and loudness between two pauses."""
    marks = [("", 0.0, around)]
    for symbol in symbols:
        marks.append((symbol, marks[-1][2], marks[-1][2] + length))
    marks.append(("", marks[-1][2], marks[-1][2] + around))
    samples = np.zeros(round(marks[-1][2] * SAMPLE_RATE), np.float32)
    samples[round(around * SAMPLE_RATE) : round(marks[-1][1] * SAMPLE_RATE)] = 0.3
    return Speech(samples, tuple(Phone(*mark) for mark in marks))


# -- rules of the mouth, without a synthesiser ------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["p", "b", "m"])
@pytest.mark.parametrize("length", [0.04, 0.06, 0.12])
def test_lips_close_completely_on_p_b_m(letter: str, length: float) -> None:
    speech = said("a", letter, "a", length=length)
    start, end = closures(speech)[0]
    inside = opening(mouth_at(speech, np.linspace(start, end, 20)))
    assert inside.max() < 1e-3  # the edges fall between steps of 5 ms
    frames = opening(mouth_track(speech, 25))
    times = frame_times(len(frames), 25)
    assert ((times >= start) & (times <= end)).any()  # whatever the phase, a frame falls into it
    assert frames[(times >= start) & (times <= end)].max() < 1e-3


def test_a_vowel_between_closures_opens() -> None:
    speech = said("p", "a", "p", length=0.2)
    assert opening(mouth_at(speech, np.array([0.7])))[0] > 0.45


def test_a_loud_vowel_opens_wider_whatever_the_recording_level() -> None:
    speech, times = said("a", "p", "a", length=0.3), np.array([0.55, 1.15])
    quiet = speech.samples.copy()
    quiet[round(0.9 * SAMPLE_RATE) :] *= 0.1  # 20 dB: where the effort ends
    before = opening(mouth_at(speech, times))
    after = opening(mouth_at(Speech(quiet, speech.phones), times))
    assert after[0] == pytest.approx(before[0], rel=0.05) and after[1] < 0.5 * before[1]
    lower = Speech(quiet * np.float32(0.03), speech.phones)
    np.testing.assert_allclose(opening(mouth_at(lower, times)), after, rtol=1e-3)


@pytest.mark.parametrize("letter", ["f", "v"])
def test_f_and_v_bring_the_lower_lip_to_the_teeth(letter: str) -> None:
    speech = said("a", letter, "a")
    row = mouth_at(speech, np.array([0.58]))[0]
    assert row[COLUMN["tuck"]] > 0.99
    assert opening(row[None])[0] < 0.15
    assert row[COLUMN["teeth"]] > 0.75


def test_silence_is_the_mouth_at_rest() -> None:
    track = mouth_track(silence(1.0))
    assert np.array_equal(track, np.broadcast_to(REST_ROW.astype(np.float32), (25, len(CONTROLS))))
    assert mouths(track)[0] == REST_MOUTH


def test_long_pauses_are_closed_and_still() -> None:
    speech = join([said("a", "t", "a"), silence(0.6), said("o", "l", "o")])
    middle = mouth_at(speech, np.linspace(1.0, 1.5, 30))
    assert np.array_equal(middle, np.broadcast_to(middle[0], middle.shape))
    assert opening(middle).max() == 0


def test_the_mouth_moves_before_the_sound_and_settles_after() -> None:
    speech = said("a", around=0.5, length=0.3)
    gaps = opening(mouth_at(speech, np.array([0.30, 0.47, 0.65, 0.85, 1.0])))
    assert gaps[0] == 0 and gaps[4] == 0
    assert 0 < gaps[1] < gaps[2] and 0 < gaps[3] < gaps[2]


def test_vowels_differ_as_mouths_do() -> None:
    def at_vowel(symbol: str) -> np.ndarray:
        return mouth_at(said(symbol, length=0.3), np.array([0.55]))[0]

    a, i, u = at_vowel("ɑː"), at_vowel("iː"), at_vowel("uː")
    assert opening(a[None])[0] > 2 * max(opening(i[None])[0], opening(u[None])[0])
    assert i[COLUMN["width"]] > 0.4 > a[COLUMN["width"]]
    assert u[COLUMN["round"]] > 0.4 and abs(i[COLUMN["round"]]) < 0.05


def test_consonants_take_the_shape_of_their_vowels() -> None:
    spread, rounded = said("i", "t", "i"), said("u", "t", "u")
    t = np.array([0.55])
    assert mouth_at(spread, t)[0, COLUMN["width"]] > 0.25
    assert mouth_at(rounded, t)[0, COLUMN["round"]] > 0.25


def test_controls_stay_in_their_ranges() -> None:
    track = mouth_track(said(*"pamifutoʃevblrkgæɔy", length=0.07))
    assert track.min() >= -1e-6 and track.max() <= 1 + 1e-6
    assert track[:, COLUMN["jaw"]].max() < 0.46  # the chin stays in MuseTalk's box


def test_diphthongs_are_two_visemes_and_marks_are_none() -> None:
    parts = gestures((Phone("aɪ", 0.0, 0.2), Phone("ɑː", 0.2, 0.3), Phone("??", 0.3, 0.4)))
    assert [part.name for part in parts] == ["aa", "ih", "aa", "h"]
    assert parts[0].end == pytest.approx(0.1)


def test_every_letter_has_a_viseme() -> None:
    assert set(CLASS_OF.values()) <= set(VISEMES)
    assert classes_at(said("p"), np.array([0.1, 0.45, 2.0])).tolist() == [
        NAMES.index("rest"),
        NAMES.index("pbm"),
        NAMES.index("rest"),
    ]


def test_tracks_have_the_gateways_frame_count_at_any_rate() -> None:
    speech = said("a", "m", "a", length=0.11)
    for fps in (10, 25, 30, 60):
        assert mouth_track(speech, fps).shape == (speech.samples.size * fps // SAMPLE_RATE, len(CONTROLS))


# -- texts and voices -------------------------------------------------------------------------------------------------


def test_texts_are_seeded() -> None:
    one, two = (texts.paragraph(np.random.default_rng(3), "en-gb", 5) for _ in range(2))
    assert one == two != texts.paragraph(np.random.default_rng(4), "en-gb", 5)


@pytest.mark.parametrize("language", ["en", "de", "fr", "es", "it"])
def test_held_out_sentences_are_never_trained_on(language: str) -> None:
    rng = np.random.default_rng(0)
    trained = {texts.sentence(rng, language) for _ in range(1500)}
    held_out = {texts.sentence(rng, language, held_out=True) for _ in range(300)}
    assert len(held_out) > 150
    assert not trained & held_out
    assert not any("{" in text for text in trained | held_out)


def test_held_out_voices_are_never_trained_on() -> None:
    rng = np.random.default_rng(0)
    trained = {voices.manner(rng).voice.partition("+")[2] for _ in range(2000)}
    held_out = {voices.manner(rng, held_out=True).voice.partition("+")[2] for _ in range(200)}
    assert held_out == set(voices.HELD_OUT_VARIANTS)
    assert not trained & held_out


# -- the synthesiser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken() -> Speech:
    return speak(LIPS, "en-gb", 140)


@needs_espeak
def test_sound_and_mouth_are_equally_long(spoken: Speech) -> None:
    assert spoken.samples.dtype == np.float32 and np.abs(spoken.samples).max() <= 1
    assert spoken.phones[0].start == 0 and spoken.phones[-1].end == pytest.approx(spoken.seconds, abs=1e-3)
    assert all(a.end == b.start for a, b in zip(spoken.phones, spoken.phones[1:], strict=False))
    assert len(mouth_track(spoken)) == int(spoken.seconds * 25)


@needs_espeak
def test_the_same_request_gives_the_same_samples(spoken: Speech) -> None:
    speak("Something else before.", "de")
    again = speak(LIPS, "en-gb", 140)
    assert np.array_equal(spoken.samples, again.samples)
    assert spoken.phones == again.phones


@needs_espeak
def test_speed_and_voice_change_the_sound(spoken: Speech) -> None:
    assert speak(LIPS, "en-gb", 220).seconds < 0.8 * spoken.seconds
    assert not np.array_equal(speak(LIPS, "en-gb+f3", 140).samples[:8000], spoken.samples[:8000])


@needs_espeak
@pytest.mark.parametrize(("text", "voice", "letter"), [("apa apa apa", "it", "p"), ("ata ata", "it", "t")])
def test_a_plosives_burst_is_where_it_is_said_to_be(text: str, voice: str, letter: str) -> None:
    """Within a frame of 40 ms: silence before the mark, sound after it."""
    speech = speak(text, voice, 130)
    level = np.sqrt(np.convolve(np.square(speech.samples), np.ones(80) / 80, "same"))  # over 5 ms
    loud = level > 0.02 * level.max()
    bursts = [phone.start for phone in speech.phones if phone.symbol.startswith(letter)]
    assert len(bursts) >= 2
    for burst in bursts:
        near = np.arange(int((burst - 0.06) * SAMPLE_RATE), int((burst + 0.06) * SAMPLE_RATE))
        onsets = near[1:][loud[near[1:]] & ~loud[near[:-1]]]
        assert np.abs(onsets / SAMPLE_RATE - burst).min() < 0.010


@needs_espeak
def test_closures_fall_on_quiet_or_nasal_sound(spoken: Speech) -> None:
    """At the middle of each closure the sound is far below that of the open vowels."""
    loud = np.sqrt(np.mean(np.square(spoken.samples)))
    track_times = [0.5 * (start + end) for start, end in closures(spoken)]
    assert len(track_times) == len(re.findall("[pbm]", LIPS.lower()))
    for time in track_times:
        first = max(0, int((time - 0.01) * SAMPLE_RATE))
        assert np.sqrt(np.mean(np.square(spoken.samples[first : first + 320]))) < 0.6 * loud


@needs_espeak
def test_unknown_voices_and_empty_texts_are_refused() -> None:
    with pytest.raises(SpeechUnavailable, match="no voice"):
        speak("Hello.", "xx-nowhere")
    with pytest.raises(SpeechUnavailable, match="nothing to say"):
        speak("")


# -- augmentation -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clicks() -> np.ndarray:
    """A second of silence with a click at 0.5 s."""
    samples = np.zeros(SAMPLE_RATE, np.float32)
    samples[8000:8010] = 0.5
    return samples


@pytest.mark.parametrize("seed", range(6))
def test_recording_keeps_length_and_instants(clicks: np.ndarray, seed: int) -> None:
    worse = augment.recorded(clicks, np.random.default_rng(seed))
    assert worse.shape == clicks.shape and worse.dtype == np.float32 and np.abs(worse).max() <= 1
    assert abs(int(np.abs(worse).argmax()) - 8005) < 80  # 5 ms


def test_augmentation_is_seeded(clicks: np.ndarray) -> None:
    one, two = (augment.recorded(clicks, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(one, two)


def test_silence_survives_gain() -> None:
    assert not augment.at_level(np.zeros(1000, np.float32), -20).any()


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_tempo_divides_all_times(clicks: np.ndarray, factor: float) -> None:
    speech = Speech(clicks, (Phone("", 0.0, 0.5), Phone("p", 0.5, 1.0)))
    faster = augment.at_tempo(speech, factor)
    assert faster.seconds == pytest.approx(1 / factor, abs=1e-3)
    assert faster.phones[1].start == pytest.approx(0.5 / factor, abs=1e-3)
    assert int(np.abs(faster.samples).argmax()) / SAMPLE_RATE == pytest.approx(0.5 / factor, abs=3e-3)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("hertz", [500, 2000])
def test_another_throat_multiplies_frequencies(hertz: float, factor: float) -> None:
    def heard(frequency: float) -> NDArray[np.float32]:
        return log_mel((0.3 * np.sin(2 * np.pi * frequency * np.arange(16000) / 16000)).astype(np.float32))

    warped = augment.other_throat(heard(hertz), factor)
    assert warped.shape == (80, 3000) and warped.dtype == np.float32
    assert abs(int(warped[:, 50].argmax()) - int(heard(hertz * factor)[:, 50].argmax())) <= 1


@needs_espeak
def test_a_change_of_language_is_no_sound() -> None:
    """eSpeak says "Mathilde" in English within French, and marks that with (en) and (fr), which have lips if read."""
    symbols = [phone.symbol for phone in speak("Mathilde et Marie vont de Vienne.", "fr-fr").phones]
    assert len(symbols) > 15 and not any("(" in symbol for symbol in symbols)
