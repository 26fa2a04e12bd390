"""Preparation from end to end: source to frames, faces, masks and latents, into an open avatar folder.

The VAE encoder is handed in as a function, so nothing here knows Triton. Memory stays flat: pictures and masks go to
disk one by one. `progress` is called often; what it raises (Cancelled, say) ends the preparation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from avatar_prep.boxes import Box, crop_box, face_box
from avatar_prep.faces import Face, FaceFinder
from avatar_prep.masks import ParsingMode, blend_mask, mask_region
from avatar_prep.source import Limits, open_source
from avatar_prep.track import follow_largest
from lipserve.avatar import REGION, AvatarInfo, sha256, write_info
from lipserve.colour import U8, ColourTags, planes_to_bgr
from lipserve.contract import FACE_LATENTS, FACE_SIZE, MAX_FPS, MIN_FPS
from lipserve.errors import InvalidParameter, NoFace
from lipserve.store import require_space

PREVIEW_SIDE = 512  # pixels, the longer side
PREVIEW_QUALITY = 90  # of 100, JPEG
MAX_BATCH_SIZE = 32  # what callers of MuseTalk may ask for; the networks' own limits stand in the contract

# crops uint8 (n, 256, 256, 3) BGR to latents float16 (n, 8, 32, 32)
EncodeFaces = Callable[[U8], NDArray[np.float16]]


class Progress(Protocol):
    def __call__(self, stage: str, done: int, total: int | None) -> None: ...


class Parameters(BaseModel):
    """How to prepare: MuseTalk's names and defaults."""

    model_config = ConfigDict(frozen=True)

    version: Literal["v1", "v15"] = "v15"
    bbox_shift: int = Field(0, ge=-200, le=200, description="Pixels the box's half line is moved down; v1 only.")
    extra_margin: int = Field(10, ge=0, le=200, description="Pixels added below the chin; v15 only.")
    parsing_mode: ParsingMode = Field("jaw", description="What the mask covers; v1 always uses raw.")
    left_cheek_width: int = Field(90, ge=0, le=256, description="Half width kept of 512, left of the face's middle.")
    right_cheek_width: int = Field(90, ge=0, le=256, description="Half width kept of 512, right of the middle.")
    batch_size: int = Field(8, ge=1, le=MAX_BATCH_SIZE, description="Faces encoded at once.")
    fps: int = Field(25, ge=MIN_FPS, le=MAX_FPS, description="The avatar's constant frame rate.")

    def box(self, mesh: NDArray[np.float64], face: Face, size: tuple[int, int]) -> Box:
        shift, margin = (0, self.extra_margin) if self.version == "v15" else (self.bbox_shift, 0)
        return face_box(mesh, face, size, shift, margin)

    def mask(self, mesh: NDArray[np.float64], box: Box, crop: Box) -> U8:
        mode = self.parsing_mode if self.version == "v15" else "raw"
        return blend_mask(mesh, box, crop, mode, self.left_cheek_width, self.right_cheek_width)


def checked_parameters(given: Mapping[str, object]) -> Parameters:
    """Raises InvalidParameter, naming the first one that is wrong."""
    try:
        return Parameters.model_validate(given)
    except ValidationError as exc:
        first = exc.errors()[0]
        hint = "`lipserve prepare --help` and the API's /docs list the parameters."
        raise InvalidParameter(f"{first['loc'][0]}: {first['msg']}.", hint) from exc


@dataclass(frozen=True)
class Footage:
    """The source's pictures, on disk: uint8 (n, h·3/2, w), I420."""

    pictures: U8
    tags: ColourTags

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
        return self.pictures.shape[2], self.pictures.shape[1] * 2 // 3

    def bgr(self, index: int) -> U8:
        return planes_to_bgr(self.pictures[index], self.tags.matrix)


def prepare(
    source: Path,
    draft: Path,
    avatar_id: str,
    parameters: Parameters,
    finder: FaceFinder,
    encode: EncodeFaces,
    weights_id: str,
    limits: Limits,
    progress: Progress,
    source_name: str | None = None,
) -> AvatarInfo:
    """Fill the empty folder `draft` (see lipserve.avatar). Raises NotAVideo, VideoDamaged, VideoTooLarge or NoFace."""
    footage = _decode(source, draft, parameters.fps, limits, progress)
    faces = _find_faces(footage, finder, progress)
    regions = _encode_faces(footage, faces, draft, parameters, finder, encode, progress)
    about = About(avatar_id, source_name or source.name, sha256(source), parameters.model_dump(), weights_id)
    return finish(draft, about, parameters.fps, footage, regions)


class About(NamedTuple):
    """Where an avatar comes from, as avatar.json keeps it."""

    avatar_id: str
    source: str
    source_sha256: str
    parameters: dict[str, Any]
    weights_id: str


