"""How often a JPEG goes over its picture. A pass (scan) takes 14 bytes, but milliseconds, and no decoder can be
cancelled: a small file may be hours of work. Knows bytes, not pictures."""

import re

MAX_SCANS = 100  # of one picture; programs write up to some 15
MAX_MARKERS = 10_000  # before each of them Pillow stops to think, too
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA  # the first two have no length
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")  # not stuffed bytes, nor marks that have no length


def too_many_scans(jpeg: bytes) -> bool:
    """By walking from marker to marker as libjpeg does, to the picture's end: telephones put a video behind it."""
    position = found = 0
    for _ in range(MAX_MARKERS):
        marker = _MARKER.search(jpeg, position)
        if marker is None or marker[1][0] == _END:
            return False
        code, position = marker[1][0], marker.end()
        if code != _START:
            position += max(2, int.from_bytes(jpeg[position : position + 2], "big"))
        found += code == _SCAN
        if found > MAX_SCANS:
            return True
    return True


def may_have_too_many_scans(packet: bytes) -> bool:
    """Of a video's JPEG: FFmpeg looks for scans in places that it should skip, so all places count."""
    return packet.count(b"\xff\xda") > MAX_SCANS
