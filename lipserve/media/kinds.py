"""What a file is, by its first bytes: never by its name, nor by what a client claims. The only module that imports
filetype.

Knows names, not whether the file is whole: that is found out by reading it.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import filetype

FIRST_BYTES = 8192

# extension as filetype has it: what people call it
PICTURES = {"jpg": "a JPEG picture", "png": "a PNG picture", "webp": "a WebP picture"}
SOUNDS = {
    "wav": "a WAV sound",
    "mp3": "an MP3 sound",
    "m4a": "an M4A sound",
    "ogg": "an OGG file",
    "flac": "a FLAC sound",
    "aac": "an AAC sound",
}
VIDEOS = {
    "mp4": "an MP4 file",
    "m4v": "an MP4 file",
    "mov": "a MOV file",
    "webm": "a WebM file",
    "mkv": "a Matroska file",
    "avi": "an AVI file",
}
MEDIA = SOUNDS | VIDEOS
REFUSED = {
    "apng": "an animated PNG picture",
    "gif": "a GIF picture",
    "bmp": "a BMP picture",
    "tif": "a TIFF picture",
    "heic": "a HEIC picture",
    "avif": "an AVIF picture",
    "jpx": "a JPEG 2000 picture",
    "psd": "a Photoshop picture",
    "midi": "a MIDI file, notes without sound",
    "amr": "an AMR sound",
    "aiff": "an AIFF sound",
    "wmv": "a Windows Media file",
    "mpg": "an MPEG-1 or MPEG-2 file",
    "flv": "a Flash video",
    "3gp": "a 3GP video",
    "zip": "a ZIP archive",
    "rar": "a RAR archive",
    "7z": "a 7-Zip archive",
    "gz": "a gzip archive",
    "tar": "a tar archive",
    "pdf": "a PDF document",
    "docx": "a Word document",
    "exe": "a program",
    "elf": "a program",
}
# extension: what comes after image/, audio/ or video/; a container of both is named after what is wanted of it
_SUBTYPES = {
    "jpg": "jpeg",
    "png": "png",
    "webp": "webp",
    "wav": "wav",
    "mp3": "mpeg",
    "m4a": "mp4",
    "ogg": "ogg",
    "flac": "flac",
    "aac": "aac",
    "mp4": "mp4",
    "m4v": "mp4",
    "mov": "quicktime",
    "webm": "webm",
    "mkv": "x-matroska",
    "avi": "x-msvideo",
}
# What is sent instead of media and has no signature of its own.
_STARTS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML document",
    b"#extm3u": "a playlist",
    b"ffconcat": "a list of files",
}


def extension(path: Path) -> str | None:
    """filetype's extension for what the file is; None if its first bytes say nothing."""
    with path.open("rb") as file:
        start = file.read(FIRST_BYTES)
    if (start[:4] == b"RIFF" and start[8:12] == b"WAVE") or start[:4] in (b"RF64", b"BW64"):
        return "wav"
    kind = filetype.guess(start)
    return None if kind is None else str(kind.extension)


def stranger(path: Path, taken: Collection[str]) -> str | None:
    """What the file is, in words, if it is something else than `taken` (extensions); None if it may be one of them."""
    found = extension(path)
    if found in taken:
        return None
    if found is not None:
        return (PICTURES | MEDIA | REFUSED).get(found, f"a file of the type {found.upper()}")
    with path.open("rb") as file:
        start = file.read(FIRST_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((words for first, words in _STARTS.items() if start.startswith(first)), None)


def media_type(path: Path, what: Literal["image", "audio", "video"]) -> str:
    """The MIME type of a file that was found to be readable as `what`."""
    subtype = _SUBTYPES.get(extension(path) or "")
    return f"{what}/{subtype}" if subtype else "application/octet-stream"
