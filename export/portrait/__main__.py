"""Render a seamless idle clip of one of the bundled people: python -m export.portrait --identity lisa --out lisa.mp4"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich.progress import track

from export.portrait.clip import write_clip
from export.portrait.geometry import Bytes
from export.portrait.identity import BUNDLED, Identity
from export.portrait.motion import idle_motion
from export.portrait.portrait import Portrait


def frames(identity: Identity, size: int, fps: int, seconds: float) -> Iterator[Bytes]:
    """The idle loop, one frame at a time: uint8 (size, size, 3), BGR."""
    portrait = Portrait(identity, size)
    for pose in track(idle_motion(identity.seed, fps, seconds), f"Rendering {identity.name}"):
        yield portrait.render(pose)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.portrait", description=__doc__)
    parser.add_argument("--identity", choices=sorted(BUNDLED), required=True)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--size", type=int, default=512, help="side of the square picture, pixels")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--crf", type=int, default=14, help="H.264 quality, lower is better")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pictures = frames(BUNDLED[args.identity], args.size, args.fps, args.seconds)
    write_clip(args.out, pictures, args.size, args.fps, args.crf)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
