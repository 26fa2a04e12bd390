"""Who is drawn: every constant of one person, three fixed people, and a sampler of new ones.

Proportions are factors around 1; ages and amounts run 0 ... 1. Nothing here knows how a feature is painted.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from export.portrait.shading import Colour, Light

Hair: TypeAlias = Literal["bald", "buzz", "short", "swept", "bob", "long", "tied", "curls"]
Clothing: TypeAlias = Literal["crew", "vneck", "shirt", "jacket"]


LAMP = Light(azimuth=-0.45, warmth=0.6)


@dataclass(frozen=True)
class Identity:
    """One person, their clothes, their wall and their lamp."""

    name: str
    seed: int  # of strands, folds and bokeh
    skin: Colour
    blush: float = 0.5
    age: float = 0.2
    face_width: float = 1.0
    face_length: float = 1.0
    cheeks: float = 0.5  # hollow ... full
    jaw: float = 0.5  # tapered ... square
    chin: float = 0.5  # pointed ... broad
    neck: float = 1.0
    eye_size: float = 1.0
    eye_spacing: float = 1.0
    eye_tilt: float = 0.5  # outer corner low ... high
    eye_colour: Colour = (0.20, 0.34, 0.45)
    lashes: float = 0.5
    brow_colour: Colour = (0.12, 0.15, 0.20)
    brow_weight: float = 1.0
    brow_height: float = 0.5
    brow_arch: float = 0.5
    nose_width: float = 1.0
    nose_length: float = 1.0
    nose_bridge: float = 0.5  # low ... high
    mouth_width: float = 1.0
    upper_lip: float = 1.0
    lower_lip: float = 1.0
    lip_colour: Colour = (0.42, 0.42, 0.75)
    hair: Hair = "short"
    hair_colour: Colour = (0.12, 0.17, 0.26)
    hair_volume: float = 0.5
    parting: float = 0.3  # -1 left ... 1 right
    stubble: float = 0.0
    clothing: Clothing = "crew"
    cloth: Colour = (0.45, 0.30, 0.20)
    accent: Colour = (0.92, 0.93, 0.94)  # shirt under a jacket
    backdrop: Colour = (0.62, 0.60, 0.58)
    backdrop_accent: Colour = (0.55, 0.66, 0.74)
    light: Light = LAMP

    @classmethod
    def random(cls, rng: np.random.Generator) -> Identity:
        """A person nobody has drawn before. The same generator state gives the same person."""
        between = rng.uniform
        depth = float(between(0, 1)) ** 1.2
        skin = _skin(depth, float(between(-1, 1)))
        masculine = bool(rng.random() < 0.5)
        hair = _hair_style(masculine, rng)
        hair_colour = _hair_colour(depth, rng)
        age = float(between(0, 0.9))
        if rng.random() < 0.8 * max(0.0, age - 0.45):
            grey = float(between(0.28, 0.55))
            hair_colour = (grey, grey, grey)
        weight = float(between(0.9, 1.3) if masculine else between(0.65, 1.0))
        lip = _lip_colour(skin, 0.25 if masculine else float(between(0.3, 0.9)))
        return cls(
            name=f"person-{rng.integers(1_000_000):06d}",
            seed=int(rng.integers(2**31)),
            skin=skin,
            blush=float(between(0.15, 0.8)),
            age=age,
            face_width=float(between(0.88, 1.13)),
            face_length=float(between(0.91, 1.08)),
            cheeks=float(between(0.1, 0.95)),
            jaw=float(between(0.45, 1.0) if masculine else between(0.1, 0.6)),
            chin=float(between(0.2, 0.9)),
            neck=float(between(1.02, 1.2) if masculine else between(0.85, 1.0)),
            eye_size=float(between(0.82, 1.12)),
            eye_spacing=float(between(0.93, 1.07)),
            eye_tilt=float(between(0.2, 0.9)),
            eye_colour=_eye_colour(depth, rng),
            lashes=float(between(0.1, 0.4) if masculine else between(0.4, 1.0)),
            brow_colour=_scaled(hair_colour, 0.75),
            brow_weight=weight,
            brow_height=float(between(0.2, 0.8)),
            brow_arch=float(between(0.1, 0.9)),
            nose_width=float(between(0.8, 1.35)),
            nose_length=float(between(0.88, 1.1)),
            nose_bridge=float(between(0.2, 0.9)),
            mouth_width=float(between(0.85, 1.18)),
            upper_lip=float(between(0.6, 1.35)),
            lower_lip=float(between(0.65, 1.35)),
            lip_colour=lip,
            hair=hair,
            hair_colour=hair_colour,
            hair_volume=float(between(0.1, 0.9)),
            parting=float(between(0.15, 0.7) * rng.choice([-1, 1])),
            stubble=float(between(0.1, 0.9)) if masculine and rng.random() < 0.5 else 0.0,
            clothing=_CLOTHING[int(rng.integers(len(_CLOTHING)))],
            cloth=_fabric(rng),
            accent=_scaled((1.0, 1.0, 1.0), float(between(0.7, 0.95))),
            backdrop=_wall(rng),
            backdrop_accent=_wall(rng),
            light=Light(azimuth=float(between(0.15, 0.65) * rng.choice([-1, 1])), warmth=float(between(0.1, 0.9))),
        )


_CLOTHING: tuple[Clothing, ...] = ("crew", "vneck", "shirt", "jacket")

# From very fair to very deep, display BGR.
_SKIN_RAMP = np.array([
    (0.80, 0.86, 0.96), (0.68, 0.78, 0.93), (0.58, 0.70, 0.86), (0.44, 0.56, 0.74), (0.31, 0.41, 0.58),
    (0.20, 0.28, 0.42),
])  # fmt: skip


def _skin(depth: float, undertone: float) -> Colour:
    place = depth * (len(_SKIN_RAMP) - 1)
    blue, green, red = (float(np.interp(place, range(len(_SKIN_RAMP)), _SKIN_RAMP[:, c])) for c in range(3))
    return blue * (1 - 0.05 * undertone), green * (1 + 0.01 * undertone), red


def _lip_colour(skin: Colour, strength: float) -> Colour:
    """The skin's own colour, redder; strength 0 bare ... 1 lipstick."""
    blue, green, red = skin
    return blue * (0.74 - 0.16 * strength), green * (0.70 - 0.22 * strength), red * (0.93 - 0.05 * strength)


