"""Avatars that MuseTalk's own realtime scripts (v1 and v1.5) prepared, brought into the avatar folder of lipserve.

    avator_info.json    what it was made from and how (also as avatar_info.json; may be missing)
    latents.pt          per frame a tensor (1, 8, 32, 32), as ours: masked 4, then reference 4, times the scaling factor
    coords.pkl          per frame the face box x1, y1, x2, y2; (0, 0, 0, 0) where no face was found
    mask_coords.pkl     per frame the crop box
    mask/%08d.png       per frame the blend mask on the crop box, 255 takes the face
    full_imgs/%08d.png  per frame the picture

All of it is the cycle that their player walks in a circle: the frames forward, then backward. Ours is stored forward
once. A cycle that reads the same from its end is folded to its first half, or, with an odd number of frames, stored
whole; no other cycle can be played by walking to and fro, and none is taken.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from avatar_prep.boxes import Box
from avatar_prep.masks import mask_region
from avatar_prep.pickles import read_pickle, read_tensors
from avatar_prep.prepare import About, EncodeFaces, Footage, Progress, face_crop, finish, require_faces
from avatar_prep.source import Limits, StillPictures
from lipserve.avatar import REGION, AvatarInfo, sha256
from lipserve.colour import U8
from lipserve.contract import FACE_LATENTS, MAX_FPS, MIN_FPS
from lipserve.errors import InvalidParameter, NotImportable, VideoTooLarge
from lipserve.media import VideoReader
from lipserve.store import require_space

INFO_FILES = ("avator_info.json", "avatar_info.json")  # the first is how the scripts spell it
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_INFO_BYTES = 2**16
MAX_TENSOR_BYTES = 40_000  # of one frame's latents in latents.pt: float32 32 768, its record and its alignment
MAX_LATENT = 100.0  # latents times the scaling factor spread like ±1 to ±5; a network of noise reached ±13
SAMPLES = 4  # frames encoded again to see whose latents they are
MIN_CORRELATION = 0.7  # with the same VAE's own latents of that frame

_PREPARE_HINT = "Prepare the avatar from its video with `lipserve prepare`."


@dataclass(frozen=True)
class Material:
    """What their folder says, folded to the `n` frames that are stored."""

    boxes: list[Box | None]  # n; None: no face
    crops: list[Box]  # n
    latents: NDArray[np.float16]  # (n, 8, 32, 32); 0 without a face
    masks: list[Path]  # n
    pictures: list[Path]  # n, or none: then a clip has them
    facts: dict[str, Any]  # of avator_info.json


def import_avatar(
    folder: Path,
    draft: Path,
    avatar_id: str,
    fps: int,
    weights_id: str,
    limits: Limits,
    progress: Progress,
    video: Path | None = None,
    encode: EncodeFaces | None = None,
) -> AvatarInfo:
    """Fill the empty folder `draft` (see lipserve.avatar) from theirs. `weights_id`: of the VAE that made the latents.

    The pictures come from `video` if it is given. With `encode`, a few faces are encoded again: the latents must be of
    that VAE. Raises NotImportable, UnsafePickle, InvalidParameter, or what reading pictures and clips raises.
    """
    if not MIN_FPS <= fps <= MAX_FPS:
        raise InvalidParameter(f"fps is {fps}.", f"It must be from {MIN_FPS} to {MAX_FPS}.")
    material = read_material(folder, limits, fps, video is None)
    footage = _store_pictures(material, video, draft, fps, limits, progress)
    regions = _store_masks(material, footage, draft, progress)
    require_faces(regions["has_face"].tolist())
    if encode is not None:
        _require_same_vae(footage, regions, material.latents, encode)
    np.save(draft / "latents.npy", material.latents)
    np.save(draft / "regions.npy", regions)
    parameters = {"imported_from": "MuseTalk", "version": _version(material.facts)} | _shift(material.facts)
    about = About(avatar_id, folder.resolve().name, sha256(folder), parameters, weights_id)
    return finish(draft, about, fps, footage, regions)


# -- their files ------------------------------------------------------------------------------------------------------


def read_material(folder: Path, limits: Limits, fps: int, with_pictures: bool) -> Material:
    """Everything but pixels, recognised, checked and folded. Raises NotImportable, UnsafePickle or VideoTooLarge."""
    for name in ("latents.pt", "coords.pkl", "mask_coords.pkl", "mask"):
        if not (folder / name).exists():
            raise NotImportable(
                f"{folder.name!r} is no avatar of MuseTalk's realtime scripts: it has no {name}.",
                "Name the folder that those scripts wrote, results/…/avatars/<id>.",
            )
    facts = _facts(folder)
    boxes = _boxes(read_pickle(folder / "coords.pkl"), "coords.pkl")
    crops = _boxes(read_pickle(folder / "mask_coords.pkl"), "mask_coords.pkl")
    length = len(boxes)
    if len(crops) != length:
        raise NotImportable(
            f"coords.pkl has {length} entries, mask_coords.pkl has {len(crops)}.", "Copy the avatar again."
        )
    n = length // 2 if length % 2 == 0 else length
    if n > limits.seconds * fps:
        raise VideoTooLarge(f"The avatar has {n} frames.", f"The limit is {limits.seconds * fps:.0f}.")
    latents = _latents(folder / "latents.pt", length)
    faces = [box is not None for box in boxes]
    if len(latents) not in (length, sum(faces)):
        raise NotImportable(
            f"latents.pt has {len(latents)} entries, coords.pkl has {length}, {sum(faces)} of them with a face.",
            "Copy the avatar again.",
        )
    _require_mirror("coords.pkl", boxes, lambda a, b: a == b)
    _require_mirror("mask_coords.pkl", crops, lambda a, b: a == b)
    _require_mirror("latents.pt", latents, lambda a, b: a is b or np.array_equal(a, b))
    masks = _files(folder / "mask", length, n)
    if not with_pictures:
        pictures = []
    elif (folder / "full_imgs").is_dir():
        pictures = _files(folder / "full_imgs", length, n)
    else:
        was = f" It was made from {str(facts['video_path'])[:200]!r}." if "video_path" in facts else ""
        raise NotImportable("The avatar has no folder full_imgs.", f"Give the clip it was made from: --video.{was}")
    return Material(
        boxes=boxes[:n],
        crops=[crop or (0, 0, 0, 0) for crop in crops[:n]],
        latents=_in_place(latents, faces, n),
        masks=masks,
        pictures=pictures,
        facts=facts,
    )


def _facts(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in INFO_FILES if (folder / name).is_file()), None)
    if file is None:
        return {}
    try:
        if file.stat().st_size > MAX_INFO_BYTES:
            raise ValueError("too large")
        facts = json.loads(file.read_bytes())
        if not isinstance(facts, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as exc:
        raise NotImportable(f"{file.name} cannot be read.", "Repair it, or remove it: it is not needed.") from exc
    return facts


def _version(facts: dict[str, Any]) -> str:
    """Which of the two scripts it was: v1's writes no version."""
    version = facts.get("version", "v1" if facts else "")
    return version if version in ("v1", "v15") else "unknown"


