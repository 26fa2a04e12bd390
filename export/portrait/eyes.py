"""Eyes, drawn anew for every frame over the still skin, whose lids are shut; the brows move above them."""

from __future__ import annotations

import cv2
import numpy as np

from export.portrait.anatomy import Anatomy
from export.portrait.brows import paint_brow
from export.portrait.controls import Pose
from export.portrait.geometry import SUBPIXEL_BITS, Box, Bytes, Floats, bump, coverage, floats, smoothstep, spline
from export.portrait.identity import Identity
from export.portrait.shading import blur, linear, mix

IRIS = 0.0395  # radius, portrait units
PUPIL = 0.0165
WHITE = floats([0.66, 0.68, 0.71])  # of the eyeball, linear BGR
TRAVEL = (0.020, 0.012)  # how far the iris goes at full gaze


class EyePainter:
    """One eye with its brow. side: -1 the picture's left eye, 1 its right."""

    def __init__(self, person: Identity, at: Anatomy, side: int, canvas: int) -> None:
        middle = side * at.eye_u
        self.box = Box.around(canvas, (middle - 0.165, middle + 0.165), (at.eye_v - 0.22, at.eye_v + 0.085))
        self._person, self._at, self._side = person, at, side
        u, v = self.box.grid()
        self._u, self._v = u, v
        self._q = floats(side * (u - middle) / np.float32(at.eye_half))  # -1 inner ... 1 outer corner
        inside = np.clip(self._q, -1, 1)
        tilt = (person.eye_tilt - 0.35) * 0.022
        self._axis = floats(at.eye_v + 0.006 - tilt * inside - 0.004 * (1 - inside))
        skew = inside + 0.10 * (1 - inside**2)
        self._high = np.asarray(np.power(np.clip(1 - np.abs(skew) ** 2.4, 0, 1), 0.85) * 0.0435 * person.eye_size)
        self._low = np.asarray(
            np.clip(1 - np.abs(inside - 0.08 * (1 - inside**2)) ** 2.2, 0, 1) * 0.024 * person.eye_size
        )
        grain = np.random.default_rng(person.seed + 9 + side).standard_normal((1, 720))
        self._iris_noise = blur(grain, 2.2)[0]
        self._brow = paint_brow(person, at, side, self.box)

    def paint(self, skin: Bytes, pose: Pose) -> None:
        """Draw into skin, uint8 (h, w, 3) of `self.box`, in place."""
        blink = float(np.clip(pose.blink, 0, 1))
        low = floats(self._axis + self._low * (1 + 0.10 * pose.gaze_y) - 0.004 * blink * (1 - self._q**2).clip(0, 1))
        height = 1 - 0.16 * max(0.0, pose.gaze_y) + 0.14 * pose.brows
        open_top = floats(self._axis - self._high * height)
        top = floats(open_top + (low - 0.001 - open_top) * blink)
        under = np.square(skin.astype(np.float32) * np.float32(1 / 255))
        under = self._lid(under, top, open_top, low, blink)
        pixel = self.box.pixel
        edge = np.maximum(np.maximum(top - self._v, self._v - low), (np.abs(self._q) - 1) * self._at.eye_half)
        picture = mix(under, self._ball(top, pose), coverage(edge, 1.6 * pixel))
        picture = self._rims(picture, top, low, blink)
        shown = np.asarray(np.sqrt(np.clip(picture, 0, 1)) * 255 + 0.5, np.uint8)
        self._lashes(shown, top, blink)
        self._lay_brow(shown, pose)
        np.copyto(skin, shown)

    def _lid(self, skin: Floats, top: Floats, open_top: Floats, low: Floats, blink: float) -> Floats:
        """The crease above the lid, the lid itself, the soft shade at the corner."""
        span = 1 - smoothstep(0.80, 1.22, np.abs(self._q))
        crease = open_top - 0.0145 - 0.0035 * self._q + 0.006 * blink
        fold = 0.62 * (1 - 0.45 * blink) * np.exp(-np.square((self._v - crease) / np.float32(0.0042))) * span
        hollow = 0.22 * smoothstep(0.0, 0.010, crease - self._v) * smoothstep(0.045, 0.008, crease - self._v) * span
        pouch = 0.14 * np.exp(-np.square((self._v - low - 0.016) / np.float32(0.007))) * span
        lid = smoothstep(0.0, 0.006, self._v - crease) * smoothstep(0.0, 0.004, top - self._v) * span
        skin = skin * (1 + 0.10 * (1 - blink) * lid)[..., None]
        warm = skin * floats([0.30, 0.33, 0.48])
        return mix(floats(skin), warm, np.clip(fold + hollow + pouch, 0, 1).astype(np.float32))

    def _ball(self, top: Floats, pose: Pose) -> Floats:
        """The eyeball behind the lids, linear (h, w, 3)."""
        iris = IRIS * np.sqrt(self._person.eye_size)
        centre_u = self._side * self._at.eye_u + TRAVEL[0] * pose.gaze_x
        centre_v = self._at.eye_v - 0.004 + TRAVEL[1] * pose.gaze_y
        du, dv = self._u - np.float32(centre_u), self._v - np.float32(centre_v)
        r = np.hypot(du, dv)
        pixel = 1.6 * self.box.pixel
        round_off = 1 - 0.42 * np.clip(np.abs(self._q), 0, 1) ** 2.4
        pink = 0.55 * np.exp(-np.square((np.abs(self._q) - 1.0) / 0.22))
        white = mix(WHITE * floats(round_off)[..., None], floats([0.36, 0.38, 0.62]), pink)
        picture = mix(white, self._iris(du, dv, r / np.float32(iris)), coverage(r - np.float32(iris), pixel))
        picture = mix(picture, floats([0.006, 0.005, 0.005]), coverage(r - np.float32(PUPIL), pixel))
        picture = picture * (0.40 + 0.60 * smoothstep(-0.004, 0.024, self._v - top))[..., None]
        lamp = -1 if self._person.light.azimuth < 0 else 1
        glint = coverage(np.hypot(du - lamp * 0.013, dv + 0.014) - np.float32(0.0078), 1.4 * pixel)
        second = 0.35 * coverage(np.hypot(du + lamp * 0.014, dv - 0.014) - np.float32(0.0045), 1.6 * pixel)
        return mix(floats(picture), np.ones(3, np.float32), np.clip(0.95 * glint + second, 0, 1))

    def _iris(self, du: Floats, dv: Floats, r: Floats) -> Floats:
        angle = np.arctan2(dv, du)
        sector = ((angle / (2 * np.pi) + 0.5) * 719).astype(np.int32)
        streak = self._iris_noise[sector]
        streak *= 2.4 * smoothstep(0.35, 0.6, r) * smoothstep(1.0, 0.8, r)
        light = 0.72 + 0.75 * bump(du, dv, (0.006, 0.020), (0.022, 0.014)) + 0.10 * streak
        light = light * (1 - 0.80 * smoothstep(0.74, 1.02, r)) * (0.55 + 0.45 * smoothstep(0.38, 0.6, r))
        base = linear(self._person.eye_colour)
        inner = base * floats([0.75, 1.0, 1.35])
        colour = mix(np.broadcast_to(base, (*r.shape, 3)).astype(np.float32), inner, smoothstep(0.75, 0.42, r))
        return floats(1.25 * colour * light[..., None])

    def _rims(self, picture: Floats, top: Floats, low: Floats, blink: float) -> Floats:
        """The lash line above, the wet rim below."""
        reach = np.abs(self._q)
        span = 1 - smoothstep(0.96, 1.10, reach)
        strength = 0.0042 + 0.0030 * self._person.lashes
        width = strength * (0.75 + 0.35 * np.clip(self._q, -1, 1)) * (1 - 0.25 * blink)
        line = np.exp(-np.square((self._v - top + 0.35 * width) / width)) * span
        wet = 0.30 * np.exp(-np.square((self._v - low + 0.001) / np.float32(0.0035))) * span * (1 - blink)
        lash = 0.45 * np.exp(-np.square((self._v - low - 0.0035) / np.float32(0.0030))) * span
        picture = mix(picture, floats([0.42, 0.46, 0.66]), floats(wet))
        picture = mix(picture, picture * floats([0.30, 0.30, 0.42]), floats(lash))
        dark = linear(self._person.brow_colour) * np.float32(0.30)
        return mix(picture, dark, np.clip(0.96 * line, 0, 1).astype(np.float32))

    def _lashes(self, shown: Bytes, top: Floats, blink: float) -> None:
        """Upper lashes: fine wedges that fan out and lengthen towards the outer corner."""
        amount = self._person.lashes
        if amount < 0.3:
            return
        middle, half = self._side * self._at.eye_u, self._at.eye_half
        ink = tuple(float(255 * c * 0.40) for c in self._person.brow_colour)
        for place in np.linspace(-0.30, 1.0, 17):
            u = middle + self._side * place * half
            column = round((u + 1) / 2 * self.box.canvas) - self.box.left
            v = float(top[0, min(max(column, 0), top.shape[1] - 1)]) + 0.001
            length = (0.004 + 0.020 * amount * float(np.clip(place + 0.3, 0, 1)) ** 1.3) * (1 - 0.15 * blink)
            rise = -length * (0.85 - 1.35 * blink) * (1 - 0.45 * max(place, 0.0))
            bend = self._side * length * (0.10 + 0.85 * max(place, 0.0))
            spine = spline([(u, v), (u + 0.55 * bend, v + 0.30 * rise), (u + bend, v + rise)], 6)
            width = 0.0021 * np.linspace(1, 0, 6, dtype=np.float32)[:, None] * floats([[1, 0]])
            ring = self.box.subpixels(np.vstack([spine - width, (spine + width)[::-1]]))
            cv2.fillPoly(shown, [ring], ink, cv2.LINE_AA, SUBPIXEL_BITS)

    def _lay_brow(self, shown: Bytes, pose: Pose) -> None:
        lift = -0.020 * pose.brows + 0.004 * pose.blink
        shift = np.array([[1, 0, 0], [0, 1, lift / self.box.pixel]], np.float32)
        brow = cv2.warpAffine(self._brow, shift, (shown.shape[1], shown.shape[0]), flags=cv2.INTER_LINEAR)
        rest = 255 - brow[..., 3:].astype(np.uint16)
        np.copyto(shown, (brow[..., :3] + (shown * rest + 127) // 255).astype(np.uint8))
