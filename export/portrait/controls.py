"""What moves: the pose of the head and the shape of the mouth. Numbers only; how they look is drawn elsewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pose:
    """Head, eyes and breath at one instant. The default looks straight ahead with open eyes."""

    x: float = 0.0  # head to the right, portrait units (the frame is 2 wide)
    y: float = 0.0  # head down, portrait units
    roll: float = 0.0  # radians, clockwise
    yaw: float = 0.0  # radians, the nose to the right; believable to 0.2
    pitch: float = 0.0  # radians, the nose down; believable to 0.15
    blink: float = 0.0  # 0 open ... 1 shut
    gaze_x: float = 0.0  # -1 left ... 1 right
    gaze_y: float = 0.0  # -1 up ... 1 down
    brows: float = 0.0  # -1 lowered ... 1 raised
    breath: float = 0.0  # -1 out ... 1 in: shoulders rise


@dataclass(frozen=True)
class Mouth:
    """The mouth at one instant, each part on its own scale. The default is shut and at rest."""

    jaw: float = 0.0  # 0 shut ... 1 dropped: moves the chin
    open: float = 0.0  # 0 lips meet ... 1 widest gap between the inner lips
    width: float = 0.0  # -1 drawn in ... 1 spread ("ee")
    round: float = 0.0  # 0 flat ... 1 rounded and pushed forward ("oo")
    press: float = 0.0  # 0 ... 1 lips rolled in and pressed (p, b, m)
    tuck: float = 0.0  # 0 ... 1 lower lip against the upper teeth (f, v)
    teeth: float = 0.5  # 0 upper teeth behind the lip ... 1 in full view, when the lips part
    tongue: float = 0.0  # 0 low ... 1 tip at the upper teeth (l, th)
    smile: float = 0.0  # -1 corners down ... 1 corners up


REST_POSE = Pose()
REST_MOUTH = Mouth()
