"""Whether a weight file is what it claims to be: size, checksum, and that it opens as its kind.

Nothing is unpickled and no tensor is read. The messages are for the person at the terminal.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lipserve.weights.manifest import WeightFile
from lipserve.weights.pickles import NotACheckpoint, imports, is_zip

CHUNK = 2**20  # bytes
MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the format's own limit
DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
}
ONNX_GRAPH = 7  # field of ModelProto

Progress = Callable[[int], None]  # bytes read since the last call


class Damaged(Exception):
    """The file is not what it should be; the message says why."""


def verify(file: WeightFile, path: Path, progress: Progress = lambda read: None) -> str:
    """What was found to be right, in a word or two. Raises Damaged.

    Where the checksum is known, the file is the one its authors published, whatever it imports. Where it is not, a
    checkpoint that wants more than tensors is refused.
    """
    size = path.stat().st_size
    _refuse_stand_ins(path)
    if file.size is not None and size != file.size:
        raise Damaged(f"it has {size:,} bytes, not {file.size:,}")
    digest = None
    if file.sha256 is not None:
        digest = sha256(path, progress)
        if digest != file.sha256:
            raise Damaged(f"its sha256 is {digest}, not {file.sha256}")
    _OPENERS[file.kind](path, digest is not None)
    checked = (("size", file.size), ("sha256", digest), ("format", True))
    return ", ".join(name for name, done in checked if done is not None)


def sha256(path: Path, progress: Progress = lambda read: None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def _refuse_stand_ins(path: Path) -> None:
    """What lies where weights should be when a download went wrong without a word."""
    with path.open("rb") as handle:
        start = handle.read(200).lstrip().lower()
    if start.startswith(b"version https://git-lfs.github.com"):
        raise Damaged("it is a Git LFS pointer, not the file; in its repository, run: git lfs pull")
    if start.startswith((b"<!doctype html", b"<html")):
        raise Damaged("it is a web page, not the file: the server asked something instead of sending it")


def _open_json(path: Path, known: bool) -> None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as exc:
        raise Damaged(f"it is not JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise Damaged("it is JSON, but not a configuration: no object at its top")


def _open_safetensors(path: Path, known: bool) -> None:
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_SAFETENSORS_HEADER):
            raise Damaged("it is not safetensors, or cut off in its header")
        try:
            header = json.loads(handle.read(length))
        except ValueError as exc:
            raise Damaged("it is not safetensors: its header is not JSON") from exc
    if not isinstance(header, dict):
        raise Damaged("it is not safetensors: its header is no object")
    header.pop("__metadata__", None)
    end = 0
    for name, begin, stop in sorted(_spans(header), key=lambda span: span[1:]):
        if begin != end:
            raise Damaged(f"its tensors do not follow one another: {name} begins at {begin:,}, not at {end:,}")
        end = stop
    if 8 + length + end != size:
        raise Damaged(f"its header describes {8 + length + end:,} bytes, but it has {size:,}")


def _spans(header: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and end of each tensor, once dtype and shape agree with them."""
    for name, tensor in header.items():
        try:
            begin, stop = tensor["data_offsets"]
            bits = DTYPE_BITS[tensor["dtype"]] * math.prod(tensor["shape"])
            fits = 0 <= begin <= stop and (stop - begin) * 8 == bits
        except (KeyError, TypeError, ValueError) as exc:
            raise Damaged(f"its header does not describe {name} in a way that can be read") from exc
        if not fits:
            raise Damaged(f"its header gives {name} {stop - begin:,} bytes, which its shape does not need")
        yield name, begin, stop


def _open_torch(path: Path, known: bool) -> None:
    try:
        if is_zip(path):
            _check_archive(path, known)
        wanted = imports(path)
    except NotACheckpoint as exc:
        raise Damaged(str(exc)) from exc
    if wanted and not known:
        raise Damaged(f"it is a pickle that wants more than tensors: {', '.join(sorted(wanted))}")


def _check_archive(path: Path, known: bool) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = None if known else archive.testzip()  # reads all of it; a known checksum has said as much
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as exc:
        raise Damaged("it is a zip archive that is cut off or broken") from exc
    if bad is not None:
        raise Damaged(f"its part {bad} is broken")


def _open_onnx(path: Path, known: bool) -> None:
    """Walks the top level of the protobuf: it must hold a graph, and end where the file ends."""
    size = path.stat().st_size
    fields = set()
    with path.open("rb") as handle:
        while handle.tell() < size:
            tag = _varint(handle)
            fields.add(tag >> 3)
            if tag & 7 == 0:
                _varint(handle)
            elif tag & 7 == 2:
                handle.seek(_varint(handle), 1)
            else:
                raise Damaged("it is not ONNX")
        if handle.tell() != size:
            raise Damaged("it is cut off")
    if ONNX_GRAPH not in fields:
        raise Damaged("it is not ONNX: there is no graph in it")


def _varint(handle: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = handle.read(1)
        if not byte:
            raise Damaged("it is cut off")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise Damaged("it is not ONNX")


_OPENERS: dict[str, Callable[[Path, bool], None]] = {
    "json": _open_json,
    "safetensors": _open_safetensors,
    "torch": _open_torch,
    "onnx": _open_onnx,
}
