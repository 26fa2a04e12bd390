"""Phonemes in time to the mouth in time.

Each viseme pulls the mouth towards its target with a strength that fades with distance in time, and the mouth is their
weighted mean (Cohen and Massaro 1993, "Modeling coarticulation in synthetic visual speech"). The jaw opens wider the
louder a sound is (Schulman 1989, "Articulatory dynamics of loud and normal speech"). On top of that lie three rules
that hold exactly: lips meet for p, b and m; the lower lip meets the teeth for f and v; pauses are the mouth at rest.
Time is in seconds, on the sound's own clock.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from export.portrait.anatomy import GAP_MAX
from export.portrait.controls import REST_MOUTH, Mouth
from export.portrait.lips import mouth_gap
from export.speech.espeak import Speech
from export.speech.visemes import NAMES, REST, VISEMES, VOICED_STOPS, VOICELESS_STOPS, Gesture, gestures
from lipserve.contract import SAMPLE_RATE

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

CONTROLS = tuple(field.name for field in fields(Mouth))  # columns of a track
COLUMN = {name: index for index, name in enumerate(CONTROLS)}
REST_ROW = np.array([getattr(REST_MOUTH, name) for name in CONTROLS])

STEP = 0.005  # seconds, the grid on which the mouth is worked out
REACH = 0.030  # seconds: how far a viseme pulls past its own half length
SMOOTH = 0.018  # seconds, deviation of the Gaussian that rounds off all movement

STOP_CLOSURE = 0.055  # seconds of silence before a voiceless burst
VOICED_SHARE = 0.70  # of a voiced stop's length until its burst
MIN_CLOSURE = 0.050  # seconds, so that a frame of 40 ms always falls inside
LIP_RAMP = 0.055  # seconds the lips take to meet, and to part
MERGE_GAP = 0.080  # seconds: closures nearer than this are one

OPENING_RAMP = 0.090  # seconds the mouth starts to move before a phrase is heard
CLOSING_RAMP = 0.150  # seconds it takes to shut after one

HEARD = 0.080  # seconds over which loudness is taken
EFFORT_RANGE = 20.0  # dB below an utterance's loud parts, where the effort ends
LOUD_PART = 95  # percentile of an utterance's power
EFFORT = (0.4, 1.15)  # factor of lip opening and jaw, of the quietest sound and the loudest
EFFORT_SMOOTH = 0.030  # seconds, deviation of the Gaussian on it


def frame_times(count: int, fps: int) -> F64:
    """The middle of every video frame, seconds. The audio window of a frame is centred there too."""
    return (np.arange(count) + 0.5) / fps


def mouth_track(speech: Speech, fps: int = 25) -> F32:
    """The mouth at every video frame: float32 (n, 9), columns CONTROLS; n as the gateway counts frames."""
    return mouth_at(speech, frame_times(speech.samples.size * fps // SAMPLE_RATE, fps))


def mouth_at(speech: Speech, times: F64) -> F32:
    """The mouth at given times, seconds: float32 (n, 9). Outside the speech it is at rest."""
    grid = np.arange(-CLOSING_RAMP, speech.seconds + CLOSING_RAMP + STEP, STEP)
    curve = _curve(gestures(speech.phones), _effort(speech.samples, grid), grid)
    columns = [np.interp(times, grid, curve[:, i], left=rest, right=rest) for i, rest in enumerate(REST_ROW)]
    return np.stack(columns, axis=1).astype(np.float32)


def mouths(track: F32) -> list[Mouth]:
    """Rows of a track as the portrait's mouths."""
    return [Mouth(*(float(value) for value in row)) for row in track]


def opening(track: F32) -> F32:
    """The gap between the inner lips as a share of the widest: float32 (n,), 0…1, exactly what the portrait draws."""
    return np.array([mouth_gap(mouth) / GAP_MAX for mouth in mouths(track)], np.float32)


def closures(speech: Speech) -> list[tuple[float, float]]:
    """When the lips are shut for p, b or m: (start, end) in seconds, in order, each at least MIN_CLOSURE long."""
    found = [_closure(gesture) for gesture in gestures(speech.phones) if gesture.name == "pbm"]
    merged: list[tuple[float, float]] = []
    for start, end in found:
        if merged and start - merged[-1][1] < MERGE_GAP:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def classes_at(speech: Speech, times: F64) -> NDArray[np.int64]:
    """The viseme class sounding at given times, an index into NAMES: int64 (n,)."""
    parts = gestures(speech.phones)
    starts = np.array([part.start for part in parts])
    numbers = np.array([NAMES.index(part.name) for part in parts])
    index = np.searchsorted(starts, times, side="right") - 1
    inside = (index >= 0) & (times < parts[-1].end)
    return np.asarray(np.where(inside, numbers[np.maximum(index, 0)], NAMES.index(REST)), np.int64)


def _effort(samples: F32, grid: F64) -> F64:
    """The factor of opening and jaw on the grid, by the loudness around each instant: float64 (t,)."""
    power = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    middles, half = grid * SAMPLE_RATE, 0.5 * HEARD * SAMPLE_RATE
    low, high = (np.clip(middles + side, 0, samples.size).astype(int) for side in (-half, half))
    mean = (power[high] - power[low]) / (2 * half)
    loud = float(np.percentile(mean[mean > 0], LOUD_PART)) if mean.any() else 1.0
    level = 10 * np.log10(np.maximum(mean / loud, 1e-9))
    share = _smooth(np.clip(1 + level / EFFORT_RANGE, 0, 1)[:, None], EFFORT_SMOOTH)[:, 0]
    return EFFORT[0] + (EFFORT[1] - EFFORT[0]) * share