def _shift(facts: dict[str, Any]) -> dict[str, int | str]:
    shift = facts.get("bbox_shift")
    return {"bbox_shift": shift} if type(shift) is int and abs(shift) < 2**31 else {}


def _boxes(value: Any, name: str) -> list[Box | None]:
    """Whole numbers; None for the scripts' "no face", four zeros."""
    if type(value) is not list or not value:
        raise NotImportable(f"{name} is no list of boxes.", "Copy the avatar again.")
    return [_box(item, f"{name}, entry {index}") for index, item in enumerate(value)]


def _box(item: Any, where: str) -> Box | None:
    whole = isinstance(item, list | tuple) and len(item) == 4 and all(_is_whole(v) for v in item)
    if not whole:
        raise NotImportable(f"{where} is not a box of four whole numbers.", _PREPARE_HINT)
    x1, y1, x2, y2 = (int(v) for v in item)
    if x1 == y1 == x2 == y2 == 0:
        return None
    if not (x1 < x2 and y1 < y2):
        raise NotImportable(f"{where} is an empty box, {x1}, {y1}, {x2}, {y2}.", _PREPARE_HINT)
    return x1, y1, x2, y2


def _is_whole(value: Any) -> bool:
    return (type(value) is int or (type(value) is float and value.is_integer())) and abs(value) < 2**30


