"""Face crops of drawn people who speak, as the avatar preparation would cut them. On disk, memory-mapped.

    faces/<split>/crops.npy     uint8 (n, 1 + K, 256, 256, 3), BGR: the idle face, then K speaking ones of the same pose
                  mouths.npy    float32 (n, K, 9): the mouths of the speaking ones, columns CONTROLS
                  moments.npy   int32 (n, K, 2): utterance of the corpus and its 25 fps frame, whose mouth that is
                  lips.npy      int16 (n, 4): the rectangle around the mouth in the crop, x1, y1, x2, y2
                  done.npy      bool (n,): whether the record has been written

The box is the preparation's own (`avatar_prep`, MuseTalk v1.5 rule) on the idle face of the pose, moved and scaled a
little, and all faces of the pose are cut with it, since a spoken face is pasted where the idle one was. Idle faces went
through JPEG: at serving they come from a video. Everything follows from the seed and the record's number.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from avatar_prep.boxes import Box
from avatar_prep.faces import FaceFinder
from avatar_prep.prepare import Parameters
from export.portrait.controls import REST_MOUTH, Pose
from export.portrait.identity import BUNDLED, Identity
from export.portrait.motion import idle_motion
from export.portrait.portrait import Portrait
from export.speech.coarticulation import CONTROLS, mouth_track, mouths, opening
from export.training.corpus import SPLITS, Corpus, Split
from lipserve.contract import FACE_SIZE

U8 = NDArray[np.uint8]

SPOKEN = 5  # K, mouths per pose
POSES = 10  # per identity
BUNDLED_TURNS = 8  # how many times each bundled person appears among the identities of training
BUNDLED_ROWS = len(BUNDLED) * BUNDLED_TURNS * POSES  # of the training split: the first
SIZES = (512, 512, 512, 384)  # of the rendered picture, pixels
JITTER = 0.012  # deviation of the box's edges, of its side
JPEG_QUALITY = (82, 97)
CANDIDATES = 24  # frames looked at to find one with the opening wanted
FPS = 25


@dataclass(frozen=True)
class Faces:
    """The files of one split, opened. Shapes are the module's."""

    crops: U8
    mouths: NDArray[np.float32]
    moments: NDArray[np.int32]
    lips: NDArray[np.int16]
    done: NDArray[np.bool_]

    @classmethod
    def open(cls, folder: Path, split: Split, writable: bool = False) -> Faces:
        place, mode = folder / "faces" / split, "r+" if writable else "r"
        names = ("crops", "mouths", "moments", "lips", "done")
        return cls(*(np.load(place / f"{name}.npy", mmap_mode=mode) for name in names))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Record:
    """One pose of one person: the files' row."""

    crops: U8
    mouths: NDArray[np.float32]
    moments: NDArray[np.int32]
    lips: NDArray[np.int16]


def identity(split: Split, index: int, seed: int) -> Identity:
    """Training has the bundled people first, then strangers; those of validation are never in training."""
    bundled = sorted(BUNDLED) * BUNDLED_TURNS if split == "train" else []
    if index < len(bundled):
        return BUNDLED[bundled[index]]
    return Identity.random(np.random.default_rng([seed, 7, SPLITS.index(split), index]))


def build(folder: Path, split: Split, identities: int, seed: int, face_models: Path, workers: int = 2) -> Iterator[int]:
    """Render what is missing; yields the number of each identity once it is on disk."""
    _create(folder, split, identities * POSES)
    files = Faces.open(folder, split, writable=True)
    missing = [index for index in range(identities) if not files.done[index * POSES : (index + 1) * POSES].all()]
    with ProcessPoolExecutor(workers, get_context("spawn"), _single_threaded) as pool:
        jobs = [(folder, split, index, seed, face_models) for index in missing]
        for index, records in zip(missing, pool.map(_render_identity, jobs), strict=True):
            for row, record in enumerate(records, index * POSES):
                files.crops[row], files.mouths[row] = record.crops, record.mouths
                files.moments[row], files.lips[row] = record.moments, record.lips
                files.done[row] = True
            yield index


def _create(folder: Path, split: Split, rows: int) -> None:
    """Empty files of so many rows; files that exist keep their rows."""
    place = folder / "faces" / split
    place.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "crops": ((1 + SPOKEN, FACE_SIZE, FACE_SIZE, 3), np.uint8),
        "mouths": ((SPOKEN, len(CONTROLS)), np.float32),
        "moments": ((SPOKEN, 2), np.int32),
        "lips": ((4,), np.int16),
        "done": ((), np.bool_),
    }
    for name, (shape, dtype) in shapes.items():
        file = place / f"{name}.npy"
        old = np.load(file, mmap_mode="r") if file.is_file() else None
        if old is not None and len(old) == rows:
            continue
        draft = place / f".{name}.part.npy"
        new = np.lib.format.open_memmap(draft, "w+", dtype, (rows, *shape))
        if old is not None:
            kept = min(rows, len(old))
            new[:kept] = old[:kept]
        new.flush()
        draft.replace(file)


