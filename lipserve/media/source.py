"""How a file from outside is opened, whatever is then read from it."""

from pathlib import Path
from typing import Any

import av

# Self-contained formats only: no playlist, no concatenation script, nothing that names other files.
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,wav,w64,aiff,mp3,flac,ogg,aac,amr,asf,caf"
OPEN_OPTIONS = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}


def open_source(path: Path, max_pixels: int) -> Any:
    """FFmpeg decodes pictures while it opens a file: none larger than `max_pixels`. Tags may be in any encoding.

    Raises av.FFmpegError or ValueError."""
    options = OPEN_OPTIONS | {"max_pixels": str(max_pixels)}
    return av.open(str(path.absolute()), options=options, metadata_errors="replace")