def _hair_style(masculine: bool, rng: np.random.Generator) -> Hair:
    styles: tuple[Hair, ...] = (
        ("bald", "buzz", "short", "swept", "short", "swept", "curls", "long")
        if masculine
        else ("short", "bob", "bob", "long", "long", "tied", "tied", "curls")
    )
    return styles[int(rng.integers(len(styles)))]


def _hair_colour(depth: float, rng: np.random.Generator) -> Colour:
    """Any colour goes with fair skin; deep skin mostly has dark hair."""
    ramp = np.array(
        [(0.07, 0.08, 0.10), (0.10, 0.13, 0.19), (0.15, 0.22, 0.34), (0.16, 0.28, 0.50), (0.42, 0.60, 0.76)]
    )
    place = float(rng.uniform(0, 1)) * (len(ramp) - 1) * (1 - 0.8 * min(1.0, 1.4 * depth))
    blue, green, red = (float(np.interp(place, range(len(ramp)), ramp[:, c])) for c in range(3))
    return blue, green, red


def _eye_colour(depth: float, rng: np.random.Generator) -> Colour:
    light_eyes: tuple[Colour, ...] = ((0.62, 0.52, 0.36), (0.42, 0.52, 0.42), (0.24, 0.42, 0.50), (0.60, 0.58, 0.50))
    dark_eyes: tuple[Colour, ...] = ((0.10, 0.18, 0.28), (0.14, 0.26, 0.40), (0.08, 0.13, 0.20))
    choice = light_eyes if rng.random() > 0.35 + depth else dark_eyes
    return choice[int(rng.integers(len(choice)))]