def _latents(file: Path, length: int) -> list[NDArray[Any]]:
    """Of each frame (8, 32, 32), float16 or float32, finite and of a size that a VAE's latents have."""
    found = read_tensors(file, max_bytes=length * MAX_TENSOR_BYTES + 2**20, max_entries=length + 64)
    if type(found) not in (list, tuple) or not all(isinstance(item, np.ndarray) for item in found):
        raise NotImportable(f"{file.name} is no list of tensors.", _PREPARE_HINT)
    for index, item in enumerate(found):
        where = f"{file.name}, entry {index}"
        if item.shape not in ((1, *FACE_LATENTS.shape), FACE_LATENTS.shape):
            raise NotImportable(f"{where} has the shape {item.shape}, not (1, 8, 32, 32).", _PREPARE_HINT)
        if not (np.abs(item, dtype=np.float32) <= MAX_LATENT).all():  # also not for NaN
            raise NotImportable(f"{where} has values that no latents have: above {MAX_LATENT:g}.", _PREPARE_HINT)
        if (item == item.flat[0]).all():
            raise NotImportable(f"{where} is the same number everywhere.", _PREPARE_HINT)
    return [item.reshape(FACE_LATENTS.shape) for item in found]


def _in_place(latents: list[NDArray[Any]], faces: list[bool], n: int) -> NDArray[np.float16]:
    """(n, 8, 32, 32). The scripts leave out the latents of frames without a face; here each stands at its frame."""
    placed = np.zeros((n, *FACE_LATENTS.shape), np.float16)
    indices = range(n) if len(latents) == len(faces) else [i for i in range(n) if faces[i]]
    for index, item in zip(indices, latents, strict=False):
        placed[index] = item
    return placed


