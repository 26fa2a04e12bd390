"""Writes avatars in the layout of MuseTalk's realtime scripts, and blends as those scripts do.

Files of torch.save are written without torch: a pickle of instructions put together here, and the tensors' memory
beside it in a zip.
"""

import json
import pickle
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from samples import LISA

from avatar_prep.boxes import Box, crop_box
from lipserve.avatar import Avatar
from lipserve.colour import U8, planes_to_bgr
from lipserve.media import VideoReader

STORAGES = {"f4": b"FloatStorage", "f2": b"HalfStorage", "bf16": b"BFloat16Storage"}


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def tensor_pickle(
    kind: bytes, key: str, elements: int, size: Sequence[int], stride: Sequence[int], offset: int
) -> bytes:
    """The instructions of one tensor, as torch.save writes them for protocol 2."""
    storage = b"(" + _text("storage") + b"ctorch\n" + kind + b"\n" + _text(key) + _text("cuda:0")
    storage += b"J" + struct.pack("<i", elements) + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    place = b"J" + struct.pack("<i", offset) + _numbers(size) + _numbers(stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + hooks + b"tR"


def list_pickle(items: Sequence[bytes]) -> bytes:
    return b"\x80\x02](" + b"".join(items) + b"e."


def to_memory(array: NDArray[np.float32], code: str) -> bytes:
    if code == "bf16":
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(array, f"<{code}").tobytes()


def write_zip(file: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file


def write_tensors(file: Path, tensors: Sequence[NDArray[np.float32]], code: str = "f4") -> Path:
    """What torch.save(list of tensors) writes; an array that is there twice is one tensor there, too."""
    keys: dict[int, int] = {}
    entries = {"latents/data.pkl": b"", "latents/byteorder": b"little", "latents/version": b"3\n"}
    items = []
    for tensor in tensors:
        if id(tensor) in keys:
            items.append(b"h" + bytes([keys[id(tensor)]]))
            continue
        number = keys[id(tensor)] = len(keys)
        stride = [int(np.prod(tensor.shape[axis + 1 :])) for axis in range(tensor.ndim)]
        built = tensor_pickle(STORAGES[code], str(number), tensor.size, tensor.shape, stride, 0)
        items.append(built + b"q" + bytes([number]))
        entries[f"latents/data/{number}"] = to_memory(tensor, code)
    entries["latents/data.pkl"] = list_pickle(items)
    return write_zip(file, entries)


@dataclass
class Theirs:
    """An avatar before it is written: one entry per frame, forward only. Pictures are BGR."""

    pictures: list[U8]
    boxes: list[Box]
    masks: list[U8]
    latents: list[NDArray[np.float32]]  # (1, 8, 32, 32)
    crops: list[Box] = field(default_factory=list)
    info: dict[str, object] = field(default_factory=lambda: {"avatar_id": "x", "bbox_shift": 0, "version": "v15"})

    def __post_init__(self) -> None:
        self.crops = self.crops or [crop_box(box) for box in self.boxes]

    def cycle(self) -> list[int]:
        n = len(self.pictures)
        return [*range(n), *reversed(range(n))]

    def write(self, folder: Path, order: Sequence[int] | None = None, code: str = "f4") -> Path:
        """As the scripts do: everything in the order of the cycle, or in any other."""
        order = self.cycle() if order is None else order
        for name in ("full_imgs", "mask", "vid_output"):
            (folder / name).mkdir(parents=True)
        for place, index in enumerate(order):
            cv2.imwrite(str(folder / f"full_imgs/{place:08d}.png"), self.pictures[index])
            cv2.imwrite(str(folder / f"mask/{place:08d}.png"), self.masks[index])
        # their lists mix Python's and numpy's integers of both widths
        boxes = [(np.int32(x1), y1, np.int32(x2), np.int64(y2)) for x1, y1, x2, y2 in self.boxes]
        crops = [list(map(np.int64, crop)) for crop in self.crops]
        (folder / "coords.pkl").write_bytes(pickle.dumps([boxes[i] for i in order]))
        (folder / "mask_coords.pkl").write_bytes(pickle.dumps([crops[i] for i in order]))
        write_tensors(folder / "latents.pt", [self.latents[i] for i in order], code)
        (folder / "avator_info.json").write_text(json.dumps(self.info))
        return folder


def soft_mask(box: Box, crop: Box, seed: int) -> U8:
    """uint8 on the crop box: an ellipse in the face's lower half, blurred past the face box, as MuseTalk's is."""
    side = crop[2] - crop[0]
    mask = np.zeros((side, side), np.uint8)
    centre = ((box[0] + box[2]) // 2 - crop[0] + seed, (box[1] + 3 * box[3]) // 4 - crop[1])
    cv2.ellipse(mask, centre, ((box[2] - box[0]) // 2 - 2, (box[3] - box[1]) // 4), 0, 0, 360, 255, -1)
    kernel = int(0.1 * side // 2 * 2) + 1
    return cv2.GaussianBlur(mask, (kernel, kernel), 0).astype(np.uint8, copy=False)


def lisa(frames: int, seed: int = 0) -> Theirs:
    """Of the bundled clip's first frames: boxes that wander by odd pixels, and latents of noise."""
    random = np.random.default_rng(seed)
    boxes: list[Box] = [(151 + 3 * i, 160 + i, 340 + 2 * i, 401 + i) for i in range(frames)]
    with VideoReader(LISA, 25, 60, 10**7) as video:
        pictures = [planes_to_bgr(picture, video.tags.matrix) for _, picture in zip(range(frames), video, strict=False)]
    return Theirs(
        pictures=pictures,
        boxes=boxes,
        masks=[soft_mask(box, crop_box(box), i) for i, box in enumerate(boxes)],
        latents=[random.normal(size=(1, 8, 32, 32)).astype(np.float32) for _ in range(frames)],
    )


def as_theirs(avatar: Avatar) -> Theirs:
    """One of our avatars, all of whose frames have a face, as MuseTalk's scripts would have prepared it."""
    boxes = [tuple(int(v) for v in record["face"]) for record in avatar.regions]
    masks = []
    for index, box in enumerate(boxes):
        x1, y1, x2, y2 = crop_box(box)
        left, top, right, bottom = (int(v) for v in avatar.regions[index]["region"])
        mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
        mask[top - y1 : bottom - y1, left - x1 : right - x1] = avatar.mask(index)
        masks.append(mask)
    return Theirs(
        pictures=[planes_to_bgr(picture, avatar.info.tags.matrix) for picture in avatar.frames],
        boxes=boxes,
        masks=masks,
        latents=[latents[None].astype(np.float32) for latents in avatar.latents],
    )


def their_blend(picture: U8, face: U8, box: Box, mask: U8, crop: Box) -> U8:
    """What v1.5's scripts do to a BGR picture, with Pillow as they have it."""
    body = Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1]))
    resized = cv2.resize(face, (box[2] - box[0], box[3] - box[1]))
    large = body.crop(crop)
    large.paste(Image.fromarray(np.ascontiguousarray(resized[:, :, ::-1])), (box[0] - crop[0], box[1] - crop[1]))
    body.paste(large, (crop[0], crop[1]), Image.fromarray(mask))
    return np.ascontiguousarray(np.asarray(body)[:, :, ::-1])


def blend_of_v1(picture: U8, face: U8, box: Box, mask: U8, crop: Box) -> U8:
    """What v1's scripts do, with OpenCV's weights between 0 and 1; the crop box lies within the picture."""
    out = picture.copy()
    body = out[crop[1] : crop[3], crop[0] : crop[2]]
    large = body.copy()
    x, y = box[0] - crop[0], box[1] - crop[1]
    large[y : y + box[3] - box[1], x : x + box[2] - box[0]] = cv2.resize(face, (box[2] - box[0], box[3] - box[1]))
    weights = (mask / 255).astype(np.float32)
    body[:] = cv2.blendLinear(large, body, weights, 1 - weights)
    return out


def stored_blend(avatar: Avatar, index: int, picture: U8, face: U8) -> U8:
    """The same in BGR, but with the box, region and mask that the avatar folder has: no I420 in between."""
    x1, y1, x2, y2 = (int(v) for v in avatar.regions[index]["face"])
    left, top, right, bottom = (int(v) for v in avatar.regions[index]["region"])
    pasted, out = picture.copy(), picture.copy()
    pasted[y1:y2, x1:x2] = cv2.resize(face, (x2 - x1, y2 - y1))
    part = np.s_[top:bottom, left:right]
    m = avatar.mask(index)[:, :, None].astype(np.uint16)
    mixed = picture[part] * (255 - m) + pasted[part] * m + 128
    out[part] = ((mixed >> 8) + mixed) >> 8
    return out
