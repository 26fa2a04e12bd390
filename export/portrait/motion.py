"""How a listening person moves: sway, breath, blinks and glances that return to where they began.

Gives poses over time; knows nothing of pictures.
"""

from __future__ import annotations

import numpy as np

from export.portrait.controls import Pose
from export.portrait.geometry import Floats, floats

BREATH_SECONDS = 3.8
BLINK_EVERY = (2.2, 4.6)  # seconds between blinks
BLINK_SECONDS = 0.30
GLANCE_EVERY = (1.2, 3.2)  # seconds between glances
SACCADE_SECONDS = 0.09


def idle_motion(seed: int, fps: int, seconds: float, amount: float = 1.0) -> list[Pose]:
    """round(fps * seconds) poses of a seamless loop: the last one leads to the first. amount scales the sway."""
    rng = np.random.default_rng([seed, 101])
    count = round(fps * seconds)
    t = np.arange(count, dtype=np.float32) / np.float32(count)  # 0 ... 1 over the loop
    period = count / fps
    breaths = max(1, round(period / BREATH_SECONDS))
    breath = np.sin(2 * np.pi * (breaths * t + rng.random()))
    sway = {
        "x": 0.012 * _wander(rng, t, period),
        "y": 0.006 * _wander(rng, t, period) - 0.002 * breath,
        "roll": 0.016 * _wander(rng, t, period),
        "yaw": 0.055 * _wander(rng, t, period),
        "pitch": 0.030 * _wander(rng, t, period),
    }
    glance_x, glance_y = _glances(rng, t, period)
    blink = _blinks(rng, t, period)
    brows = 0.18 * _wander(rng, t, period)
    return [
        Pose(
            **{name: float(amount * track[i]) for name, track in sway.items()},
            blink=float(blink[i]),
            # Eyes stay on the viewer while the head turns.
            gaze_x=float(np.clip(glance_x[i] - 1.2 * sway["yaw"][i] / 0.1 * 0.35, -1, 1)),
            gaze_y=float(np.clip(glance_y[i], -1, 1)),
            brows=float(brows[i]),
            breath=float(breath[i]),
        )
        for i in range(count)
    ]


def _wander(rng: np.random.Generator, t: Floats, period: float) -> Floats:
    """A slow periodic curve with deviation near 0.7: harmonics of the loop down to about two seconds."""
    highest = max(1, int(period / 2.0))
    total = np.zeros_like(t)
    for k in range(1, highest + 1):
        total += (rng.normal(0, 1) * np.sin(2 * np.pi * k * t) + rng.normal(0, 1) * np.cos(2 * np.pi * k * t)) / k
    return floats(0.7 * total / max(float(total.std()), 1e-6))


def _instants(rng: np.random.Generator, period: float, every: tuple[float, float]) -> list[float]:
    """Irregular times in 0 ... period, none closer than every[0] across the join."""
    times, now = [], float(rng.uniform(0.3, every[1] / 2))
    first = now
    while now <= period + first - every[0] and now < period:
        times.append(now)
        now += float(rng.uniform(*every))
    return times


def _blinks(rng: np.random.Generator, t: Floats, period: float) -> Floats:
    """0 open ... 1 shut: down fast, up slower."""
    shut = np.zeros_like(t)
    for start in _instants(rng, period, BLINK_EVERY):
        phase = ((t * period - start) % period) / BLINK_SECONDS
        falling, rising = np.clip(phase / 0.32, 0, 1), np.clip((phase - 0.45) / 0.55, 0, 1)
        lid = np.where(phase < 1, np.sin(falling * np.pi / 2) * (0.5 + 0.5 * np.cos(rising * np.pi)), 0)
        shut = np.maximum(shut, lid)
    return floats(shut)


def _glances(rng: np.random.Generator, t: Floats, period: float) -> tuple[Floats, Floats]:
    """Where the eyes rest: mostly on the viewer, now and then beside."""
    starts = [0.0, *[time for time in _instants(rng, period, GLANCE_EVERY) if time < period - 0.4]]
    targets = np.zeros((len(starts), 2))
    for i in range(1, len(starts)):
        away = rng.random() < 0.45
        targets[i] = rng.normal(0, (0.34, 0.16) if away else (0.05, 0.03))
    now = (t * period)[:, None]
    gaze = np.broadcast_to(targets[-1], (len(t), 2)).copy()
    for i, start in enumerate(starts):
        step = np.clip((now - start) / SACCADE_SECONDS, 0, 1)
        step = step * step * (3 - 2 * step)
        gaze += (targets[i] - targets[i - 1]) * step
    return gaze[:, 0].astype(np.float32), gaze[:, 1].astype(np.float32)
