"""What our masks and boxes come to where they are not MuseTalk's (docs/decisions/0005).

    python benchmarks/differences.py [--video FILE ...] [--every 5] [--shape-predictor FILE]

The product's own code, with one step replaced by MuseTalk's: the labels scaled to the crop box by Pillow's default
(bicubic, with antialiasing), then no specks removed. Compared are the masks, in levels of 255, and the pictures that
are blended with them from a face that differs from the picture by a seeded texture; both within the face box. With
`--shape-predictor`, dlib's shape_predictor_68_face_landmarks.dat, MuseTalk's box rule is also put to real 68 points
(which needs dlib, no dependency of ours). The bundled clips, and any clip or picture named. Prints tables, and RESULT
with JSON.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
from mask_rows import DEMO, Seen, faces
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from avatar_prep import masks
from avatar_prep.boxes import Box, crop_box, face_box
from avatar_prep.faces import FaceFinder
from avatar_prep.prepare import Parameters
from gateway.blend import composite
from lipserve.colour import U8
from lipserve.fetch import FACE_MODELS
from lipserve.settings import Settings

WAYS = {mode: Parameters(parsing_mode=mode) for mode in ("jaw", "raw", "neck")}
TEXTURE = 11.0  # levels, the deviation of the face from the picture
TEXTURE_SIZE = 5.0  # pixels, sigma of the Gaussian that the texture is smoothed with


@dataclass(frozen=True)
class Row:
    """One step of one clip. Levels of 255; means are over all pixels of the face boxes."""

    clip: str
    step: str
    mode: str
    frames: int
    changed: int  # frames whose mask is another
    mask_most: int
    mask_mean: float
    picture_most: int
    picture_mean: float


@dataclass(frozen=True)
class BoxRow:
    """Our face box against that of dlib's points: medians of ratios, and of the edges' shifts in % of dlib's height."""

    clip: str
    frames: int
    found: int  # by dlib
    height: float
    width: float
    left: float
    top: float
    right: float
    bottom: float
    most: float  # of all edges and frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, action="append", default=[], help="a clip, a picture, a folder of them")
    parser.add_argument("--every", type=int, default=5, help="takes every n-th frame")
    parser.add_argument("--shape-predictor", type=Path, help="dlib's 68 points")
    args = parser.parse_args()
    finder = FaceFinder(Settings().models_dir / FACE_MODELS.folder)
    landmarks = dlib_landmarks(args.shape_predictor) if args.shape_predictor else None
    rows, boxes = [], []
    for file in (*DEMO, *args.video):
        seen = list(faces(file, finder, args.every))
        rows += [row for mode in WAYS for row in mask_rows_of(file.stem, mode, seen)]
        if landmarks is not None:
            boxes += box_rows(file.stem, seen, landmarks)
    show(rows)
    if boxes:
        show(boxes)
    print("RESULT", json.dumps({"masks": [asdict(row) for row in rows], "boxes": [asdict(row) for row in boxes]}))


def show(rows: Sequence[Row] | Sequence[BoxRow]) -> None:
    table = Table(*(name.replace("_", " ") for name in asdict(rows[0])))
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in asdict(row).values()))
    Console(width=150).print(table)


# -- masks ------------------------------------------------------------------------------------------------------------


def mask_rows_of(clip: str, mode: str, seen: Sequence[Seen]) -> Iterator[Row]:
    parameters = WAYS[mode]
    yield compared(clip, "resize", mode, seen, parameters, pillow_resized)
    if mode == "jaw":
        yield compared(clip, "specks", mode, seen, parameters, with_specks)


Step = Callable[[Callable[[], U8]], U8]  # calls what makes a mask, one step of it replaced


def pillow_resized(make: Callable[[], U8]) -> U8:
    """As MuseTalk scales it: `seg_image.resize(image.size)`."""

    def resize(picture: U8, size: tuple[int, int], interpolation: int) -> U8:
        return np.asarray(Image.fromarray(picture).resize(size))

    with patch.object(masks.cv2, "resize", resize):
        return make()


def with_specks(make: Callable[[], U8]) -> U8:
    with patch.object(masks, "_without_specks", lambda mask: mask):
        return make()


