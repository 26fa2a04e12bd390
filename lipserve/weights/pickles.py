"""What a torch checkpoint would import if it were unpickled, without unpickling it.

A pickle is a program; loading one from a stranger runs it. Here its instructions are only listed. Knows both of torch's
formats: a zip archive with the member `<name>/data.pkl` (since 1.6), and the older row of pickles in one file.
"""

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the older format's first pickle is this number
LEGACY_PICKLES = 3  # after it: protocol, system, then the object
MAX_PICKLE = 64 * 2**20  # bytes; the names and shapes of 10 000 tensors take one
# All that a state dict needs.
HARMLESS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "torch.serialization _get_layout",
    *(
        f"torch {kind}Storage"
        for kind in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short", "Untyped")
    ),
}


class NotACheckpoint(Exception):
    """The file is not what torch writes; the message says why."""


def is_zip(path: Path) -> bool:
    """Whether the file begins like a zip archive, whole or not."""
    with path.open("rb") as handle:
        return handle.read(4) == b"PK\x03\x04"


def imports(path: Path) -> set[str]:
    """All that the checkpoint asks for beyond tensors and their names: "module name" each. Raises NotACheckpoint."""
    found: set[str] = set()
    with path.open("rb") as handle:
        try:
            for stream, count in _pickles(path, handle):
                for _ in range(count):
                    found.update(_imports(stream))
        except (ValueError, EOFError, zipfile.BadZipFile, UnicodeDecodeError, OverflowError) as exc:
            raise NotACheckpoint(f"its pickle cannot be read to its end: {exc}") from exc
    return found - HARMLESS


def _pickles(path: Path, handle: IO[bytes]) -> Iterator[tuple[IO[bytes], int]]:
    if is_zip(path):
        with zipfile.ZipFile(handle) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if len(members) != 1:
                raise NotACheckpoint("it is a zip archive, but not one that torch has written: no data.pkl")
            if members[0].file_size > MAX_PICKLE:
                raise NotACheckpoint(f"its data.pkl has {members[0].file_size:,} bytes")
            yield io.BytesIO(archive.read(members[0])), 1
    elif _is_magic(handle):
        yield handle, LEGACY_PICKLES
    else:
        raise NotACheckpoint("it is neither a zip archive nor torch's older format")


def _is_magic(handle: IO[bytes]) -> bool:
    """Whether the pickle that comes next is the magic number; it is read."""
    head = handle.read(1)
    handle.seek(0)
    return head == b"\x80" and LEGACY_MAGIC in [argument for _, argument, _ in pickletools.genops(handle)]


def _imports(stream: IO[bytes]) -> Iterator[str]:
    """Of one pickle. Names made from parts that cannot be followed are reported as unreadable, not skipped."""
    strings: list[str] = []  # the last two are what STACK_GLOBAL takes; anything else in between makes them unreadable
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL":
            yield " ".join(strings[-2:]) if len(strings) >= 2 else "a name that cannot be read"
            strings.clear()
        elif "UNICODE" in opcode.name:
            strings.append(str(argument))
        elif opcode.name not in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "PROTO", "FRAME"):
            strings.clear()
