"""Small media files of every format that is taken, and what an enemy, a bad disk or a broken program makes of them."""

import io
import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from samples import frames_of, numbered, smooth, tone, write_clip, write_sound, write_video

from lipserve.media import Sound

# Sizes and counts that somebody computes with.
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
# Where numbers stand beside: box, chunk and element names.
NAMES = (
    b"ftyp moov mvhd trak tkhd edts elst mdia mdhd hdlr stsd stts stsc stsz stco ctts stss avcC esds mdat udta "
    b"RIFF WAVE fmt data LIST hdrl avih strl strh strf movi idx1 00dc JUNK VP8 VP8L VP8X ANIM ANMF EXIF ICCP "
    b"IHDR IDAT PLTE tRNS iCCP eXIf zTXt IEND fLaC OggS OpusHead OpusTags ID3 Xing LAME Exif"
).split()
EBML = [bytes.fromhex(name) for name in ("1a45dfa3", "18538067", "1549a966", "1654ae6b", "1f43b675", "a3", "e0", "ba")]
FLAC_FIXED, FLAC_OWN_RATE = 0xF8, 0x7D  # second and third byte of a frame: fixed size; 16 bits of each size and rate
JPEG = (b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xda", b"\xff\xdb", b"\xff\xdd", b"\xff\xe1")


def seeds(folder: Path) -> dict[str, bytes]:
    """Whole, readable files of a few kilobytes, by format."""
    found = _pictures()
    for suffix in (".wav", ".mp3", ".m4a", ".ogg", ".flac"):
        found[f"sound{suffix}"] = write_sound(folder / f"a{suffix}", tone(0.25), 16000).read_bytes()
    found["sound-own-rate.flac"] = flac(48_000, [16_000, 44_100, 16_000], 2_000)
    for suffix, codec in ((".aac", "aac"), (".webm", "libopus"), (".mka", "flac")):
        found[f"sound{suffix}"] = coded_sound(folder / f"a{suffix}", codec).read_bytes()
    write_clip(folder / "a.mp4", numbered(6), 25, Sound(tone(0.24), 16000))
    found["video.mp4"] = (folder / "a.mp4").read_bytes()
    for suffix, codec in ((".mov", "libx264"), (".webm", "libvpx-vp9"), (".mkv", "libvpx"), (".avi", "mpeg4")):
        found[f"video{suffix}"] = write_video(folder / f"a{suffix}", frames_of(numbered(6)), codec=codec).read_bytes()
    return found


def flac(declared: int, rates: list[int], samples: int = 65_535) -> bytes:
    """Mono frames of a level each, a byte or two of sound a frame, which claim rates (Hz) of their own; the file says
    `declared`. `samples` in each frame."""
    info = struct.pack(">HH6x", samples, samples) + (declared << 44 | 15 << 36).to_bytes(8, "big") + bytes(16)
    frames = [_flac_frame(index, rate, samples, 500 * index) for index, rate in enumerate(rates)]
    return b"fLaC\x80\x00\x00\x22" + info + b"".join(frames)


def _flac_frame(index: int, rate: int, samples: int, level: int) -> bytes:
    head = struct.pack(">BBBBBHH", 0xFF, FLAC_FIXED, FLAC_OWN_RATE, 0x08, index, samples - 1, rate)
    body = head + bytes([crc(head, 0x07, 8)]) + struct.pack(">Bh", 0, level)
    return body + crc(body, 0x8005, 16).to_bytes(2, "big")


def crc(data: bytes, polynomial: int, bits: int) -> int:
    """As FLAC has them: the highest bit first, beginning with 0."""
    value, mask = 0, (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value >> (bits - 1) else 0)) & mask
    return value


