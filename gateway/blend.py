"""Puts a generated face into a frame. Knows arrays of one frame, nothing else.

MuseTalk resizes the face to its box, pastes it into the picture and composites with the mask (PIL's rounding); here the
same happens on the Y, U and V planes of the region under the mask, so pixels outside it keep the source's own values.
"""

import cv2
import numpy as np

from lipserve.avatar import Avatar
from lipserve.colour import U8, Planes, bgr_to_planes


def composite(target: U8, source: U8, mask: U8) -> None:
    """target = (target·(255 − mask) + source·mask) / 255, in place, rounded as PIL's paste does; all uint8 (h, w)."""
    m = mask.astype(np.uint16)
    mixed = target * (255 - m) + source * m + 128
    target[:] = ((mixed >> 8) + mixed) >> 8


def blend(avatar: Avatar, index: int, face: U8, target: Planes) -> None:
    """Fill `target` with the stored frame `index` and `face`, uint8 (256, 256, 3) BGR, in its place.

    A frame without a face is copied as it is. Nothing of the frame's size is allocated, only of the region's. Raises
    AvatarDamaged.
    """
    y, u, v = target
    avatar.read_frame(index, target)
    record = avatar.regions[index]
    if not record["has_face"]:
        return
    x1, y1, x2, y2 = (int(v) for v in record["face"])
    left, top, right, bottom = (int(v) for v in record["region"])
    resized = cv2.resize(face, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
    # The region's even sides may reach a pixel past the box, where the mask is 0.
    margins = (max(y1 - top, 0), max(bottom - y2, 0), max(x1 - left, 0), max(right - x2, 0))
    grown = cv2.copyMakeBorder(resized, *margins, cv2.BORDER_REPLICATE) if any(margins) else resized
    row, column = top - y1 + margins[0], left - x1 + margins[2]
    patch = np.asarray(grown[row : row + bottom - top, column : column + right - left], np.uint8)
    mask = avatar.mask(index)
    half_mask = cv2.resize(mask, (mask.shape[1] // 2, mask.shape[0] // 2), interpolation=cv2.INTER_AREA)
    new_y, new_u, new_v = bgr_to_planes(patch, avatar.info.tags.matrix)
    composite(y[top:bottom, left:right], new_y, mask)
    half = (slice(top // 2, bottom // 2), slice(left // 2, right // 2))
    composite(u[half], new_u, half_mask.astype(np.uint8, copy=False))
    composite(v[half], new_v, half_mask.astype(np.uint8, copy=False))
