"""The same speech, worse recorded: so that networks trained on a synthesiser follow real voices.

Waveforms are float32 (n,), 16 kHz. Everything here keeps the length and the instant of every sound, but `at_tempo`,
which says how times change.
"""

from __future__ import annotations

from collections.abc import Callable

import librosa
import numpy as np
from numpy.typing import NDArray

from export.speech.espeak import Phone, Speech
from lipserve.contract import N_MELS, SAMPLE_RATE

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FFT_GRAIN = 8192  # samples: transforms are a multiple of this long

TEMPO = (0.82, 1.22)
THROAT = (0.80, 1.25)  # frequencies, as shares of a voice's own: a longer or a shorter vocal tract
LEVEL = (-34.0, -10.0)  # dB of full scale, root mean square of what sounds
NOISE = (6.0, 45.0)  # dB of speech over noise
ECHO_SECONDS = (0.05, 0.35)  # reverberation down to a thousandth


def at_tempo(speech: Speech, factor: float) -> Speech:
    """Played faster (above 1) or slower, as a tape is: pitch and formants move along, all times are divided by it."""
    rate = round(SAMPLE_RATE / factor)
    samples = librosa.resample(speech.samples, orig_sr=SAMPLE_RATE, target_sr=rate, res_type="soxr_hq")
    scale = samples.size / speech.samples.size
    phones = tuple(Phone(phone.symbol, phone.start * scale, phone.end * scale) for phone in speech.phones)
    return Speech(np.asarray(samples, np.float32), phones)


def recorded(samples: F32, rng: np.random.Generator) -> F32:
    """Through a room, a microphone and a line, each at random; length and timing stay."""
    worse = samples
    if rng.random() < 0.5:
        worse = in_room(worse, rng)
    if rng.random() < 0.7:
        worse = coloured(worse, rng)
    if rng.random() < 0.25:
        worse = band_passed(worse, float(rng.uniform(60, 350)), float(rng.uniform(3000, 7000)))
    worse = at_level(worse, float(rng.uniform(*LEVEL)))
    if rng.random() < 0.8:
        worse = worse + noise(worse.size, rng) * np.float32(_rms(worse) * 10 ** (-rng.uniform(*NOISE) / 20))
    return np.clip(worse, -1, 1).astype(np.float32)


def at_level(samples: F32, decibels: float) -> F32:
    """Scaled so that its louder half has this level; silence stays silence."""
    return np.asarray(samples * np.float32(10 ** (decibels / 20) / max(_rms(samples), 1e-6)), np.float32)


def noise(count: int, rng: np.random.Generator) -> F32:
    """Steady or swelling noise between white and brown: float32 (count,), root mean square about 1."""
    size = _fast(count)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequencies = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50.0)
    coloured_noise = np.fft.irfft(spectrum * frequencies ** -float(rng.uniform(0.0, 1.0)), size)[:count]
    swell = np.interp(np.arange(count), np.linspace(0, count, 12), rng.uniform(0.6, 1.4, 12))
    made = coloured_noise * swell
    return np.asarray(made / max(float(np.sqrt(np.mean(made * made))), 1e-9), np.float32)


def other_throat(log_mel: F32, factor: float) -> F32:
    """Spoken by a vocal tract of another length: all frequencies times the factor. float32 (80, t), Whisper's scale.

    Jaitly and Hinton 2013, "Vocal Tract Length Perturbation", without their bend at the upper end.
    """
    centres = librosa.mel_frequencies(n_mels=N_MELS + 2, fmax=SAMPLE_RATE / 2)[1:-1]
    source = np.interp(centres / factor, centres, np.arange(N_MELS))
    below = np.minimum(source.astype(int), N_MELS - 2)
    share = (source - below).astype(np.float32)[:, None]
    return np.asarray((1 - share) * log_mel[below] + share * log_mel[below + 1], np.float32)


def in_room(samples: F32, rng: np.random.Generator) -> F32:
    """With an exponentially fading echo behind the direct sound, which stays where it was."""
    seconds = float(rng.uniform(*ECHO_SECONDS))
    count = int(seconds * SAMPLE_RATE)
    tail = rng.standard_normal(count) * 10 ** (-3 * np.arange(count) / count)
    tail[: int(0.004 * SAMPLE_RATE)] = 0
    response = tail * (rng.uniform(0.05, 0.5) / np.sqrt(np.sum(tail * tail)))
    response[0] = 1
    return _convolved(samples, response)


def coloured(samples: F32, rng: np.random.Generator) -> F32:
    """Through a smooth random equaliser, ±9 dB, without phase."""
    gains = rng.uniform(-9, 9, 7)
    return _filtered(samples, lambda hertz: 10 ** (np.interp(np.sqrt(hertz / 8000), np.linspace(0, 1, 7), gains) / 20))


def band_passed(samples: F32, low: float, high: float) -> F32:
    """Only low…high hertz, edges a fifth of an octave wide, without phase."""

    def gain(hertz: F64) -> F64:
        octaves = np.log2(np.maximum(hertz, 1.0))
        rise, fall = (octaves - np.log2(low)) * 5 + 1, (np.log2(high) - octaves) * 5 + 1
        return np.asarray(np.clip(np.minimum(rise, fall), 0, 1))

    return _filtered(samples, gain)


def _filtered(samples: F32, gain: Callable[[F64], F64]) -> F32:
    """With a gain for each frequency in hertz, and no delay."""
    size = _fast(samples.size)
    spectrum = np.fft.rfft(samples, size)
    shaped = spectrum * gain(np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float64))
    return np.fft.irfft(shaped, size)[: samples.size].astype(np.float32)


def _fast(count: int) -> int:
    """At least `count`, and quick to transform."""
    return -(-count // FFT_GRAIN) * FFT_GRAIN


def _convolved(samples: F32, response: NDArray[np.float64]) -> F32:
    size = _fast(samples.size + response.size)
    mixed = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return mixed[: samples.size].astype(np.float32)


def _rms(samples: F32) -> float:
    """Root mean square of the louder half of the 50 ms blocks: pauses do not count."""
    blocks = samples[: samples.size // 800 * 800].reshape(-1, 800)
    if not blocks.size:
        return float(np.sqrt(np.mean(np.square(samples)))) if samples.size else 0.0
    power = np.sort(np.mean(np.square(blocks), axis=1))
    return float(np.sqrt(power[power.size // 2 :].mean()))
