"""The still skin of the head: skull, features without eyes, lips and hair, ears. Painted once per portrait."""

from __future__ import annotations

import numpy as np

from export.portrait.anatomy import Anatomy
from export.portrait.geometry import Box, Bytes, Floats, bump, coverage, floats, profile, smoothstep
from export.portrait.hairstyles import covers_ears
from export.portrait.identity import Identity
from export.portrait.shading import blur, display, illuminate, layer, linear, mix, noise, normals, occlusion, over

DOME = 0.42  # depth of the head in front of its outline


def relief(person: Identity, at: Anatomy, u: Floats, v: Floats) -> Floats:
    """Height of the face towards the viewer, portrait units: float32 (h, w). Eyes shut, no lips."""
    side = np.abs(u)
    r = np.minimum(at.radius(u, v), 1)
    z = DOME * np.sqrt(1 - r**2.3)
    old, full = np.float32(person.age), np.float32(person.cheeks)

    # Brow ridge, sockets, eyeballs behind their lids.
    z += 0.014 * bump(side, v, (at.eye_u, at.brow_v + 0.01), (0.11, 0.030))
    z -= 0.040 * bump(side, v, (at.eye_u - 0.01, at.eye_v - 0.012), (0.085, 0.050))
    z -= 0.016 * bump(side, v, (at.eye_u - at.eye_half, at.eye_v), (0.030, 0.035))
    z += 0.026 * bump(side, v, (at.eye_u, at.eye_v + 0.002), (0.060, 0.042))
    z -= (0.003 + 0.006 * old) * bump(side, v, (at.eye_u - 0.015, at.eye_v + 0.062), (0.055, 0.012))

    # Cheeks, temples, jaw.
    z += (0.020 + 0.014 * full) * bump(side, v, (0.70 * at.face_half, at.eye_v + 0.16), (0.085, 0.075))
    z -= 0.012 * (1 - full) * bump(side, v, (0.72 * at.face_half, at.mouth_v - 0.02), (0.06, 0.08))
    z -= 0.012 * bump(side, v, (0.95 * at.face_half, at.eye_v - 0.11), (0.06, 0.09))

    # Muzzle under the lips, philtrum, chin and the dip above it.
    z += 0.030 * bump(u, v, (0, at.mouth_v), (0.105, 0.075))
    z -= 0.006 * bump(u, v, (0, (at.nose_v + at.mouth_v) / 2), (0.010, 0.022))
    z += 0.004 * bump(side, v, (0.021, (at.nose_v + at.mouth_v) / 2), (0.009, 0.022))
    z -= 0.014 * bump(u, v, (0, at.mouth_v + 0.40 * (at.chin_v - at.mouth_v)), (0.075, 0.022))
    z += 0.034 * bump(u, v, (0, at.mouth_v + 0.72 * (at.chin_v - at.mouth_v)), (0.072 + 0.03 * person.chin, 0.048))

    # The fold from the nose to the corner of the mouth.
    down = np.clip((v - at.nose_v + 0.02) / (at.mouth_v - at.nose_v + 0.02), 0, 1.3)
    fold = side - (at.nose_half + 0.018 + (at.mouth_half + 0.012 - at.nose_half) * down)
    z -= (0.0015 + 0.006 * old) * np.exp(-((fold / 0.014) ** 2)) * smoothstep(0, 0.5, down) * (1 - down / 1.3)

    # Forehead lines.
    lines = np.sin((v - at.brow_v) / 0.034 * 2 * np.pi * 0.5 + 1.2 * np.cos(u * 6))
    z += 0.0012 * max(0.0, person.age - 0.25) * lines * bump(u, v, (0, at.brow_v - 0.15), (0.14, 0.06))
    return floats(z + _nose(person, at, u, v))


def _nose(person: Identity, at: Anatomy, u: Floats, v: Floats) -> Floats:
    side = np.abs(u)
    root, base = at.eye_v - 0.03, at.nose_v
    tip = base - 0.045
    bridge = 0.018 + 0.022 * person.nose_bridge
    ridge = profile(
        [(root - 0.10, 0), (root, 0.7 * bridge), ((root + tip) / 2, bridge + 0.016), (tip - 0.02, 0.072),
         (tip + 0.008, 0.078), (base - 0.006, 0.046), (base + 0.022, 0.006), (base + 0.05, 0)], v
    )  # fmt: skip
    spread = profile(
        [(root - 0.10, 0.05), (root, 0.030), ((root + tip) / 2, 0.027), (tip, 0.037), (base, 0.042)], v
    ) * np.float32(0.4 + 0.6 * person.nose_width)
    z = ridge * np.exp(-((side / (1.45 * spread)) ** 2.4))
    wing = (0.74 * at.nose_half, base - 0.030)
    z += 0.034 * bump(side, v, wing, (0.020 * person.nose_width, 0.023))
    z -= 0.005 * bump(side, v, (at.nose_half + 0.006, base - 0.024), (0.010, 0.018))
    return floats(z)


