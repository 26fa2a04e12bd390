"""Hair, painted strand by strand once per portrait. The shapes come from `hairstyles`; here they are drawn and lit.

Each strand is lit as a fine cylinder on a rounded head.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from export.portrait.anatomy import Anatomy
from export.portrait.geometry import SUBPIXEL_BITS, Box, Bytes, Floats, Reals, floats, smoothstep, spline
from export.portrait.hairstyles import Sheet, sheets_of
from export.portrait.identity import Identity
from export.portrait.shading import blur, layer, linear

STEPS = 40  # vertices along a strand
COIL_STEPS = 72
THICKNESS = 0.0024  # of a strand, portrait units


def paint_hair(person: Identity, at: Anatomy, canvas: int) -> tuple[Bytes, Bytes]:
    """The layers behind the neck and over the face: premultiplied uint8 (n, n, 4) each."""
    painter = _HairPainter(person, at, canvas)
    sheets = sheets_of(person, at)
    return painter.paint([s for s in sheets if s.back]), painter.paint([s for s in sheets if not s.back])


class _HairPainter:
    def __init__(self, person: Identity, at: Anatomy, canvas: int) -> None:
        self._person, self._at, self._canvas = person, at, canvas
        self._rng = np.random.default_rng(person.seed + 41)
        self._box = Box.whole(canvas)
        self._pixel = self._box.pixel

    def paint(self, sheets: list[Sheet]) -> Bytes:
        """Sheets in order, one on another."""
        ink = np.zeros((self._canvas, self._canvas, 3), np.uint8)  # body light, coverage, highlight
        for sheet in sheets:
            curves, across = self._strands(sheet)
            if sheet.fill > 0:
                self._ground(ink, sheet)
            self._draw(ink, sheet, curves, across)
        soft = blur(floats(ink), 0.0011 / self._pixel + 0.3) / np.float32(255)
        alpha = soft[..., 1]
        safe = np.maximum(alpha, 1 / 255)
        body, gleam = soft[..., 0] / safe, soft[..., 2] / safe
        base = linear(self._person.hair_colour)
        sheen = 1.10 * base + np.float32(0.017) * self._person.light.key_colour()
        light = base * (0.07 + 1.9 * np.square(body))[..., None] + sheen * (2.2 * gleam)[..., None]
        return layer(np.sqrt(np.clip(light, 0, 1)).astype(np.float32), alpha)

    def _strands(self, sheet: Sheet) -> tuple[Floats, Floats]:
        """Curves (count, steps, 2) and each one's place between the guides, 0 ... 1, (count,)."""
        steps = COIL_STEPS if sheet.coil else STEPS
        guides = np.stack([spline(guide, steps) for guide in sheet.guides])
        count, rng = sheet.count, self._rng
        across = rng.permutation((np.arange(count) + rng.uniform(0, 1, count)) / count).astype(np.float32)
        curves = self._swung(_between_guides(guides, across), sheet, across)
        locks = np.linspace(0, 1, max(4, count // (2 * sheet.lock)))
        uneven = np.interp(across, locks, rng.uniform(0, 0.7, len(locks))) + rng.uniform(0, 0.3, count)
        start = rng.uniform(0, 1, count) * max(1 - sheet.crop, sheet.roots)
        return _section(curves, start, start + sheet.crop * (1 - sheet.ragged * uneven)), across

    def _swung(self, curves: Floats, sheet: Sheet, across: Floats) -> Floats:
        """Strands with their waves, coils and strays."""
        (count, steps), rng = curves.shape[:2], self._rng
        t = np.linspace(0, 1, steps, dtype=np.float32)
        turn = 2 * np.pi * sheet.waves * t + self._phases(sheet, across) + rng.normal(0, 0.22, (count, 1))
        swing = sheet.wave * t**0.6 * np.sin(turn)
        stray = rng.normal(0, 0.0045, (count, 1)) * t + np.cumsum(rng.normal(0, 0.0006, (count, steps)), axis=1)
        tangent = np.gradient(curves, axis=1)
        tangent /= np.linalg.norm(tangent, axis=2, keepdims=True) + 1e-6
        normal = np.stack([-tangent[..., 1], tangent[..., 0]], axis=2)
        ahead = sheet.wave * 0.8 * np.cos(turn) if sheet.coil else np.zeros_like(turn)
        return floats(curves + normal * (swing + stray)[..., None] + tangent * ahead[..., None])

    def _phases(self, sheet: Sheet, across: Floats) -> Floats:
        """Where in its swing each strand begins, alike within a lock: (count, 1)."""
        locks = max(2, sheet.count // sheet.lock)
        starts = self._rng.uniform(0, 2 * np.pi, locks + 1)
        if sheet.coil:
            return floats(starts[(across * locks).astype(int)][:, None])
        return floats(np.interp(across * locks, np.arange(locks + 1), starts)[:, None])

    def _ground(self, ink: Bytes, sheet: Sheet) -> None:
        guides = np.stack([spline(guide, 80) for guide in sheet.guides])
        places = np.linspace(sheet.inset, 1, 3 * len(guides), dtype=np.float32)
        curves = _between_guides(guides, places)[:, 2 : round(80 * sheet.fill)]
        for first, second in pairwise(curves):
            ring = np.vstack([first, second[::-1]])
            ink_tone = (round(70 * sheet.shade), 255, 0)
            cv2.fillPoly(ink, [self._box.subpixels(ring)], ink_tone, cv2.LINE_AA, SUBPIXEL_BITS)

    def _draw(self, ink: Bytes, sheet: Sheet, curves: Floats, across: Floats) -> None:
        body, gleam = self._light(curves)
        tone = self._tone(sheet, across, curves.shape[1]) + self._rng.normal(0, 0.10, (len(curves), 1))
        if sheet.coil:  # the near side of each turn catches the light
            t = np.linspace(0, 1, curves.shape[1], dtype=np.float32)
            tone *= 1 + 0.45 * np.sin(2 * np.pi * sheet.waves * t + 0.6)
        elif sheet.crop == 1:  # roots lie in shade
            tone *= 0.66 + 0.34 * smoothstep(0, 0.14, np.linspace(0, 1, curves.shape[1], dtype=np.float32))
        rim = 0.70 + 0.30 * np.sin(np.pi * np.clip(across, 0.02, 0.98)) ** 0.6
        body = np.clip(body * tone * (sheet.shade * rim)[:, None], 0, 1)
        gleam = np.clip(gleam * (1.9 * tone - 0.9) * sheet.shade * sheet.gleam, 0, 1)
        thick = max(1, round(THICKNESS / self._pixel))
        points = self._box.subpixels(curves)
        for strand, lights, gleams in zip(points, (body * 255).astype(int), (gleam * 255).astype(int), strict=True):
            for k in range(len(strand) - 1):
                cv2.line(
                    ink,
                    strand[k],
                    strand[k + 1],
                    (int(lights[k]), 255, int(gleams[k])),
                    thick,
                    cv2.LINE_AA,
                    SUBPIXEL_BITS,
                )

    def _tone(self, sheet: Sheet, across: Floats, steps: int) -> Floats:
        """Locks lighter and darker, changing along their length: (count, steps), around 1."""
        locks = max(3, sheet.count // sheet.lock)
        grain = self._rng.normal(0, 1, (locks, 5)).astype(np.float32)
        smooth = cv2.resize(grain, (steps, 4 * locks), interpolation=cv2.INTER_CUBIC)
        rows = np.minimum((across * 4 * locks).astype(int), 4 * locks - 1)
        return floats(1 + 0.13 * smooth[rows])

    def _light(self, curves: Floats) -> tuple[Floats, Floats]:
        """Diffuse and glossy light along each strand, (count, steps), 0 ... 1."""
        u, v = curves[..., 0], curves[..., 1]
        down = np.minimum(v - np.float32(self._at.eye_v - 0.10), 0)
        r2 = np.square(u / 0.62) + np.square(down / 0.70)
        z = 0.55 * np.sqrt(np.clip(1 - r2, 0.02, 1))
        tangent = np.gradient(np.dstack([u, v, z]), axis=1)
        tangent /= np.linalg.norm(tangent, axis=2, keepdims=True) + 1e-6
        normal = np.dstack([u / 0.38, down / 0.48, z / 0.30])
        normal /= np.linalg.norm(normal, axis=2, keepdims=True) + 1e-6
        key = self._person.light.key()
        half = key + floats([0, 0, 1])
        half /= np.linalg.norm(half)
        facing = np.clip(normal @ key * 0.70 + 0.36, 0.12, 1)
        body = facing * (0.45 + 0.55 * np.sqrt(np.clip(1 - np.square(tangent @ key), 0, 1)))
        body *= 1 - 0.28 * np.clip((v - 0.1) / 0.8, 0, 1)
        gleam = np.power(np.clip(1 - np.square(tangent @ half), 0, 1), 16) * np.clip(normal @ half, 0, 1) ** 4
        return floats(body), floats(gleam)


def _between_guides(guides: Floats, across: Floats) -> Floats:
    """Curves at places 0 ... 1 between guides (k, steps, 2), smooth across them: (count, steps, 2)."""
    dense = 32 * (len(guides) - 1) + 1
    wide = spline(guides.reshape(len(guides), -1), dense).reshape(dense, guides.shape[1], 2)
    place = across * (dense - 1)
    low = np.minimum(place.astype(int), dense - 2)
    part = (place - low)[:, None, None]
    return floats(wide[low] * (1 - part) + wide[low + 1] * part)


def _section(curves: Floats, start: Reals, stop: Reals) -> Floats:
    """The part of each curve between two shares of its length, (n,) each, with as many vertices."""
    steps = curves.shape[1]
    length = np.minimum(stop, 1) - start
    t = (start[:, None] + np.linspace(0, 1, steps) * length[:, None]) * (steps - 1)
    low = np.clip(t.astype(int), 0, steps - 2)
    part = (t - low)[..., None]
    rows = np.arange(len(curves))[:, None]
    return floats(curves[rows, low] * (1 - part) + curves[rows, low + 1] * part)