def _fabric(rng: np.random.Generator) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.04, 0.55), rng.uniform(0.15, 0.68))
    return blue, green, red


def _wall(rng: np.random.Generator) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.02, 0.24), rng.uniform(0.35, 0.8))
    return blue, green, red


def _scaled(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


LISA = Identity(
    name="lisa",
    seed=11,
    skin=(0.66, 0.76, 0.93),
    blush=0.5,
    age=0.1,
    face_width=0.99,
    cheeks=0.6,
    jaw=0.3,
    chin=0.4,
    neck=0.92,
    eye_size=1.08,
    eye_tilt=0.6,
    eye_colour=(0.36, 0.50, 0.42),
    lashes=0.8,
    brow_colour=(0.14, 0.20, 0.30),
    brow_weight=0.8,
    brow_arch=0.6,
    nose_width=0.95,
    mouth_width=1.02,
    upper_lip=1.0,
    lower_lip=1.05,
    lip_colour=(0.45, 0.43, 0.79),
    hair="long",
    hair_colour=(0.13, 0.20, 0.34),
    hair_volume=0.5,
    parting=0.35,
    clothing="jacket",
    cloth=(0.42, 0.38, 0.16),
    accent=(0.90, 0.93, 0.95),
    backdrop=(0.76, 0.81, 0.85),
    backdrop_accent=(0.60, 0.76, 0.88),
    light=Light(azimuth=-0.45, warmth=0.6),
)

LUCY = Identity(
    name="lucy",
    seed=23,
    skin=(0.31, 0.44, 0.64),
    blush=0.45,
    age=0.1,
    face_width=1.0,
    cheeks=0.75,
    jaw=0.3,
    chin=0.45,
    neck=0.9,
    eye_size=1.08,
    eye_tilt=0.65,
    eye_colour=(0.12, 0.21, 0.34),
    lashes=1.0,
    brow_colour=(0.06, 0.08, 0.12),
    brow_weight=0.85,
    brow_arch=0.65,
    nose_width=1.15,
    nose_bridge=0.35,
    mouth_width=1.06,
    upper_lip=1.25,
    lower_lip=1.2,
    lip_colour=(0.30, 0.28, 0.60),
    hair="curls",
    hair_colour=(0.07, 0.09, 0.14),
    hair_volume=0.7,
    parting=0.3,
    clothing="crew",
    cloth=(0.20, 0.58, 0.82),
    backdrop=(0.62, 0.62, 0.50),
    backdrop_accent=(0.50, 0.66, 0.62),
    light=Light(azimuth=-0.4, warmth=0.6),
)

MARK = Identity(
    name="mark",
    seed=37,
    skin=(0.58, 0.70, 0.88),
    blush=0.35,
    age=0.4,
    face_width=1.02,
    face_length=1.03,
    cheeks=0.35,
    jaw=0.8,
    chin=0.7,
    neck=1.12,
    eye_size=0.95,
    eye_tilt=0.45,
    eye_colour=(0.58, 0.48, 0.32),
    lashes=0.25,
    brow_colour=(0.09, 0.11, 0.15),
    brow_weight=1.15,
    brow_height=0.35,
    brow_arch=0.3,
    nose_width=1.05,
    nose_bridge=0.75,
    mouth_width=1.06,
    upper_lip=0.8,
    lower_lip=0.85,
    lip_colour=(0.45, 0.47, 0.76),
    hair="swept",
    hair_colour=(0.09, 0.12, 0.17),
    parting=-0.45,
    stubble=0.5,
    clothing="shirt",
    cloth=(0.72, 0.56, 0.40),
    backdrop=(0.52, 0.46, 0.40),
    backdrop_accent=(0.60, 0.62, 0.66),
    light=Light(azimuth=0.45, warmth=0.5),
)

BUNDLED = {person.name: person for person in (LISA, LUCY, MARK)}
