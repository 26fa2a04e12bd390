"""Procedural portraits: people who do not exist, drawn in any pose with any mouth, from numbers alone.

`Portrait(identity).render(pose, mouth)` gives a frame and `.geometry(pose, mouth)` the truth about it; `idle_motion`
gives poses of a seamless loop. Nothing here knows of speech, networks or services.
"""

from export.portrait.controls import REST_MOUTH, REST_POSE, Mouth, Pose
from export.portrait.identity import BUNDLED, LISA, LUCY, MARK, Identity
from export.portrait.motion import idle_motion
from export.portrait.portrait import FaceGeometry, Portrait

__all__ = [
    "BUNDLED",
    "LISA",
    "LUCY",
    "MARK",
    "REST_MOUTH",
    "REST_POSE",
    "FaceGeometry",
    "Identity",
    "Mouth",
    "Portrait",
    "Pose",
    "idle_motion",
]