def finish(draft: Path, about: About, fps: int, footage: Footage, regions: NDArray[np.void]) -> AvatarInfo:
    """Write the preview and, last, avatar.json."""
    info = AvatarInfo(
        avatar_id=about.avatar_id,
        prepared_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source=about.source.encode(errors="replace").decode(),  # a name on disk may be any bytes
        source_sha256=about.source_sha256,
        parameters=about.parameters,
        weights_id=about.weights_id,
        fps=fps,
        width=footage.size[0],
        height=footage.size[1],
        frames=len(regions),
        frames_without_face=int((~regions["has_face"]).sum()),
        colour_space=footage.tags.space,
        colour_primaries=footage.tags.primaries,
        colour_transfer=footage.tags.transfer,
    )
    write_preview(footage.bgr(int(np.argmax(regions["has_face"]))), draft)
    write_info(draft, info)
    return info


def _decode(source: Path, draft: Path, fps: int, limits: Limits, progress: Progress) -> Footage:
    file = draft / "frames.yuv"
    with open_source(source, fps, limits) as pictures, file.open("wb") as out:
        expected, picture_size = pictures.expected_frames, pictures.width * pictures.height * 3 // 2
        require_space(draft, picture_size * (expected or 1))
        count = 0
        for i420 in pictures:
            out.write(np.ascontiguousarray(i420).data)
            count += 1
            if count % 64 == 0:
                require_space(draft, picture_size * 64)
            progress("decode", count, expected)
        shape = (count, pictures.height * 3 // 2, pictures.width)
        tags = pictures.tags
    return Footage(np.memmap(file, np.uint8, "r", shape=shape), tags)


def _find_faces(footage: Footage, finder: FaceFinder, progress: Progress) -> list[Face | None]:
    total = len(footage.pictures)
    detections = []
    for index in range(total):
        detections.append(finder.detect(footage.bgr(index)))
        progress("faces", index + 1, total)
    faces = follow_largest(detections, lambda: progress("faces", total, total))
    require_faces([face is not None for face in faces])
    return faces


def require_faces(present: Sequence[bool]) -> None:
    """Raise NoFace if more than half of the frames have none."""
    missing = [i for i, there in enumerate(present) if not there]
    hint = "Use a clip of one person looking towards the camera, the face at least a tenth of the picture."
    if len(missing) == len(present):
        raise NoFace(f"No face was found in any of the {len(present)} frames.", hint)
    if len(missing) * 2 > len(present):
        raise NoFace(f"No face in {len(missing)} of {len(present)} frames: {_ranges(missing)}.", hint)


def _ranges(numbers: Sequence[int], most: int = 20) -> str:
    """[0, 1, 2, 7] as "0–2, 7"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    shown = [f"{a}–{b}" if a < b else f"{a}" for a, b in parts[:most]]
    return ", ".join(shown) + (", …" if len(parts) > most else "")


def _encode_faces(
    footage: Footage,
    faces: Sequence[Face | None],
    draft: Path,
    parameters: Parameters,
    finder: FaceFinder,
    encode: EncodeFaces,
    progress: Progress,
) -> NDArray[np.void]:
    """Masks, boxes and latents of every frame, written; returns the REGION records."""
    total = len(faces)
    regions = np.zeros(total, REGION)
    latents = np.zeros((total, *FACE_LATENTS.shape), FACE_LATENTS.dtype)
    crops: list[tuple[int, U8]] = []

    def flush() -> None:
        if crops:
            latents[[index for index, _ in crops]] = encode(np.stack([crop for _, crop in crops]))
            crops.clear()

    with (draft / "masks.u8").open("wb") as masks:
        for index, face in enumerate(faces):
            picture = footage.bgr(index)
            mesh = finder.mesh(picture, face) if face is not None else None
            if face is not None and mesh is not None:
                box = parameters.box(mesh, face, footage.size)
                crop = crop_box(box)
                found = mask_region(parameters.mask(mesh, box, crop), box, crop)
                if found is not None:
                    region, mask = found
                    regions[index] = (True, box, region, masks.tell())
                    masks.write(mask.tobytes())
                    crops.append((index, face_crop(picture, box)))
            if len(crops) == parameters.batch_size:
                flush()
            progress("encode", index + 1, total)
        flush()
    require_faces(regions["has_face"].tolist())
    np.save(draft / "latents.npy", latents)
    np.save(draft / "regions.npy", regions)
    return regions


def face_crop(picture: U8, box: Box) -> U8:
    """The VAE encoder's input: uint8 (256, 256, 3) BGR."""
    x1, y1, x2, y2 = box
    size = (FACE_SIZE, FACE_SIZE)
    return cv2.resize(picture[y1:y2, x1:x2], size, interpolation=cv2.INTER_LANCZOS4).astype(np.uint8, copy=False)


def write_preview(picture: U8, draft: Path) -> None:
    scale = min(1.0, PREVIEW_SIDE / max(picture.shape[:2]))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if not cv2.imwrite(str(draft / "preview.jpg"), small, [cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY]):
        raise OSError(f"OpenCV could not write the preview into {draft}")
