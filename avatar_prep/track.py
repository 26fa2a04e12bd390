"""Chooses, in a clip with any number of faces, the one that speaks: the largest, followed through the clip.

Detections of neighbouring frames that overlap are one track; the track with the largest summed area wins. A face that
is away for a while is picked up again where it was lost; faces elsewhere are never taken for it. Who a face is, nobody
looks at: after a cut, somebody in the same place is the same face.
"""

from collections.abc import Sequence

from avatar_prep.faces import Face, overlap

SAME_FACE = 0.2  # smallest overlap (intersection over union) with the track's last box


def follow_largest(detections: Sequence[Sequence[Face]]) -> list[Face | None]:
    """Per frame, the followed face or None. `detections`: per frame, all faces found."""
    tracks: list[dict[int, Face]] = []
    for frame, faces in enumerate(detections):
        free = list(faces)
        # The track seen last chooses first, so that an old one does not take a face over from a current one.
        for track in sorted(tracks, key=lambda t: -max(t)):
            last = track[max(track)]
            best = max(free, key=lambda face: overlap(face, last), default=None)
            if best is not None and overlap(best, last) >= SAME_FACE:
                track[frame] = best
                free.remove(best)
        tracks += [{frame: face} for face in free]
    main = max(tracks, key=lambda track: sum(face.area for face in track.values()), default={})
    return [main.get(frame) for frame in range(len(detections))]