def compared(clip: str, name: str, mode: str, seen: Sequence[Seen], parameters: Parameters, step: Step) -> Row:
    rng = np.random.default_rng(0)
    mask_errors, picture_errors = Errors(), Errors()
    for one in seen:
        box = parameters.box(one.mesh, one.face, one.size)
        crop = crop_box(box)

        def make(one: Seen = one, box: Box = box, crop: Box = crop) -> U8:
            return within(parameters.mask(one.mesh, box, crop), box, crop)

        ours, theirs = make(), step(make)
        mask_errors.add(ours, theirs)
        picture = one.picture[box[1] : box[3], box[0] : box[2]]
        face = textured(picture, rng)
        picture_errors.add(blended(picture, face, ours), blended(picture, face, theirs))
    most, mean = mask_errors.most, mask_errors.mean
    changed = mask_errors.changed
    return Row(clip, name, mode, len(seen), changed, most, mean, picture_errors.most, picture_errors.mean)


class Errors:
    """Of pairs of uint8 arrays, one after another."""

    def __init__(self) -> None:
        self.changed = self.most = self._total = self._elements = 0

    def add(self, ours: U8, theirs: U8) -> None:
        errors = cv2.absdiff(ours, theirs)
        self.changed += bool(errors.any())
        self.most = max(self.most, int(errors.max()))
        self._total += int(errors.sum(dtype=np.int64))
        self._elements += errors.size

    @property
    def mean(self) -> float:
        return self._total / self._elements


def within(mask: U8, box: Box, crop: Box) -> U8:
    """Of a mask on the crop box, what lies in the face box."""
    return np.ascontiguousarray(mask[box[1] - crop[1] : box[3] - crop[1], box[0] - crop[0] : box[2] - crop[0]])


def textured(picture: U8, rng: np.random.Generator) -> U8:
    texture = cv2.GaussianBlur(rng.normal(0, 1, picture.shape).astype(np.float32), (0, 0), TEXTURE_SIZE)
    return np.clip(picture + texture * (TEXTURE / texture.std()), 0, 255).astype(np.uint8)


def blended(picture: U8, face: U8, mask: U8) -> U8:
    out = picture.copy()
    composite(out, face, np.repeat(mask[:, :, None], 3, axis=2))
    return out


# -- boxes ------------------------------------------------------------------------------------------------------------

Landmarks = Callable[[U8], NDArray[np.float64] | None]  # a picture, BGR, to (68, 2), or None


def dlib_landmarks(file: Path) -> Landmarks:
    try:
        import dlib
    except ModuleNotFoundError:
        raise SystemExit("dlib is not installed; `pip install dlib-bin` brings it.") from None
    if not file.is_file():
        raise SystemExit(f"{file} is not there; the package face-recognition-models has it.")
    detect: Any = dlib.get_frontal_face_detector()
    predict: Any = dlib.shape_predictor(str(file))

    def landmarks(picture: U8) -> NDArray[np.float64] | None:
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        found = max(detect(rgb, 1), key=lambda rectangle: rectangle.area(), default=None)
        return found and np.array([(p.x, p.y) for p in predict(rgb, found).parts()], np.float64)

    return landmarks


def box_rows(clip: str, seen: Sequence[Seen], landmarks: Landmarks) -> Iterator[BoxRow]:
    """One, or none where dlib finds no face."""
    pairs = []
    for one in seen:
        points = landmarks(one.picture)
        if points is not None:
            pairs.append((face_box(one.mesh, one.face, one.size, 0, 0), box_of_68(points, one.size)))
    if pairs:
        ours, theirs = np.array(pairs, np.float64).transpose(1, 0, 2)
        sizes, their_sizes = ours[:, 2:] - ours[:, :2], theirs[:, 2:] - theirs[:, :2]
        width, height = np.median(sizes / their_sizes, axis=0).tolist()
        shifts = 100 * (ours - theirs) / their_sizes[:, 1:]
        edges = np.median(shifts, axis=0).tolist()
        yield BoxRow(clip, len(seen), len(pairs), height, width, *edges, float(np.abs(shifts).max()))


def box_of_68(points: NDArray[np.float64], size: tuple[int, int]) -> Box:
    """MuseTalk's rule, without margin or shift."""
    whole = points.astype(int)
    chin, half_line = int(whole[:, 1].max()), int(whole[29, 1])
    top = max(0, 2 * half_line - chin)
    return int(whole[:, 0].min()), top, min(int(whole[:, 0].max()), size[0]), min(chin, size[1])


if __name__ == "__main__":
    main()
