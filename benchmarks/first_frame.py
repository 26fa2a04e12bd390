"""How long a request waits for its first frames, by the length of its sound.

    python benchmarks/first_frame.py [--seconds 5,60,600] [--repeat 7] [--video FILE]

From the moment the request's turn comes, with the whole sound in a file, to the first frame that the encoder has taken,
and to the 25th, by when it has given the first one out: libx264 looks ahead up to 16 frames at `veryfast` or faster.
Lengths take turns, the least of all runs counts, no sound is known from before, and after 25 frames each request is
cancelled. The last line is RESULT with JSON.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from threading import Event

import numpy as np
from rich.console import Console
from rich.table import Table
from service import ROOT, machine, repeated, write_sound

from avatar_prep.prepare import checked_parameters
from gateway.engine import Engine, SyncRequest
from lipserve.embedded import EmbeddedTriton
from lipserve.errors import Cancelled
from lipserve.media import read_sound
from lipserve.settings import Settings

LAST = 25  # frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", default="5,60,600", help="lengths of the sound; the first is the measure")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--video", type=Path, default=ROOT / "demo/lisa.mp4", help="the avatar")
    parser.add_argument("--audio", type=Path, default=ROOT / "demo/speech.flac", help="repeated")
    args = parser.parse_args()
    lengths = [float(length) for length in args.seconds.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        waits = measure(args, lengths, Path(scratch))
    report(lengths, waits)


def measure(args: argparse.Namespace, lengths: list[float], scratch: Path) -> list[tuple[float, float]]:
    """For each length the least of `wait`."""
    changes = {"avatars_dir": scratch / "avatars", "work_dir": scratch / "work", "feature_cache": 0}
    settings = Settings().model_copy(update=changes)
    files = [scratch / f"{length:g}.mp4" for length in lengths]
    sound = read_sound(args.audio, 3600)
    for file, length in zip(files, lengths, strict=True):
        write_sound(file, repeated(sound, length))
    with EmbeddedTriton(settings.model_repository, settings.models_dir, settings.work_dir) as triton:
        engine = Engine(settings, triton.grpc_url)
        try:
            engine.warm_up()
            engine.prepare(args.video, "bench", checked_parameters({}))
            wait(engine, files[0], scratch / "out.mp4")  # the first one opens the avatar
            rounds = [[wait(engine, file, scratch / "out.mp4") for file in files] for _ in range(args.repeat)]
        finally:
            engine.close()
    first, last = np.array(rounds).min(axis=0).T
    return list(zip(first.tolist(), last.tolist(), strict=True))


def wait(engine: Engine, audio: Path, output: Path) -> tuple[float, float]:
    """Seconds to the first frame, and to the 25th."""
    time.sleep(1.0)  # Triton still has batches of the request before
    cancelled, seen = Event(), dict[int, float]()
    start = time.monotonic()

    def progress(stage: str, done: int, total: int | None) -> None:
        seen[done] = time.monotonic() - start
        if done == LAST:
            cancelled.set()

    try:
        engine.lip_sync(SyncRequest("bench"), audio, output, progress, cancelled)
    except Cancelled:
        return seen[1], seen[LAST]
    raise SystemExit(f"the sound must last longer than {LAST} frames")


def report(lengths: list[float], waits: list[tuple[float, float]]) -> None:
    table = Table("sound, s", "first frame, s", "ratio", f"frame {LAST}, s", "ratio", title="from a request's turn on")
    rows = []
    for length, (first, last) in zip(lengths, waits, strict=True):
        ratios = first / waits[0][0], last / waits[0][1]
        table.add_row(f"{length:g}", f"{first:.3f}", f"{ratios[0]:.2f}", f"{last:.3f}", f"{ratios[1]:.2f}")
        names = ("seconds", "first", "first_ratio", "last", "last_ratio")
        rows.append(
            dict(zip(names, (length, *(round(v, 3) for v in (first, ratios[0], last, ratios[1]))), strict=True))
        )
    Console().print(table)
    print("RESULT", json.dumps({"machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