def _curve(parts: list[Gesture], effort: F64, grid: F64) -> F64:
    """The mouth on the grid: float64 (t, 9)."""
    spoken = [part for part in parts if part.name != REST]
    curve: F64 = np.tile(REST_ROW, (grid.size, 1))
    if not spoken:
        return curve
    voiced = _pulled(spoken, grid)
    level = _presence(spoken, grid)[:, None]
    curve = curve + level * (_smooth(voiced, SMOOTH) - curve)
    for name in ("open", "jaw"):
        curve[:, COLUMN[name]] = np.minimum(effort * curve[:, COLUMN[name]], 1.0)
    _tuck(curve, spoken, grid)
    _shut(curve, spoken, grid)
    return curve


def _pulled(spoken: list[Gesture], grid: F64) -> F64:
    """The mean of all targets, weighted by strength and nearness in time: float64 (t, 9)."""
    targets = [VISEMES[part.name] for part in spoken]
    middle = np.array([_sounding_middle(part) for part in spoken])
    half = np.array([0.5 * (part.end - part.start) for part in spoken])
    near = np.exp(-(np.square((grid[:, None] - middle) / (half + REACH)))) + 1e-12  # (t, parts)
    strengths = {name: np.array([target.hold for target in targets]) for name in ("open", "jaw", "teeth", "tongue")}
    strengths |= {name: np.array([target.grip for target in targets]) for name in ("width", "round")}
    curve: F64 = np.tile(REST_ROW, (grid.size, 1))
    for name, strength in strengths.items():
        weights = near * strength
        values = np.array([getattr(target, name) for target in targets])
        curve[:, COLUMN[name]] = weights @ values / weights.sum(axis=1)
    return curve


def _sounding_middle(part: Gesture) -> float:
    """The instant a viseme's target belongs to: stops are formed in their closure, before the burst."""
    if part.letter in VOICELESS_STOPS:
        return part.start - 0.5 * STOP_CLOSURE
    return 0.5 * (part.start + part.end)


def _smooth(curve: F64, deviation: float) -> F64:
    """Rounded by a Gaussian along time, its deviation in seconds."""
    reach = int(3 * deviation / STEP)
    kernel = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) * STEP / deviation))
    padded = np.pad(curve, ((reach, reach), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], axis=1)


def _presence(spoken: list[Gesture], grid: F64) -> F64:
    """0 at rest … 1 speaking: float64 (t,). Movement leads the sound, and trails it."""
    level = np.zeros_like(grid)
    start, end = spoken[0].start, spoken[0].end
    for part in [*spoken[1:], None]:
        if part is not None and part.start - end < STEP:
            end = part.end
            continue
        rise = _ramp((grid - start + OPENING_RAMP) / OPENING_RAMP)
        fall = _ramp((end + CLOSING_RAMP - grid) / CLOSING_RAMP)
        level = np.maximum(level, np.minimum(rise, fall))
        if part is not None:
            start, end = part.start, part.end
    return level


def _tuck(curve: F64, spoken: list[Gesture], grid: F64) -> None:
    """The lower lip at the upper teeth for f and v, in place."""
    for part in spoken:
        if part.name == "fv":
            level = _trapezoid(grid, part.start, max(part.end, part.start + MIN_CLOSURE), LIP_RAMP)
            curve[:, COLUMN["tuck"]] = np.maximum(curve[:, COLUMN["tuck"]], level)
            _pull(curve, "open", VISEMES["fv"].open, level)
            _pull(curve, "teeth", VISEMES["fv"].teeth, level)


def _shut(curve: F64, spoken: list[Gesture], grid: F64) -> None:
    """Lips together for p, b and m, in place: pressed, with no gap at all."""
    for part in spoken:
        if part.name == "pbm":
            level = _trapezoid(grid, *_closure(part), LIP_RAMP)
            _pull(curve, "open", 0.0, level)
            _pull(curve, "tuck", 0.0, level)
            _pull(curve, "round", 0.0, 0.7 * level)
            curve[:, COLUMN["press"]] = np.maximum(curve[:, COLUMN["press"]], 0.7 * level**2)


def _pull(curve: F64, name: str, target: float, level: F64) -> None:
    column = curve[:, COLUMN[name]]
    column += level * (target - column)


def _closure(part: Gesture) -> tuple[float, float]:
    """When the lips touch for one p, b or m, seconds."""
    if part.letter in VOICELESS_STOPS:
        start, end = part.start - STOP_CLOSURE, part.start
    elif part.letter in VOICED_STOPS:
        start, end = part.start, part.start + VOICED_SHARE * (part.end - part.start)
    else:
        start, end = part.start, part.end
    lacking = max(0.0, MIN_CLOSURE - (end - start))
    return start - lacking / 2, end + lacking / 2


def _trapezoid(grid: F64, start: float, end: float, ramp: float) -> F64:
    """1 from start to end, smooth ramps outside, 0 beyond."""
    return np.minimum(_ramp((grid - start + ramp) / ramp), _ramp((end + ramp - grid) / ramp))


def _ramp(x: F64) -> F64:
    """Smoothstep: 0 below 0, 1 above 1."""
    t = np.clip(x, 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t))
