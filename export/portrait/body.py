"""Neck, shoulders and clothes: everything below the chin that the breath lifts. Painted once per portrait."""

from __future__ import annotations

import cv2
import numpy as np

from export.portrait.anatomy import Anatomy
from export.portrait.geometry import SUBPIXEL_BITS, Box, Bytes, Floats, bump, coverage, floats, profile, smoothstep
from export.portrait.identity import Identity
from export.portrait.shading import (
    CLOTH_WRAP,
    Colour,
    blur,
    display,
    illuminate,
    layer,
    linear,
    mix,
    noise,
    normals,
    occlusion,
)

COLLAR_V = 0.635  # where the neck meets the clothes, at its side


class BodyPainter:
    """Paints one body on a canvas. Masks are 0 ... 1, colours linear light."""

    def __init__(self, person: Identity, at: Anatomy, canvas: int) -> None:
        self._person, self._at, self._canvas = person, at, canvas
        box = Box.whole(canvas)
        self._u, self._v = box.grid()
        self._side = np.abs(self._u)
        self._pixel = box.pixel
        self._soft = 1.5 * box.pixel
        broad = 0.86 + 0.28 * (person.neck - 0.85)
        self._neck_half = 0.178 * person.neck
        knots = [(0.0, COLLAR_V - 0.06), (self._neck_half, COLLAR_V - 0.035), (0.30 * broad, COLLAR_V + 0.035),
                 (0.46 * broad, COLLAR_V + 0.085), (0.64 * broad, COLLAR_V + 0.155), (0.79 * broad, COLLAR_V + 0.255),
                 (0.88 * broad, COLLAR_V + 0.42), (0.93 * broad, COLLAR_V + 0.62)]  # fmt: skip
        self._shoulder = profile(knots, self._side)
        self._below = floats((self._v - self._shoulder) * 0.85)  # depth under the shoulder line

    def paint(self) -> Bytes:
        """Premultiplied uint8 (n, n, 4)."""
        torso = coverage(-self._below, self._soft)
        picture, alpha = self._skin()
        for cloth, mask in self._clothes():
            mask = floats(mask * torso)
            shade = 1 - 0.35 * np.clip(blur(mask, 0.014 / self._pixel) - mask, 0, 1)
            picture = mix(floats(picture * shade[..., None]), cloth, mask)
            alpha = np.maximum(alpha, mask)
        return layer(display(picture), floats(alpha))

    def _skin(self) -> tuple[Floats, Floats]:
        person, at, u, v, side = self._person, self._at, self._u, self._v, self._side
        half = self._neck_half * (
            1 + 0.10 * smoothstep(0.52, 0.25, v) + 0.22 * smoothstep(0.52, COLLAR_V + 0.02, v) ** 2
        )
        column = 0.26 * np.sqrt(np.clip(1 - np.square(side / half), 0, 1))
        chest = 0.20 + 0.5 * np.clip(self._below, 0, 0.12)
        z = np.maximum(column * smoothstep(0.95, 0.62, v), chest * (self._below > 0))
        for lean in (-1, 1):  # the two cords of the neck, and the collar bones
            cord = u - lean * (0.50 * half - 0.42 * (v - 0.45))
            z += 0.010 * np.exp(-np.square(cord / 0.030)) * smoothstep(0.40, 0.55, v) * smoothstep(0.78, 0.66, v)
        bone = v - (COLLAR_V + 0.075 - 0.10 * (side - 0.05))
        z += 0.012 * np.exp(-np.square(bone / 0.014)) * smoothstep(0.05, 0.10, side) * smoothstep(0.40, 0.2, side)
        z -= 0.014 * bump(u, v, (0, COLLAR_V + 0.07), (0.03, 0.03))
        z = blur(z, 0.010 / self._pixel)
        z = floats(z)
        gloss = np.full_like(z, 0.025)
        skin = linear(person.skin) * floats([0.90, 0.92, 0.98])
        light = illuminate(normals(z, self._pixel), skin, person.light, occlusion(z, self._pixel, 0.6), gloss)
        # The chin's shadow falls away from the key.
        away = 0.05 if person.light.azimuth < 0 else -0.05
        cast = smoothstep(at.chin_v + 0.17, at.chin_v + 0.0, v - 0.35 * np.square(u - away))
        dim = 1 - floats([0.80, 0.76, 0.60]) * floats(cast)[..., None]
        edge = np.where(v < 0.80, side - half, np.float32(1))
        inside = np.maximum(coverage(floats(edge), self._soft), coverage(-self._below, self._soft))
        return floats(light * dim), inside * (v > at.mouth_v)

    def _cloth(self, colour: Colour, seed: int, folds: float = 1.0) -> Floats:
        """A lit sheet of cloth over the shoulders, linear (h, w, 3)."""
        depth = np.clip(self._below / 0.30, 0, 1)
        z = 0.20 * np.sqrt(np.clip(1 - np.square(1 - depth), 0, 1)) - 0.10 * np.square(self._u)
        slant = noise(self._canvas, self._person.seed + seed, (3, 2), 3)
        pull = np.sin(7 * self._side + 9 * self._v + 1.6 * slant)
        z = z + 0.006 * folds * pull * smoothstep(0.02, 0.2, self._below) + 0.004 * folds * slant
        z = blur(z, 0.008 / self._pixel)
        flat = np.full_like(z, 0.012)
        return illuminate(
            normals(z, self._pixel),
            linear(colour),
            self._person.light,
            occlusion(z, self._pixel, 0.8),
            flat,
            CLOTH_WRAP,
        )

    def _clothes(self) -> list[tuple[Floats, Floats]]:
        """Pieces from the skin outwards: (linear colour, mask)."""
        match self._person.clothing:
            case "crew":
                return self._pullover(self._oval(0.215, 0.115), 0.030)
            case "vneck":
                return self._pullover(self._vee(0.20, 0.30), 0.022)
            case "shirt":
                return self._shirt(self._person.cloth)
            case "jacket":
                return self._jacket()

    def _oval(self, half: float, drop: float) -> Floats:
        """Signed distance to a round neck hole, negative inside it."""
        r = np.hypot(self._u / half, (self._v - (COLLAR_V - 0.035)) / drop)
        return floats((r - 1) * 0.6 * (half + drop) / 2)

    def _vee(self, half: float, drop: float) -> Floats:
        """Signed distance to a V-shaped neck hole."""
        slope = half / drop
        line = (
            self._side
            - slope * (COLLAR_V - 0.03 + drop - self._v)
            + 0.05 * np.sin(np.clip((self._v - COLLAR_V) / drop, 0, 1) * np.pi)
        )
        return floats(line / np.hypot(1, slope))

    def _pullover(self, hole: Floats, band: float) -> list[tuple[Floats, Floats]]:
        cloth = self._cloth(self._person.cloth, 31)
        angle = np.arctan2(self._v - COLLAR_V, self._u)
        ribs = 1 + 0.05 * np.sin(angle * 150)
        roll = 0.78 + 0.30 * np.sqrt(np.clip(1 - np.square(2 * hole / band - 1), 0, 1))
        rib = floats(cloth * (roll * ribs)[..., None])
        body, edge = coverage(-hole, self._soft), coverage(np.maximum(-hole, hole - band), self._soft)
        seam = 1 - 0.25 * np.exp(-np.square((hole - band) / 0.006))
        return [(floats(cloth * seam[..., None]), body), (rib, edge)]

    def _shirt(self, colour: Colour) -> list[tuple[Floats, Floats]]:
        cloth = self._cloth(colour, 33, 0.8)
        open_neck = self._vee(0.17, 0.20)
        placket = np.abs(self._side - 0.030)
        stitched = 1 - 0.30 * np.exp(-np.square(placket / 0.004)) * (self._v > COLLAR_V + 0.16)
        buttons = np.zeros_like(self._u)
        for v in (COLLAR_V + 0.215, COLLAR_V + 0.315):
            buttons = np.maximum(
                buttons, coverage(np.hypot(self._u, self._v - np.float32(v)) - np.float32(0.011), 0.004)
            )
        body = mix(floats(cloth * stitched[..., None]), linear((0.85, 0.87, 0.88)), 0.75 * buttons)
        pieces = [(body, coverage(-open_neck, self._soft))]
        inner = self._neck_half * 1.02
        for lean in (-1, 1):
            corners = [(inner, -0.105), (inner + 0.035, -0.095), (0.285, 0.040), (0.165, 0.165), (0.035, 0.075)]
            flap = [(lean * u, COLLAR_V + v) for u, v in corners]
            pieces.append((floats(cloth * self._crisp(flap)), self._polygon(flap)))
        return pieces

    def _jacket(self) -> list[tuple[Floats, Floats]]:
        blouse = self._cloth(self._person.accent, 35, 0.6)
        cloth = self._cloth(self._person.cloth, 37)
        pieces = [
            (blouse, coverage(-self._oval(0.19, 0.155), self._soft)),
            (cloth, coverage(-self._vee(0.235, 0.46), self._soft)),
        ]
        for lean in (-1, 1):
            corners = [(0.205, -0.07), (0.275, 0.005), (0.325, 0.15), (0.255, 0.155), (0.305, 0.205), (0.13, 0.385),
                       (0.0, 0.385), (0.135, 0.20)]  # fmt: skip
            lapel = [(lean * u, COLLAR_V + v) for u, v in corners]
            pieces.append((floats(cloth * 1.10 * self._crisp(lapel)), self._polygon(lapel)))
        return pieces

    def _polygon(self, corners: list[tuple[float, float]]) -> Floats:
        """Anti-aliased fill, 0 ... 1."""
        mask = np.zeros((self._canvas, self._canvas), np.uint8)
        cv2.fillPoly(mask, [Box.whole(self._canvas).subpixels(corners)], (255,), cv2.LINE_AA, SUBPIXEL_BITS)
        return blur(mask / np.float32(255), 0.6)

    def _crisp(self, corners: list[tuple[float, float]]) -> Floats:
        """A folded piece is lighter at its edge: float32 (h, w, 1), around 1."""
        mask = self._polygon(corners)
        inner = blur(mask, 0.012 / self._pixel)
        return floats(1.16 - 0.20 * inner)[..., None]


def paint_body(person: Identity, at: Anatomy, canvas: int) -> Bytes:
    """Neck, shoulders and clothes: premultiplied uint8 (n, n, 4)."""
    return BodyPainter(person, at, canvas).paint()
