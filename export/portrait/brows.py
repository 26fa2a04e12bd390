"""Eyebrows: hair strokes along a curve, painted once per portrait as a layer that the eyes' frame moves."""

from __future__ import annotations

import cv2
import numpy as np

from export.portrait.anatomy import Anatomy
from export.portrait.geometry import SUBPIXEL_BITS, Box, Bytes, Floats, floats, spline
from export.portrait.identity import Identity
from export.portrait.shading import blur, layer

STEPS = 200  # along the brow
HAIR = 0.021  # length of a hair, portrait units


def paint_brow(person: Identity, at: Anatomy, side: int, box: Box) -> Bytes:
    """One brow, -1 the picture's left, 1 its right: premultiplied uint8 (h, w, 4) of the box."""
    rng = np.random.default_rng(person.seed + 13)
    spine, thick = _curve(person, at)
    step = np.gradient(spine, axis=0)
    direction = floats(np.arctan2(-step[:, 1], step[:, 0]))
    ink = np.zeros((box.bottom - box.top, box.right - box.left, 3), np.uint8)  # tone, coverage
    thickness = max(1, round(box.canvas / 900))
    for _ in range(round(420 * (0.4 + 0.6 * person.brow_weight))):
        hair = _hair(spine, thick, direction, rng) * floats([side, 1])
        tone = int(np.clip(rng.normal(130, 36), 40, 230))
        cv2.polylines(ink, [box.subpixels(hair)], False, (tone, 255, 0), thickness, cv2.LINE_AA, SUBPIXEL_BITS)
    covered = floats(ink[..., 1]) / np.float32(255)
    fine, soft = blur(covered, 0.0010 / box.pixel), blur(covered, 0.0055 / box.pixel)
    alpha = np.clip(0.62 * fine * (0.35 + 0.65 * soft) + 0.38 * soft, 0, 0.90)
    tones = np.where(ink[..., 1] > 0, floats(ink[..., 0]) / np.maximum(ink[..., 1], 1), 0.5)
    return layer(floats(person.brow_colour) * (0.65 + 0.70 * np.clip(tones, 0, 1))[..., None], alpha)


def _curve(person: Identity, at: Anatomy) -> tuple[Floats, Floats]:
    """The right brow from its inner end: points (STEPS, 2) and half its thickness (STEPS,)."""
    arch = 0.010 + 0.018 * person.brow_arch
    knots = [
        (0.062, 0.004),
        (0.108, -0.006),
        (0.165, -0.009 - 0.52 * arch),
        (0.218, -0.006 - 0.58 * arch),
        (0.272, 0.007),
    ]
    spread = at.eye_u / 0.163
    spine = spline([(u * spread, at.brow_v + 0.008 + dv) for u, dv in knots], STEPS)
    taper = np.interp(np.linspace(0, 1, STEPS), [0, 0.10, 0.40, 0.75, 1], [0.55, 0.95, 1.0, 0.70, 0.28])
    return spine, floats(0.0120 * person.brow_weight * taper)


def _hair(spine: Floats, thick: Floats, direction: Floats, rng: np.random.Generator) -> Floats:
    """One stroke: (2, 2). Hairs stand at the inner end, lie along the brow at the outer, lean inwards at its edges."""
    t = float(rng.uniform(0, 1) ** 0.9)
    i = int(t * (STEPS - 1))
    across = float(np.clip(rng.normal(0, 0.50), -1, 1))
    start = spine[i] + floats([0, across * thick[i]])
    lean = direction[i] + np.interp(t, [0, 0.12, 0.4, 1.0], [1.0, 0.60, 0.25, 0.05]) + 0.22 * across
    length = HAIR * (0.7 + 0.5 * rng.random()) * np.interp(t, [0, 0.2, 1], [0.75, 1.0, 0.8])
    return floats([start, start + floats([np.cos(lean) * length, -np.sin(lean) * length])])
