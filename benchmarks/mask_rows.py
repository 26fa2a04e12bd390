"""Which rows of a generated face, 256×256, the blending ever uses: from where on a decoder has to draw.

    python benchmarks/mask_rows.py [--video FILE ...] [--imported DIR ...] [--every 5]

The masks that preparation makes of the bundled clips, and of any clip or picture named: each way of masking once for
every fifth frame, then the defaults once more on the same frames cut by a picture's edge through the face. `--imported`
takes avatars that MuseTalk's own scripts prepared, with their masks. Of each frame two rows, both of 256 from the top:
where the mask begins, and the first row that the resize to the face box reads for it (gateway/blend.py: bilinear, and
chroma by pairs of rows). A way that leaves
nothing of the mask is no row. No network but the face finder's runs. Prints a table, and RESULT with JSON.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from avatar_prep.boxes import Box, crop_box
from avatar_prep.faces import Face, FaceFinder
from avatar_prep.imported import read_material
from avatar_prep.masks import mask_region
from avatar_prep.prepare import Parameters
from avatar_prep.source import Limits, open_source
from lipserve.colour import U8, planes_to_bgr
from lipserve.contract import FACE_SIZE
from lipserve.fetch import FACE_MODELS
from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent
DEMO = tuple(ROOT / f"demo/{name}.mp4" for name in ("lisa", "lucy", "mark"))
LIMITS = Limits(120, 10**8)
DEFAULTS = "jaw"
WAYS = {
    DEFAULTS: Parameters(),
    "jaw, margin 0": Parameters(extra_margin=0),
    "jaw, margin 40": Parameters(extra_margin=40),
    "jaw, margin 200": Parameters(extra_margin=200),
    "jaw, cheeks 0": Parameters(left_cheek_width=0, right_cheek_width=0),
    "jaw, cheeks 256": Parameters(left_cheek_width=256, right_cheek_width=256),
    "raw": Parameters(parsing_mode="raw"),
    "raw, margin 0": Parameters(parsing_mode="raw", extra_margin=0),
    "neck": Parameters(parsing_mode="neck"),
    "neck, margin 0": Parameters(parsing_mode="neck", extra_margin=0),
    "v1": Parameters(version="v1"),
    "v1, shift −50": Parameters(version="v1", bbox_shift=-50),
    "v1, shift −9": Parameters(version="v1", bbox_shift=-9),
    "v1, shift 9": Parameters(version="v1", bbox_shift=9),
    "v1, shift 50": Parameters(version="v1", bbox_shift=50),
}
# By name: which of left, top, right, bottom the picture ends at, and how much of the face box it takes away there.
EDGES = {
    f"{DEFAULTS}, {side} edge through {share:.0%}": (number, share)
    for share in (0.1, 0.25)
    for number, side in enumerate(("left", "top", "right", "bottom"))
}


@dataclass(frozen=True)
class Seen:
    """One picture with its face."""

    picture: U8
    face: Face
    mesh: NDArray[np.float64]

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
        return self.picture.shape[1], self.picture.shape[0]


@dataclass(frozen=True)
class Row:
    """One way of masking one clip. Rows of 256, of the earliest frame; `wide`: box width over height, the largest."""

    clip: str
    way: str
    frames: int  # with a mask
    masked: int
    read: int
    read_median: float
    wide: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, action="append", default=[], help="a clip, a picture, a folder of them")
    parser.add_argument("--imported", type=Path, action="append", default=[], help="a folder of MuseTalk's scripts")
    parser.add_argument("--every", type=int, default=5, help="takes every n-th frame")
    args = parser.parse_args()
    finder = FaceFinder(Settings().models_dir / FACE_MODELS.folder)
    rows = [row for file in (*DEMO, *args.video) for row in of_clip(file, finder, args.every)]
    rows += [summed(folder.name, "imported", list(imported(folder))) for folder in args.imported]
    table = Table("clip", "way", "frames", "mask begins", "first row read", "median", "width / height")
    for row in rows:
        figures = (row.frames, row.masked, row.read, f"{row.read_median:g}", f"{row.wide:.2f}")
        table.add_row(row.clip, row.way, *map(str, figures))
    Console(width=120).print(table)
    ways = {way: min(row.read for row in rows if row.way == way) for way in dict.fromkeys(row.way for row in rows)}
    print("RESULT", json.dumps({"first_row_read": ways, "rows": [asdict(row) for row in rows]}))


def of_clip(file: Path, finder: FaceFinder, every: int) -> Iterator[Row]:
    seen = list(faces(file, finder, every))
    found = {way: masks(seen, parameters) for way, parameters in WAYS.items()}
    for way, (side, share) in EDGES.items():
        cut = [again for one in seen if (again := find(cut_picture(one, side, share), finder)) is not None]
        found[way] = masks(cut, WAYS[DEFAULTS])
    for way, some in found.items():
        if some:
            yield summed(file.stem, way, some)


def faces(file: Path, finder: FaceFinder, every: int) -> Iterator[Seen]:
    with open_source(file, 25, LIMITS) as pictures:
        for i420 in islice(pictures, 0, None, every):
            found = find(planes_to_bgr(i420, pictures.tags.matrix), finder)
            if found is not None:
                yield found


def find(picture: U8, finder: FaceFinder) -> Seen | None:
    """The surest face."""
    for face in finder.detect(picture)[:1]:
        mesh = finder.mesh(picture, face)
        if mesh is not None:
            return Seen(picture, face, mesh)
    return None


def cut_picture(seen: Seen, side: int, share: float) -> U8:
    """The picture ends within its face box: `share` of the box is beyond the edge `side`. Even sides."""
    x1, y1, x2, y2 = WAYS[DEFAULTS].box(seen.mesh, seen.face, seen.size)
    columns, rows = round(share * (x2 - x1)), round(share * (y2 - y1))
    left, top = ((x1 + columns) if side == 0 else 0, (y1 + rows) if side == 1 else 0)
    right, bottom = ((x2 - columns) if side == 2 else seen.size[0], (y2 - rows) if side == 3 else seen.size[1])
    width, height = (right - left) // 2 * 2, (bottom - top) // 2 * 2
    return np.ascontiguousarray(seen.picture[top : top + height, left : left + width])


Masked = tuple[Box, Box, U8]  # face box, region, mask on the region


def masks(seen: Sequence[Seen], parameters: Parameters) -> list[Masked]:
    out = []
    for one in seen:
        box = parameters.box(one.mesh, one.face, one.size)
        crop = crop_box(box)
        found = mask_region(parameters.mask(one.mesh, box, crop), box, crop)
        if found is not None:
            out.append((box, *found))
    return out


def imported(folder: Path) -> Iterator[Masked]:
    material = read_material(folder, LIMITS, 25, with_pictures=False)
    for box, crop, file in zip(material.boxes, material.crops, material.masks, strict=True):
        if box is None:
            continue
        with Image.open(file) as picture:
            mask = np.asarray(picture.convert("L"))
        found = mask_region(mask, box, crop)
        if found is not None:
            yield (box, *found)


def summed(clip: str, way: str, found: Sequence[Masked]) -> Row:
    first = np.array([first_rows(*one) for one in found])
    wide = max((box[2] - box[0]) / (box[3] - box[1]) for box, _, _ in found)
    masked, read = (int(least) for least in first.min(axis=0))
    return Row(clip, way, len(found), masked, read, float(np.median(first[:, 1])), wide)


def first_rows(box: Box, region: Box, mask: U8) -> tuple[int, int]:
    """Of the 256 rows of a face: in which one the mask begins, and the first that the blending reads.

    `mask`: uint8 (h, w) on the even-sided `region`. Above its first row the mask can still have weight in the chroma
    of that pair of rows.
    """
    half = cv2.resize(mask, (mask.shape[1] // 2, mask.shape[0] // 2), interpolation=cv2.INTER_AREA)
    begins = int(np.flatnonzero(mask.any(axis=1))[0])
    reads = min(begins, 2 * int(np.flatnonzero(half.any(axis=1))[0])) if half.any() else begins
    scale = FACE_SIZE / (box[3] - box[1])
    above = region[1] - box[1]
    first = max(0, above + reads)  # the region's even sides may reach a pixel past the box
    return int((above + begins) * scale), max(0, int(np.floor((first + 0.5) * scale - 0.5)))


if __name__ == "__main__":
    main()
