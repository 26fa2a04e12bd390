"""Have a drawn person say something, as the truth that networks are measured against.

    python -m export.speech "Papa bought five maps." --identity lisa --out talk.mp4 --sheet talk.png

The sheet shows every frame of the lower face with the phoneme that sounds in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from export.portrait.identity import BUNDLED, Identity
from export.portrait.motion import idle_motion
from export.portrait.portrait import Portrait
from export.speech.coarticulation import frame_times, mouth_track, mouths
from export.speech.espeak import Speech, speak
from lipserve.colour import bgr_to_i420
from lipserve.contract import SAMPLE_RATE
from lipserve.media import Mp4Writer, Sound

U8 = NDArray[np.uint8]
COLUMNS = 12  # of the sheet
TILE = 120  # pixels


def talking(speech: Speech, identity: Identity, size: int, fps: int) -> list[U8]:
    """The person saying it, while swaying and blinking: uint8 (size, size, 3) BGR for every frame."""
    shapes = mouths(mouth_track(speech, fps))
    portrait = Portrait(identity, size)
    poses = idle_motion(identity.seed, fps, 8.0)
    return [
        portrait.render(poses[index % len(poses)], shape)
        for index, shape in track(list(enumerate(shapes)), f"Rendering {identity.name}", transient=True)
    ]


def write_video(path: Path, frames: list[U8], speech: Speech, fps: int) -> None:
    """The frames with the sound."""
    height, width = frames[0].shape[:2]
    sound = Sound(speech.samples[None], SAMPLE_RATE)
    _, tags = bgr_to_i420(frames[0])
    with Mp4Writer(path, (width, height), fps, sound, tags) as video:
        for frame in frames:
            video.write(bgr_to_i420(frame)[0])


def contact_sheet(frames: list[U8], speech: Speech, fps: int) -> U8:
    """Lower faces in reading order, each with its frame number and phoneme."""
    size = frames[0].shape[0]
    tiles = []
    for index, time in enumerate(frame_times(len(frames), fps)):
        symbol = next((phone.symbol for phone in speech.phones if phone.start <= time < phone.end), "")
        crop = frames[index][int(0.50 * size) : int(0.80 * size), int(0.35 * size) : int(0.65 * size)]
        tile = np.ascontiguousarray(cv2.resize(crop, (TILE, TILE), interpolation=cv2.INTER_AREA))
        label = f"{index} {symbol.encode('ascii', 'backslashreplace').decode()}"
        cv2.putText(tile, label, (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        tiles.append(tile)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    return np.asarray(np.vstack(rows), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.speech", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text")
    parser.add_argument("--voice", default="en-gb")
    parser.add_argument("--speed", type=int, default=150, help="words a minute")
    parser.add_argument("--pitch", type=int, default=50, help="0 to 100")
    parser.add_argument("--identity", choices=sorted(BUNDLED), default="lisa")
    parser.add_argument("--size", type=int, default=512, help="side of the picture, pixels")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--out", type=Path, help="mp4")
    parser.add_argument("--sheet", type=Path, help="png")
    args = parser.parse_args()
    speech = speak(args.text, args.voice, args.speed, args.pitch)
    frames = talking(speech, BUNDLED[args.identity], args.size, args.fps)
    if args.out:
        write_video(args.out, frames, speech, args.fps)
    if args.sheet:
        cv2.imwrite(str(args.sheet), contact_sheet(frames, speech, args.fps))
    print(f"{len(frames)} frames, {speech.seconds:.2f} s, {len(speech.phones)} phonemes")


if __name__ == "__main__":
    main()