def _single_threaded() -> None:
    cv2.setNumThreads(1)


@cache
def _finder(face_models: Path) -> FaceFinder:
    return FaceFinder(face_models)


@cache
def _corpus(folder: Path, split: Split) -> Corpus:
    return Corpus(folder, split)


def _render_identity(job: tuple[Path, Split, int, int, Path]) -> list[Record]:
    folder, split, index, seed, face_models = job
    rng = np.random.default_rng([seed, 8, SPLITS.index(split), index])
    portrait = Portrait(identity(split, index, seed), int(rng.choice(SIZES)))
    poses = idle_motion(int(rng.integers(2**31)), FPS, 8.0, float(rng.uniform(0.6, 1.8)))
    records: list[Record] = []
    while len(records) < POSES:
        record = _render(portrait, poses[int(rng.integers(len(poses)))], _corpus(folder, split), face_models, rng)
        if record is not None:
            records.append(record)
    return records


def _render(
    portrait: Portrait, pose: Pose, corpus: Corpus, face_models: Path, rng: np.random.Generator
) -> Record | None:
    """One pose, or None if no face is found in it."""
    idle = _as_video(portrait.render(pose, REST_MOUTH), rng)
    finder = _finder(face_models)
    found = finder.detect(idle)
    mesh = finder.mesh(idle, found[0]) if found else None
    if mesh is None:
        return None
    size = (portrait.size, portrait.size)
    box = jittered(Parameters().box(mesh, found[0], size), portrait.size, rng)
    moments = [_moment(corpus, rng) for _ in range(SPOKEN)]
    spoken = np.stack([row for _, _, row in moments])
    pictures = [idle, *(portrait.render(pose, mouth) for mouth in mouths(spoken))]
    return Record(
        np.stack([cut(picture, box) for picture in pictures]),
        spoken,
        np.array([moment[:2] for moment in moments], np.int32),
        _lips(portrait, pose, box),
    )


def cut(picture: U8, box: Box) -> U8:
    """The face in the box as the VAE encoder takes it: uint8 (256, 256, 3), Lanczos, like `avatar_prep.prepare`."""
    x1, y1, x2, y2 = box
    size = (FACE_SIZE, FACE_SIZE)
    return np.asarray(cv2.resize(picture[y1:y2, x1:x2], size, interpolation=cv2.INTER_LANCZOS4), np.uint8)


def jittered(box: Box, size: int, rng: np.random.Generator) -> Box:
    """The box with each edge moved a little, inside the picture."""
    side = max(box[2] - box[0], box[3] - box[1])
    x1, y1, x2, y2 = np.clip(np.round(np.array(box) + rng.normal(0, JITTER * side, 4)), 0, size).astype(int).tolist()
    return x1, y1, x2, y2


def _moment(corpus: Corpus, rng: np.random.Generator) -> tuple[int, int, NDArray[np.float32]]:
    """Utterance, frame and mouth: half of them any frame, half one near an opening drawn evenly, so that no opening is
    rare.
    """
    utterance = int(rng.integers(corpus.count))
    track = _track(corpus, utterance)
    frame = int(rng.integers(len(track)))
    if rng.random() < 0.5:
        frames = rng.integers(len(track), size=CANDIDATES)
        frame = int(frames[np.argmin(np.abs(opening(track[frames]) - rng.uniform(0, 0.85)))])
    return utterance, frame, track[frame]


@cache
def _track(corpus: Corpus, utterance: int) -> NDArray[np.float32]:
    return mouth_track(corpus.speech(utterance), FPS)


def _as_video(picture: U8, rng: np.random.Generator) -> U8:
    """With the traces of a compressed video: JPEG blocks and halved chroma."""
    quality = int(rng.integers(*JPEG_QUALITY))
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def _lips(portrait: Portrait, pose: Pose, box: Box) -> NDArray[np.int16]:
    """The rectangle, in pixels of the crop, in which lips move: 1.6 mouth widths wide, 1.2 high."""
    where = portrait.geometry(pose, REST_MOUTH)
    (left, _), (right, _), (_, lip) = where.left_corner, where.right_corner, where.upper_lip
    width = right - left
    edges = np.array([left - 0.3 * width, lip - 0.4 * width, right + 0.3 * width, lip + 0.8 * width])
    x1, y1, x2, y2 = box
    scale = np.array([FACE_SIZE / (x2 - x1), FACE_SIZE / (y2 - y1)] * 2)
    pixels = np.clip(np.round((edges - [x1, y1, x1, y1]) * scale), 0, FACE_SIZE)
    return np.asarray(pixels, np.int16)