def coded_sound(file: Path, codec: str, seconds: float = 0.25) -> Path:
    """Mono speech-like sound at 48 kHz, in the container that the suffix names."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone(seconds, 48_000)), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        form = stream.codec_context.format.name
        resampler = av.AudioResampler(format=form, layout="mono", rate=48_000, frame_size=960)
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return file


def _pictures() -> dict[str, bytes]:
    picture = Image.fromarray(np.ascontiguousarray(smooth(48, 32)[..., ::-1]))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0131] = "a camera"  # Software: its type and length may be spoilt, too
    options: dict[str, dict[str, object]] = {
        "picture.png": {"format": "PNG"},
        "picture.jpg": {"format": "JPEG", "exif": exif},
        "picture-progressive.jpg": {"format": "JPEG", "progressive": True, "icc_profile": b"icc" * 20},
        "picture.webp": {"format": "WEBP", "exif": exif},
        "picture-lossless.webp": {"format": "WEBP", "lossless": True},
    }
    found = {}
    for name, how in options.items():
        buffer = io.BytesIO()
        picture.save(buffer, **how)  # type: ignore[arg-type]
        found[name] = buffer.getvalue()
    return found


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> tuple[bytes, str]:
    """A file made of `content`, and what was done to it."""
    data, done = bytearray(content), []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        change = rng.choice(CHANGES)
        done.append(change.__name__)
        change(data, others, rng)
    return bytes(data), "+".join(done)


def flip(data: bytearray, _: list[bytes], rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_many(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    for _ in range(rng.randrange(2, 3 + len(data) // 50)):
        flip(data, others, rng)


def cut(data: bytearray, _: list[bytes], rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def cut_out(data: bytearray, _: list[bytes], rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice((1, 2, 4, 16, 100, 1000))]


def repeat(data: bytearray, _: list[bytes], rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = data[start : start + rng.choice((1, 8, 64, 512))] * rng.choice((1, 2, 50))


def splice(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    """A piece of another file put in, or in the place of what is there."""
    other = rng.choice(others)
    start, length = rng.randrange(len(other)), rng.choice((4, 32, 300, 3000))
    place = rng.randrange(len(data) + 1)
    data[place : place + rng.choice((0, length))] = other[start : start + length]


def overwrite(data: bytearray, _: list[bytes], rng: random.Random) -> None:
    place = rng.randrange(len(data) + 1)
    data[place : place + 16] = rng.randbytes(rng.randrange(1, 17))


def number(data: bytearray, _: list[bytes], rng: random.Random) -> None:
    """A number anywhere, more often in the header."""
    place = rng.randrange(min(len(data), rng.choice((64, 512, 1 << 30))) + 1)
    _write_number(data, place, rng)


def size(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    """The number before or behind a name: a box's size, a chunk's length, a table's count."""
    names = [name for name in (*NAMES, *EBML, *JPEG) if name in data]
    if not names:
        number(data, others, rng)
        return
    name = rng.choice(names)
    place = data.index(name) if rng.random() < 0.7 else data.rindex(name)
    _write_number(
        data, max(0, place + rng.choice((-4, len(name), len(name), len(name) + 4, len(name) + 8, len(name) + 12))), rng
    )


def _write_number(data: bytearray, place: int, rng: random.Random) -> None:
    value = rng.choice((*NUMBERS, len(data), rng.getrandbits(32)))
    form = rng.choice(("<I", ">I", "<H", ">H", "B", ">Q"))
    written = struct.pack(form, value & (1 << 8 * struct.calcsize(form)) - 1)
    data[place : place + len(written)] = written


def rate(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    """A FLAC frame's own rate or length, and its checksum made good: else no decoder would look at it."""
    start = data.find(bytes((0xFF, FLAC_FIXED, FLAC_OWN_RATE)), rng.choice((0, 60)))
    if start < 0 or start + 10 > len(data):
        number(data, others, rng)
        return
    struct.pack_into(">H", data, start + rng.choice((5, 7, 7)), rng.choice((0, 1, 20, 40, 3_999, 4_000, 65_535)))
    data[start + 9] = crc(data[start : start + 9], 0x07, 8)


CHANGES = (flip, flip_many, cut, cut_out, repeat, splice, number, number, size, size, overwrite, rate)