def _require_mirror(name: str, items: Sequence[Any], same: Callable[[Any, Any], bool]) -> None:
    """Raise NotImportable unless the cycle reads the same from its end."""
    for front in range(len(items) // 2):
        back = len(items) - 1 - front
        if not same(items[front], items[back]):
            raise NotImportable(
                f"The avatar's cycle is not forward and back: {name} differs in entries {front} and {back}.",
                "Avatars are played to and fro, so another loop cannot be kept. " + _PREPARE_HINT,
            )


def _files(folder: Path, length: int, n: int) -> list[Path]:
    """The pictures 0 to n − 1 of a folder that has those, or all of the cycle, whose second half must mirror the first.

    Other files are of no concern: their scripts leave the source's own pictures beside the numbered ones.
    """
    numbered = {
        int(file.stem): file
        for file in folder.iterdir()
        if file.suffix.lower() in PICTURE_SUFFIXES and file.stem.isascii() and file.stem.isdigit() and file.is_file()
    }
    if sorted(numbered) not in (list(range(n)), list(range(length))):
        raise NotImportable(
            f"{folder.name}/ has {len(numbered)} numbered pictures, not {length} (or {n}) from 0 on.",
            "Copy the avatar again.",
        )
    files = [numbered[index] for index in range(len(numbered))]
    if len(files) == length:
        _require_mirror(f"{folder.name}/", files, _same_picture)
    return files[:n]


def _same_picture(a: Path, b: Path) -> bool:
    if a.stat().st_size == b.stat().st_size and a.read_bytes() == b.read_bytes():
        return True
    first, second = _pixels(a), _pixels(b)
    return first.shape == second.shape and bool((first == second).all())


def _pixels(file: Path, size: tuple[int, int] | None = None, mode: str = "RGB") -> U8:
    """uint8 (h, w, 3) RGB, or (h, w) with the mode "L". `size`: width and height it must have."""
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as picture:
            if size is not None and picture.size != size:
                raise NotImportable(
                    f"{file.parent.name}/{file.name} is {picture.width}×{picture.height}, "
                    f"its box in mask_coords.pkl {size[0]}×{size[1]}.",
                    "Copy the avatar again.",
                )
            return np.asarray(picture.convert(mode))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as exc:
        raise NotImportable(f"{file.parent.name}/{file.name} cannot be read.", "Copy the avatar again.") from exc


# -- into our files ---------------------------------------------------------------------------------------------------


def _store_pictures(
    material: Material, video: Path | None, draft: Path, fps: int, limits: Limits, progress: Progress
) -> Footage:
    n = len(material.boxes)
    if video is None:
        stills = StillPictures(material.pictures, limits)
        return _write_pictures(iter(stills), stills, draft, n, progress)
    with VideoReader(video, fps, limits.seconds, limits.pixels) as clip:
        if not clip.square_pixels:
            hint = "Put its frames, as MuseTalk saw them, into a folder full_imgs."
            raise NotImportable("The clip's pixels are not square, so the boxes do not fit its pictures.", hint)
        return _write_pictures(clip.every_frame(), clip, draft, n, progress)


def _write_pictures(
    pictures: Iterator[U8], source: StillPictures | VideoReader, draft: Path, n: int, progress: Progress
) -> Footage:
    rows, width = source.height * 3 // 2, source.width
    file = draft / "frames.yuv"
    require_space(draft, n * rows * width)
    count = 0
    with file.open("wb") as out:
        for i420 in pictures:
            count += 1
            if count > n:
                break
            out.write(np.ascontiguousarray(i420).data)
            progress("frames", count, n)
    if count != n:
        raise NotImportable(
            f"The clip has {'more' if count > n else count} frames, the avatar has {n}.",
            "Give the very clip that the avatar was made from.",
        )
    return Footage(np.memmap(file, np.uint8, "r", shape=(n, rows, width)), source.tags)


def _store_masks(material: Material, footage: Footage, draft: Path, progress: Progress) -> NDArray[np.void]:
    """masks.u8 written; returns the REGION records."""
    regions = np.zeros(len(material.boxes), REGION)
    with (draft / "masks.u8").open("wb") as masks:
        for index, (given, crop, file) in enumerate(zip(material.boxes, material.crops, material.masks, strict=True)):
            if given is not None:
                box = _inside(given, crop, footage.size, f"coords.pkl, entry {index}")
                mask = _pixels(file, (crop[2] - crop[0], crop[3] - crop[1]), "L")
                if (found := mask_region(mask, box, crop)) is not None:
                    region, cut = found
                    regions[index] = (True, box, region, masks.tell())
                    masks.write(cut.tobytes())
            progress("masks", index + 1, len(regions))
    return regions


def _inside(box: Box, crop: Box, size: tuple[int, int], where: str) -> Box:
    """The part of the box within the frame: what lies right of it or below was never in the crop that was encoded."""
    x1, y1, x2, y2 = box
    if not (crop[0] <= x1 and crop[1] <= y1 and x2 <= crop[2] and y2 <= crop[3]):
        raise NotImportable(f"{where} reaches past its crop box in mask_coords.pkl.", _PREPARE_HINT)
    inner = (x1, y1, min(x2, size[0]), min(y2, size[1]))
    if x1 < 0 or y1 < 0 or inner[2] - x1 < 2 or inner[3] - y1 < 2:
        message = f"{where} lies outside the pictures of {size[0]}×{size[1]}: {x1}, {y1}, {x2}, {y2}."
        raise NotImportable(message, "Are these the pictures that the avatar was made from?")
    return inner


def _require_same_vae(
    footage: Footage, regions: NDArray[np.void], latents: NDArray[np.float16], encode: EncodeFaces
) -> None:
    """Raise NotImportable unless `encode` makes of the stored faces what is stored as their latents.

    MuseTalk draws its latents from the VAE's posterior, so they agree but are not equal.
    """
    faces = np.flatnonzero(regions["has_face"])
    chosen = faces[np.linspace(0, faces.size - 1, min(SAMPLES, faces.size)).round().astype(int)]
    crops = np.stack([face_crop(footage.bgr(index), tuple(regions[index]["face"].tolist())) for index in chosen])
    ours = encode(crops).astype(np.float64)
    theirs = latents[chosen].astype(np.float64)
    agreement = min(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(ours, theirs, strict=True))
    if not agreement >= MIN_CORRELATION:
        raise NotImportable(
            f"The avatar's latents are not what the served models make of its faces (correlation {agreement:.2f}).",
            "Serve the weights that the avatar was prepared with. If you do, and the pictures or boxes were changed "
            "since, name the weights with --weights-id to skip this check, or prepare the avatar anew.",
        )