def paint_skin(person: Identity, at: Anatomy, canvas: int) -> Bytes:
    """The bare head with ears: premultiplied uint8 (n, n, 4)."""
    box = Box.whole(canvas)
    u, v = box.grid()
    pixel = box.pixel
    z = blur(relief(person, at, u, v), 0.0035 / pixel)
    z = floats(z)
    albedo = _albedo(person, at, u, v)
    gloss = 0.085 * (
        0.55 + 0.6 * bump(u, v, (0, at.nose_v - 0.06), (0.05, 0.10)) + 0.3 * bump(u, v, (0, -0.4), (0.2, 0.1))
    )
    light = illuminate(normals(z, pixel), albedo, person.light, occlusion(z, pixel, 0.8), gloss.astype(np.float32))
    light = _nostrils(light, person, at, u, v)
    inside = coverage((at.radius(u, v) - 1) * np.float32(0.36), 1.5 * pixel)
    head = layer(display(light), inside)
    if covers_ears(person.hair):
        return head
    return over(_ears(person, at, u, v, pixel), head)


def _albedo(person: Identity, at: Anatomy, u: Floats, v: Floats) -> Floats:
    side = np.abs(u)
    skin = linear(person.skin)
    albedo = np.broadcast_to(skin, (*u.shape, 3)).astype(np.float32)
    flushed = skin * floats([0.70, 0.68, 1.0])
    shadowed = skin * floats([0.80, 0.70, 0.74])
    blush = person.blush * (
        0.75 * bump(side, v, (0.66 * at.face_half, at.eye_v + 0.19), (0.085, 0.070))
        + 0.55 * bump(u, v, (0, at.nose_v - 0.045), (0.055, 0.045))
        + 0.30 * bump(u, v, (0, at.chin_v - 0.07), (0.09, 0.05))
        + 0.25 * bump(u, v, (0, at.brow_v - 0.14), (0.20, 0.07))
    )
    albedo = mix(albedo, flushed, np.clip(blush, 0, 1))
    socket = 0.35 * bump(side, v, (at.eye_u, at.eye_v - 0.045), (0.075, 0.026))
    under = (0.12 + 0.25 * person.age) * bump(side, v, (at.eye_u - 0.015, at.eye_v + 0.055), (0.060, 0.018))
    albedo = mix(albedo, shadowed, np.clip(socket + under, 0, 1))
    if person.stubble > 0:
        albedo = mix(albedo, albedo * floats([0.60, 0.55, 0.52]), person.stubble * _beard(at, u, v))
    tone = noise(len(u), person.seed, (5, 5), 3) * 0.012 + noise(len(u), person.seed + 1, (60, 60), 2) * 0.006
    return floats(albedo * (1 + tone[..., None]))


def _beard(at: Anatomy, u: Floats, v: Floats) -> Floats:
    """Where a beard would grow, 0 ... 1."""
    side = np.abs(u)
    cheek = at.mouth_v - 0.02 - 0.9 * np.clip(side - 0.13, 0, 1) + 0.02
    low = smoothstep(-0.03, 0.06, v - cheek) * smoothstep(0.03, 0.13, side + np.clip(v - at.mouth_v - 0.03, 0, 1))
    lip = bump(u, v, (0, at.mouth_v - 0.055), (0.075, 0.018))
    return np.clip(0.8 * low + 0.7 * lip, 0, 1).astype(np.float32)


def _nostrils(light: Floats, person: Identity, at: Anatomy, u: Floats, v: Floats) -> Floats:
    side = np.abs(u)
    along = (side - 0.44 * at.nose_half) / np.float32(0.25 * at.nose_half)
    across = (v - (at.nose_v - 0.004) - 0.22 * (0.44 * at.nose_half - side)) / np.float32(0.0085)
    hole = 1 - smoothstep(0.35, 1.35, np.hypot(along, across))
    dark = linear(person.skin) * floats([0.10, 0.10, 0.20])
    under = 0.30 * bump(u, v, (0, at.nose_v + 0.012), (0.045, 0.009))
    return mix(light * (1 - under[..., None]), dark, 0.80 * hole)


def _ears(person: Identity, at: Anatomy, u: Floats, v: Floats, pixel: float) -> Bytes:
    side = np.abs(u)
    top, bottom = at.eye_v - 0.045, at.nose_v - 0.010
    centre = ((at.face_half + 0.002), (top + bottom) / 2)
    lean = side - 0.10 * (centre[1] - v)
    along, across = (v - centre[1]) / floats((bottom - top) / 2), (lean - centre[0]) / np.float32(0.044)
    across = across / (1 - 0.28 * np.clip(along, -1, 1))
    r = np.hypot(along, across)
    z = 0.05 * np.sqrt(np.clip(1 - r**2, 0, 1)) + 0.020 * np.exp(-(((r - 0.80) / 0.13) ** 2))
    z -= 0.030 * np.exp(-((np.hypot(along * 1.2 - 0.05, across * 1.4 + 0.25) / 0.5) ** 2))
    z = blur(z, 0.003 / pixel)
    ear = linear(person.skin) * floats([0.78, 0.78, 0.98])
    gloss = np.full_like(z, 0.03)
    light = illuminate(normals(floats(z), pixel), ear, person.light, occlusion(z, pixel, 1.4), gloss)
    return layer(display(light * np.float32(0.86)), coverage((r - 1) * np.float32(0.05), 1.5 * pixel))
