"""How a file from outside is opened, whatever is then read from it."""

from pathlib import Path
from typing import Any

import av

# Self-contained formats only: no playlist, no concatenation script, nothing that names other files.
DEMUXERS = "mov,matroska,avi,wav,mp3,flac,ogg,aac"
# What is in them in practice. FFmpeg has some 500 decoders more, for games and museums, and less looked after.
SOUND_DECODERS = (
    "aac,aac_fixed,aac_latm,mp3,mp3float,mp2,mp2float,flac,alac,opus,libopus,vorbis,libvorbis,ac3,eac3,wavpack,"
    "pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,"
    "pcm_f64be,pcm_alaw,pcm_mulaw,adpcm_ms,adpcm_ima_wav,adpcm_ima_qt,gsm_ms"
)
VIDEO_DECODERS = (
    "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,libaom-av1,mpeg4,mpeg2video,mjpeg,png,webp,prores,dnxhd,ffv1,"
    "theora,rawvideo,huffyuv,qtrle,v210,h263,msmpeg4v3,msmpeg4"
)
OPEN_OPTIONS = {
    "format_whitelist": DEMUXERS,
    # To open a file, FFmpeg decodes some of it. Not JPEGs, before their scans are counted.
    "codec_whitelist": f"{SOUND_DECODERS},{VIDEO_DECODERS}".replace(",mjpeg", ""),
    "protocol_whitelist": "file",
}


def open_source(path: Path, max_pixels: int) -> Any:
    """FFmpeg decodes pictures while it opens a file: none larger than `max_pixels`. Tags may be in any encoding.

    Raises av.FFmpegError or ValueError."""
    options = OPEN_OPTIONS | {"max_pixels": str(max_pixels)}
    return av.open(str(path.absolute()), options=options, metadata_errors="replace")
