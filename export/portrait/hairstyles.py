"""The shapes of hair: each style as sheets of strands between guide curves. How strands look is not known here.

Points are (u, v) in portrait units. Arcs are measured about the middle of the skull, 0 straight up, positive to the
right, pi / 2 level with the eyes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from export.portrait.anatomy import Anatomy
from export.portrait.identity import Hair, Identity

Point = tuple[float, float]
Guide = tuple[Point, ...]


@dataclass(frozen=True)
class Sheet:
    """Strands that run between guides, each from root to tip."""

    guides: tuple[Guide, ...]
    count: int
    back: bool = False  # behind the neck
    wave: float = 0.0  # swing to the side, portrait units
    waves: float = 2.0  # swings along the strand
    coil: bool = False  # swing around, not only aside
    lock: int = 28  # strands that swing and shine together
    ragged: float = 0.08  # how unevenly strands end, share of their length
    roots: float = 0.0  # how unevenly strands begin
    crop: float = 1.0  # below 1: strands this long that start anywhere along the guides
    shade: float = 1.0  # brightness of the sheet as a whole
    gleam: float = 1.0  # strength of the highlight
    inset: float = 0.03  # the ground stays this far inside the first guide, share of the sheet
    fill: float = 0.92  # dark ground under this share of the guides; 0 none


@dataclass(frozen=True)
class Scalp:
    """Hairline and outline of the hair of one head."""

    at: Anatomy
    rise: float  # hair above the skull
    swell: float  # hair beside the skull

    def outer(self, angle: float) -> Point:
        """On the outline of the hair."""
        s, c = float(np.sin(angle)), float(np.cos(angle))
        bare = float(np.interp(min(abs(angle), np.pi), self.at.outline[:, 0], self.at.outline[:, 1]))
        skull = max(bare, 1.02 * self.at.face_half) if abs(angle) > 1 else bare
        r = skull + self.swell * s * s + self.rise * max(c, 0.0) ** 2
        return r * s, self.at.eye_v - r * c

    def line(self, angle: float) -> Point:
        """On the hairline: square across the forehead, down the temples."""
        up = self.at.eye_v - self.at.crown_v - 0.155
        s, c = abs(float(np.sin(angle))), max(float(np.cos(angle)), 0.0)
        r = (s**2.4 + c**2.4) ** (-1 / 2.4)
        return 0.975 * self.at.face_half * r * float(np.sin(angle)), self.at.eye_v - up * r * float(np.cos(angle))

    def between(self, angle: float, share: float) -> Point:
        """From the hairline (0) to the outline (1)."""
        low, high = self.line(angle), self.outer(angle)
        return low[0] + share * (high[0] - low[0]), low[1] + share * (high[1] - low[1])


def sheets_of(person: Identity, at: Anatomy) -> list[Sheet]:
    """The sheets of one head, in the order they are painted."""
    return _STYLES[person.hair](person, at)


def covers_ears(hair: Hair) -> bool:
    return hair in ("long", "bob", "curls")


def _bald(person: Identity, at: Anatomy) -> list[Sheet]:
    return []


def _curtains(person: Identity, at: Anatomy, fall: Callable[[float, float], Guide], wave: float) -> list[Sheet]:
    """Hair from a parting over the temples and down. fall(share, side): the hanging part of a guide."""
    scalp = Scalp(at, rise=0.050 + 0.035 * person.hair_volume, swell=0.055 + 0.050 * person.hair_volume)
    parting = 0.34 * float(np.sign(person.parting)) * (0.5 + abs(person.parting))
    sheets = []
    for side in (-1, 1):
        dip = 0.42 if side * parting < 0 else 0.12  # the wider curtain sweeps over the forehead

        def guide(share: float, side: int = side, dip: float = dip) -> Guide:
            start = parting * (1 - 0.5 * share) - 0.10 * side * share  # curtains cross at the crown
            places = np.linspace(0, 1, 7)
            shares = share - dip * (1 - share) ** 2 * np.sin(np.pi * places**0.85)
            over = tuple(
                scalp.between(start + float(p) * (side * 1.48 - start), float(s))
                for p, s in zip(places, shares, strict=True)
            )
            return over + fall(share, side)

        guides = tuple(guide(share) for share in (0.0, 0.3, 0.65, 1.0))
        sheets.append(Sheet(guides, count=1700, wave=wave, waves=2.2, lock=40, ragged=0.09))
    return sheets[::-1] if parting > 0 else sheets  # the wider curtain lies over the narrower one


def _long(person: Identity, at: Anatomy) -> list[Sheet]:
    half = at.face_half
    back = Sheet(
        guides=tuple(
            ((0.80 * x, -0.45), (1.05 * x, 0.0), (1.18 * x, 0.35), (1.08 * x, 0.80 + 0.25 * x * x))
            for x in (-1.25 * half, -0.6 * half, 0.0, 0.6 * half, 1.25 * half)
        ),
        count=900, back=True, wave=0.006, shade=0.55, gleam=0.4, ragged=0.10,
    )  # fmt: skip

    def fall(share: float, side: float) -> Guide:
        wide = half + 0.005 + (0.105 + 0.04 * person.hair_volume) * share
        return (
            (side * wide, 0.13),
            (side * (wide + 0.03), 0.40),
            (side * (wide + 0.015), 0.62),
            (side * (wide - 0.03), 0.86),
        )

    return [back, *_curtains(person, at, fall, wave=0.017)]


def _bob(person: Identity, at: Anatomy) -> list[Sheet]:
    half, end = at.face_half, at.chin_v - 0.06
    back = Sheet(
        guides=tuple(
            ((0.8 * x * half, -0.45), (1.1 * x * half, 0.0), (1.05 * x * half, end - 0.01))
            for x in (-1.1, 0.0, 1.1)
        ),
        count=600, back=True, shade=0.5, gleam=0.4,
    )  # fmt: skip

    def fall(share: float, side: float) -> Guide:
        wide = half + (0.10 + 0.05 * person.hair_volume) * share
        return ((side * (wide + 0.005), 0.08), (side * (wide + 0.01), end - 0.16), (side * (wide - 0.055), end + 0.01))

    return [back, *_curtains(person, at, fall, wave=0.004)]


def _crop(at: Anatomy, scalp: Scalp, shade: float = 0.8) -> list[Sheet]:
    """Short sides: from the temple down to before the ear."""
    half, sheets = at.face_half, []
    for side in (-1, 1):
        guides = tuple(
            (*(scalp.between(side * angle, share) for angle in (0.45, 0.75, 1.05, 1.35)),
             (side * (0.964 + 0.045 * share) * half, at.eye_v + 0.025),
             (side * (0.978 + 0.012 * share) * half, at.eye_v + 0.085 - 0.02 * share))
            for share in (0.0, 0.5, 1.0)
        )  # fmt: skip
        sheets.append(
            Sheet(guides=guides, count=1700, crop=0.16, ragged=0.2, shade=shade, gleam=0.5, inset=0.2, fill=0.94)
        )
    return sheets


def _spokes(scalp: Scalp, low: float, high: float, spread: float, count: int) -> tuple[Guide, ...]:
    """Guides that rise from the hairline to the outline, from one temple to the other."""
    angles = np.linspace(-spread, spread, count)
    return tuple(tuple(scalp.between(float(a), float(s)) for s in np.linspace(low, high, 5)) for a in angles)


def _buzz(person: Identity, at: Anatomy) -> list[Sheet]:
    scalp = Scalp(at, rise=0.018, swell=0.012)
    top = Sheet(_spokes(scalp, 0.0, 1.0, 1.1, 11), 4200, crop=0.16, ragged=0.3, shade=0.85, gleam=0.25, fill=0.99)
    return [*_crop(at, scalp, 0.82), top]


def _short(person: Identity, at: Anatomy) -> list[Sheet]:
    scalp = Scalp(at, rise=0.040 + 0.040 * person.hair_volume, swell=0.028)
    lean = 0.10 * float(np.sign(person.parting))

    def guide(angle: float) -> Guide:
        return (
            scalp.between(angle, -0.08),
            scalp.between(angle + lean, 0.35),
            scalp.between(angle + 2 * lean, 0.80),
            scalp.between(angle + 2.6 * lean, 1.0),
        )

    guides = tuple(guide(float(a)) for a in np.linspace(-1.02, 1.02, 9))
    top = Sheet(guides, count=2200, wave=0.004, waves=1.5, ragged=0.25, fill=0.86)
    under = Sheet(_spokes(scalp, 0.05, 0.95, 1.1, 11), 500, shade=0.7, gleam=0.4)
    return [*_crop(at, Scalp(at, rise=0.03, swell=0.024)), under, top]


def _swept(person: Identity, at: Anatomy) -> list[Sheet]:
    """Parted on one side, combed up and over to the other."""
    over = -float(np.sign(person.parting)) or 1.0
    scalp = Scalp(at, rise=0.070 + 0.045 * person.hair_volume, swell=0.030)
    start, stop = -0.66 * over, 1.02 * over

    def guide(place: float) -> Guide:
        angle = start + place * (stop - start)
        reach = over * (0.85 - 0.60 * place)
        return (
            scalp.between(angle, -0.05),
            scalp.between(angle + 0.06 * reach, 0.40),
            scalp.between(angle + 0.40 * reach, 0.84),
            scalp.between(angle + 0.95 * reach, 1.0 - 0.06 * place),
        )

    guides = tuple(guide(float(p)) for p in np.linspace(0, 1, 9))
    top = Sheet(guides, count=2600, wave=0.006, waves=1.1, ragged=0.16, fill=0.9)
    flat = Scalp(at, rise=0.035, swell=0.026)
    return [*_crop(at, flat), Sheet(_spokes(flat, 0.02, 0.97, 1.15, 11), 900, shade=0.74, gleam=0.5, fill=0.97), top]


def _tied(person: Identity, at: Anatomy) -> list[Sheet]:
    scalp = Scalp(at, rise=0.030 + 0.02 * person.hair_volume, swell=0.024)
    parting = 0.30 * person.parting
    knot_v = at.crown_v - 0.055
    bun = Sheet(
        guides=tuple(
            tuple((1.12 * r * float(np.sin(a)), knot_v - r * float(np.cos(a))) for a in np.linspace(-2.0, 2.0, 9))
            for r in (0.0, 0.06, 0.112)
        ),
        count=700, wave=0.006, waves=1.4, ragged=0.2, shade=0.86, fill=1.0,
    )  # fmt: skip
    sheets = [bun]
    for side in (-1, 1):
        angles = np.linspace(parting, side * 1.52, 7)
        guides = tuple(
            (
                scalp.line(float(a)),
                scalp.between(float(a) * 0.96, 0.30),
                scalp.between(float(a) * 0.86, 0.72),
                scalp.between(float(a) * 0.74, 1.0),
            )
            for a in angles
        )
        sheets.append(Sheet(guides=guides, count=1500, ragged=0.03, fill=0.99))
    return sheets


def _curls(person: Identity, at: Anatomy) -> list[Sheet]:
    swell = 0.10 + 0.09 * person.hair_volume
    scalp = Scalp(at, rise=swell + 0.01, swell=swell)

    def spokes(low: float, high: float, spread: float) -> tuple[Guide, ...]:
        """Guides from the hairline outwards, drawn in below the ears so that the outline closes."""
        angles = [float(a) for a in np.linspace(-spread, spread, 17)]
        ends = [high - 0.42 * max(0.0, abs(a) - 1.35) ** 1.5 for a in angles]
        return tuple(
            tuple(scalp.between(a, float(s)) for s in np.linspace(low, end, 5))
            for a, end in zip(angles, ends, strict=True)
        )

    def coils(guides: tuple[Guide, ...], count: int, waves: float, ragged: float, shade: float, fill: float) -> Sheet:
        sheet = Sheet(guides, count, wave=0.025, waves=waves, coil=True, lock=7, gleam=1.5)
        return replace(sheet, roots=0.10, ragged=ragged, shade=shade, fill=fill)

    return [
        replace(coils(spokes(-0.6, 0.97, 2.35), 1700, 4.5, 0.25, 0.50, 0.92), back=True),
        coils(spokes(0.02, 0.95, 1.72), 900, 4.0, 0.30, 0.70, 0.84),
        coils(spokes(0.30, 1.03, 1.80), 680, 3.4, 0.35, 0.95, 0),
        coils(spokes(0.0, 0.62, 1.60), 560, 3.0, 0.40, 1.10, 0),
    ]


_STYLES: dict[Hair, Callable[[Identity, Anatomy], list[Sheet]]] = {
    "bald": _bald,
    "buzz": _buzz,
    "short": _short,
    "swept": _swept,
    "bob": _bob,
    "long": _long,
    "tied": _tied,
    "curls": _curls,
}
