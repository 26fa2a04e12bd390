"""Chooses, in a clip with any number of faces, the one that speaks: the largest, followed through the clip.

Detections of neighbouring frames that overlap are one track; the track with the largest summed area wins. A face that
is away for a while is picked up again where it was lost; faces elsewhere are never taken for it. Who a face is, nobody
looks at: after a cut, somebody in the same place is the same face.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from avatar_prep.faces import F64, Face

SAME_FACE = 0.2  # smallest overlap (intersection over union) with the track's last box
LOOK_AHEAD = 256  # faces that are looked through at first for a track's next; twice as many each time after


@dataclass
class _Track:
    number: int  # by when it began
    faces: dict[int, Face] = field(default_factory=dict)  # by frame
    last_frame: int = -1
    last_box: F64 = field(default_factory=lambda: np.zeros(4))
    area: float = 0  # of all faces

    def add(self, frame: int, face: Face) -> None:
        self.faces[frame] = face
        self.last_frame, self.last_box = frame, np.array(face.box, np.float64)
        self.area += face.area


def follow_largest(
    detections: Sequence[Sequence[Face]], report: Callable[[], object] = lambda: None
) -> list[Face | None]:
    """Per frame, the followed face or None. `detections`: per frame, all faces found.

    `report` is called for every frame; what it raises ends the work.
    """
    clip = _Clip(detections)
    tracks: list[_Track] = []
    # Only tracks that some face of the frame could continue are looked at; one that no later face could is never again.
    due: defaultdict[int, list[_Track]] = defaultdict(list)
    for frame, faces in enumerate(detections):
        report()
        # The track seen last chooses first, so that an old one does not take a face over from a current one.
        waiting = sorted(due.pop(frame, []), key=lambda t: (-t.last_frame, t.number))
        chosen = _choose(waiting, clip.boxes[:, clip.starts[frame] : clip.starts[frame + 1]])
        for track, index in zip(waiting, chosen, strict=True):
            if index is not None:
                track.add(frame, faces[index])
        taken = set(chosen)
        for index, face in enumerate(faces):
            if index not in taken:
                tracks.append(_Track(len(tracks)))
                tracks[-1].add(frame, face)
                waiting.append(tracks[-1])
        for track in waiting:
            after = clip.next_frame(track.last_box, frame + 1)
            if after is not None:
                due[after].append(track)
    main = max(tracks, key=lambda track: track.area, default=_Track(0)).faces
    return [main.get(frame) for frame in range(len(detections))]


def _choose(tracks: Sequence[_Track], boxes: F64) -> list[int | None]:
    """Which of the boxes, (4, n), each track takes, or None: one by one, each the free one it overlaps most."""
    if not tracks:
        return []
    overlaps = _overlaps(np.stack([track.last_box for track in tracks], axis=1), boxes)
    chosen: list[int | None] = []
    for row in overlaps:
        best = int(row.argmax())
        if row[best] >= SAME_FACE:
            overlaps[:, best] = -1
            chosen.append(best)
        else:
            chosen.append(None)
    return chosen


class _Clip:
    """The boxes of all frames in one array, (4, n)."""

    def __init__(self, detections: Sequence[Sequence[Face]]) -> None:
        counts = [len(faces) for faces in detections]
        boxes = np.array([face.box for faces in detections for face in faces], np.float64).reshape(-1, 4)
        self.boxes: F64 = np.ascontiguousarray(boxes.T)
        self.starts: NDArray[np.int64] = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))  # by frame
        self._frames = np.repeat(np.arange(len(counts)), counts)  # by box

    def next_frame(self, box: F64, frame: int) -> int | None:
        """The first frame from `frame` on with a face that could continue a track whose last box is (4,) `box`."""
        at, count = int(self.starts[frame]), LOOK_AHEAD
        while at < self.boxes.shape[1]:
            found = np.flatnonzero(_overlaps(box[:, None], self.boxes[:, at : at + count])[0] >= SAME_FACE)
            if found.size:
                return int(self._frames[at + found[0]])
            at, count = at + count, count * 2
        return None


def _overlaps(one: F64, other: F64) -> F64:
    """Intersection over union of each two boxes, 0 to 1: of (4, m) and (4, n), (m, n)."""
    (left, top, right, bottom), (x1, y1, x2, y2) = one[:, :, None], other
    width = np.maximum(np.minimum(right, x2) - np.maximum(left, x1), 0)
    common = width * np.maximum(np.minimum(bottom, y2) - np.maximum(top, y1), 0)
    union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))
