"""Thirty seconds of sound as the audio encoder hears it, with the mouth that belongs to it.

Utterances of a corpus are laid one after another with pauses between, each perhaps at another tempo, recorded badly,
and the rest of the segment is digital silence, as it is at serving. Truth is given at the encoder's 50 states a second:
state s hears around s · 20 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.speech.augment import TEMPO, THROAT, at_tempo, noise, other_throat, recorded
from export.speech.coarticulation import REST_ROW, classes_at, mouth_at, opening
from export.speech.espeak import Speech
from export.speech.visemes import NAMES, REST
from export.training.corpus import Corpus
from gateway.features import log_mel
from lipserve.contract import SAMPLE_RATE, SEGMENT_SAMPLES, SEGMENT_SECONDS, SEGMENT_STATES, STATES_PER_SECOND

F32 = NDArray[np.float32]

PAUSE = (0.3, 1.5)  # seconds between utterances: never so short that two mouths overlap
TEMPO_SHARE = 0.4  # of utterances that are played at another tempo
CLEAN_SHARE = 0.15  # of segments that are not recorded badly
THROAT_SHARE = 0.7  # of segments whose voices become those of other people
NO_SPEECH_SHARE = 0.04  # of segments that hold nothing but noise, or nothing at all
TAIL = 1.0  # seconds after the last word that still count fully
TAIL_WEIGHT = 0.02  # of the silence beyond

STATE_TIMES = np.arange(SEGMENT_STATES) / STATES_PER_SECOND


@dataclass(frozen=True)
class Placed:
    """One utterance in a segment: its number, where it begins, and its times against the corpus's (1 / tempo)."""

    utterance: int
    start: float
    stretch: float
    speech: Speech


@dataclass(frozen=True)
class Segment:
    """What is heard and what the mouth does.

    samples: float32 (n,), n ≤ 480 000; controls: float32 (1500, 9); openings: float32 (1500,); classes: int64 (1500,),
    indices into visemes.NAMES; weights: float32 (1500,), how much each state counts
    """

    samples: F32
    placed: tuple[Placed, ...]
    controls: F32
    openings: F32
    classes: NDArray[np.int64]
    weights: F32
    throat: float = 1.0  # frequencies are heard multiplied by it

    @property
    def seconds(self) -> float:
        """Of sound, before the digital silence."""
        return self.samples.size / SAMPLE_RATE

    @property
    def log_mel(self) -> F32:
        """float32 (80, 3000), the gateway's own, of voices made higher or lower."""
        own = log_mel(self.samples)
        return own if self.throat == 1 else other_throat(own, self.throat)


def draw(corpus: Corpus, rng: np.random.Generator, augment: bool = True) -> Segment:
    """A segment of utterances chosen at random, between a few and thirty seconds full."""
    if augment and rng.random() < NO_SPEECH_SHARE:
        return speechless(rng)
    goal = float(rng.uniform(8, SEGMENT_SECONDS) if augment else SEGMENT_SECONDS)
    placed: list[Placed] = []
    while (found := _place(corpus, int(rng.integers(corpus.count)), placed, rng, augment)).start + (
        found.speech.seconds
    ) < goal:
        placed.append(found)
    return segment(tuple(placed), _mixed(placed, rng, augment), _throat(rng, augment))


def packed(corpus: Corpus, utterances: list[int], rng: np.random.Generator, augment: bool) -> tuple[Segment, list[int]]:
    """A segment of the first of these utterances, as many as fit (at least one), and the rest of them."""
    placed: list[Placed] = []
    rest: list[int] = []
    for taken, number in enumerate(utterances):
        found = _place(corpus, number, placed, rng, augment)
        if placed and found.start + found.speech.seconds > SEGMENT_SECONDS - 0.3:
            rest = utterances[taken:]
            break
        placed.append(found)
    return segment(tuple(placed), _mixed(placed, rng, augment), _throat(rng, augment)), rest


def segment(placed: tuple[Placed, ...], samples: F32, throat: float = 1.0) -> Segment:
    """Sound and utterances with their truth."""
    controls = np.tile(REST_ROW.astype(np.float32), (SEGMENT_STATES, 1))
    classes = np.full(SEGMENT_STATES, NAMES.index(REST), np.int64)
    for part in placed:
        near = slice(
            max(0, int((part.start - PAUSE[0] / 2) * STATES_PER_SECOND)),
            int((part.start + part.speech.seconds + PAUSE[0] / 2) * STATES_PER_SECOND) + 1,
        )
        times = STATE_TIMES[near] - part.start
        controls[near] = mouth_at(part.speech, times)
        classes[near] = classes_at(part.speech, times)
    end = samples.size / SAMPLE_RATE + TAIL
    weights = np.where(end > STATE_TIMES, 1.0, TAIL_WEIGHT).astype(np.float32)
    return Segment(samples, placed, controls, opening(controls), classes, weights, throat)


def _throat(rng: np.random.Generator, augment: bool) -> float:
    if not augment or rng.random() >= THROAT_SHARE:
        return 1.0
    return float(np.exp(rng.uniform(*np.log(THROAT))))


def _place(corpus: Corpus, number: int, before: list[Placed], rng: np.random.Generator, augment: bool) -> Placed:
    speech = original = corpus.speech(number)
    if augment and rng.random() < TEMPO_SHARE:
        speech = at_tempo(speech, float(rng.uniform(*TEMPO)))
    pause = float(rng.uniform(*PAUSE)) if before else float(rng.uniform(0, PAUSE[1]))
    start = (before[-1].start + before[-1].speech.seconds if before else 0.0) + pause
    start = round(start * SAMPLE_RATE) / SAMPLE_RATE
    return Placed(number, start, speech.seconds / original.seconds, speech)


def _mixed(placed: list[Placed], rng: np.random.Generator, augment: bool) -> F32:
    """All utterances and, while they last, the sound of the room."""
    end = placed[-1].start + placed[-1].speech.seconds if placed else 0.0
    count = min(SEGMENT_SAMPLES, round((end + float(rng.uniform(0, TAIL))) * SAMPLE_RATE))
    samples = np.zeros(count, np.float32)
    loudness = 10 ** (rng.uniform(-4, 4, len(placed)) / 20) if augment else np.ones(len(placed))
    for part, gain in zip(placed, loudness, strict=True):
        first = round(part.start * SAMPLE_RATE)
        piece = part.speech.samples[: count - first]
        samples[first : first + piece.size] += np.float32(gain) * piece
    return recorded(samples, rng) if augment and rng.random() >= CLEAN_SHARE else samples


def speechless(rng: np.random.Generator) -> Segment:
    """Digital silence, or noise between inaudible and loud, with a mouth that rests."""
    count = int(rng.integers(SAMPLE_RATE, SEGMENT_SAMPLES))
    level = 0.0 if rng.random() < 0.25 else 10 ** (rng.uniform(-80, -20) / 20)
    return segment((), np.asarray(noise(count, rng) * np.float32(level), np.float32))
