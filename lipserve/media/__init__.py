"""Files of sound and video, read and written. The only package that imports PyAV.

Everything read here comes from outside: only the demuxers listed in `source` may open it, none of them may open a
second file, and sizes are checked before pictures are decoded. Time is integer: a frame's pts is its index, in units of
1/fps.
"""

from lipserve.media.encoder import VideoEncoding, choose_encoder
from lipserve.media.jpeg import too_many_scans
from lipserve.media.kinds import media_type
from lipserve.media.mp4 import AAC_RATES, Mp4Writer
from lipserve.media.sound import Samples, Sound, SoundReader, StoredSound, read_sound
from lipserve.media.video import MAX_SIDE, VideoReader

__all__ = [
    "AAC_RATES",
    "MAX_SIDE",
    "Mp4Writer",
    "Samples",
    "Sound",
    "SoundReader",
    "StoredSound",
    "VideoEncoding",
    "VideoReader",
    "choose_encoder",
    "media_type",
    "read_sound",
    "too_many_scans",
]
