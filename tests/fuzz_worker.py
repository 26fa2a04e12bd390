"""Reads mutated media as the gateway does, one file after the other; run by test_fuzz in a process of its own.

    python fuzz_worker.py FOLDER SEED FIRST COUNT

Prints a line before each file, so that whoever watches knows which one ended or stopped the process, and at the end a
JSON object with the outcomes, the open files and the memory.
"""

import json
import logging
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from mutations import mutated, seeds

from avatar_prep.source import Limits, open_source
from gateway.audio import recorded
from gateway.uploads import Uploads
from lipserve.errors import BadMedia, InvalidParameter

LIMITS = Limits(seconds=5, pixels=640 * 480)
MEMORY = 6 << 30  # bytes of address space: an allocation that a file talks somebody into fails
WARM_UP = 300  # cases after which memory is first looked at


def read(kind: str, file: Path, scratch: Path, uploads: Uploads, chance: float) -> None:
    """As what it is; some are kept as uploads instead, and of some videos the sound is read."""
    if chance < 0.05:
        what = {"picture": "image", "sound": "audio", "video": "video"}[kind]
        with file.open("rb") as handle:
            kept = uploads.keep(what, handle, file.name, "anna")  # type: ignore[arg-type]
        uploads.delete(kept.id, "anna")
    elif kind == "sound" or (kind == "video" and chance < 0.25):
        with recorded(file, LIMITS.seconds, scratch) as found:
            found.heard.block(0, found.heard.length)
    else:
        with open_source(file, 25, LIMITS) as pictures:
            for picture in pictures:
                assert picture.shape == (pictures.height * 3 // 2, pictures.width)


def main(folder: Path, seed: int, first: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable()
    originals = seeds(folder)
    scratch, uploads = folder / "scratch", Uploads(folder / "uploads", 1)
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    outcomes: Counter[str] = Counter()
    failures, memory, handles = [], 0, 0
    for name, content in originals.items():  # each is good before it is spoilt, and what is loaded once is loaded
        (folder / name).write_bytes(content)
        for chance in (0.0, 1.0, 1.0):
            read(kind_of(name), folder / name, scratch, uploads, chance)
    for index in range(first, first + count):
        rng = random.Random(f"{seed} {index}")
        name = rng.choice(sorted(originals))
        content, done = mutated(originals[name], list(originals.values()), rng)
        file = folder / "case"
        file.write_bytes(content)
        print(index, name, done, flush=True)
        try:
            read(kind_of(name), file, scratch, uploads, rng.random())
            outcomes["read"] += 1
        except (BadMedia, InvalidParameter) as exc:  # InvalidParameter: nothing is left of it, "is empty"
            assert exc.message
            assert exc.hint
            outcomes[exc.kind] += 1
        except Exception:
            failures.append(f"case {index}, {name}, {done}:\n{traceback.format_exc()}")
        if index == first + min(WARM_UP, count // 2):
            memory, handles = resident(), len(list(Path("/proc/self/fd").iterdir()))
    report = {
        "outcomes": outcomes,
        "failures": failures[:20],
        "grown_mb": (resident() - memory) / 1e6,
        "new_handles": len(list(Path("/proc/self/fd").iterdir())) - handles,
        "left": [path.name for path in [*scratch.iterdir(), *(folder / "uploads").iterdir()]],
    }
    print(json.dumps(report), flush=True)


def kind_of(name: str) -> str:
    return name.split(".")[0].split("-")[0]


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
