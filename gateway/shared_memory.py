"""Memory that the gateway and a Triton on the same host both see: one region per batch, a bounded number of them.

A region is a file in /dev/shm. Its space is reserved when it is made, or writing to it could end the process (SIGBUS)
when /dev/shm is full. Its owner holds a lock on it, which the kernel frees when the owner is killed: what is not locked
is removed by the next gateway. Knows the contract's sizes, and nothing of Triton.
"""

import errno
import mmap
import os
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipserve.claims import abandoned, claim
from lipserve.contract import AUDIO_FEATURES, FACE_LATENTS, FACES, LIPSYNC, NORM_SUMS, Tensor

FOLDER = Path("/dev/shm")
PREFIX = "lipserve-batch-"
TENSORS = (AUDIO_FEATURES, FACE_LATENTS, NORM_SUMS, FACES)
KEPT_FREE = 64 << 20  # bytes of /dev/shm for others: Triton's Python backend fails if there are none when it needs them
PAGE = mmap.PAGESIZE


def tensor_bytes(tensor: Tensor, frames: int) -> int:
    """Bytes of `frames` frames of a tensor."""
    return frames * int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize


def _offsets() -> tuple[dict[Tensor, int], int]:
    """Where each tensor begins in a slot, in whole pages, and the bytes of all."""
    offsets, end = {}, 0
    for tensor in TENSORS:
        offsets[tensor] = end
        end += -(-tensor_bytes(tensor, LIPSYNC.max_batch_size) // PAGE) * PAGE
    return offsets, end


OFFSETS, SLOT_BYTES = _offsets()  # 4 MB: 0.6 of features, 0.3 of latents, 0.1 of norm sums, 3.1 of faces


class Slot:
    """A region that holds one batch, inputs and outputs, of at most LIPSYNC.max_batch_size frames."""

    def __init__(self) -> None:
        """Raises OSError where shared memory is missing, full or forbidden."""
        _require_space()
        self._handle, self.name = claim(FOLDER, f"{PREFIX}{os.getpid()}-")
        try:
            os.posix_fallocate(self._handle, 0, SLOT_BYTES)
            self._memory = mmap.mmap(self._handle, SLOT_BYTES)
        except OSError:
            self.close()
            raise
        self.registered = False  # whether Triton knows it, as far as we know

    @property
    def key(self) -> str:
        """What shm_open calls it."""
        return f"/{self.name}"

    def array(self, tensor: Tensor, frames: int) -> NDArray[Any]:
        """The first `frames` frames of a tensor: a view, (frames, *tensor.shape). It keeps the memory mapped."""
        if not 1 <= frames <= LIPSYNC.max_batch_size:
            raise ValueError(f"a slot holds 1 to {LIPSYNC.max_batch_size} frames, not {frames}")
        view: NDArray[Any] = np.ndarray((frames, *tensor.shape), tensor.dtype, self._memory, OFFSETS[tensor])
        return view

    def close(self) -> None:
        """Nobody can open it any more. Who has it mapped, Triton too, keeps it until he is done."""
        (FOLDER / self.name).unlink(missing_ok=True)
        with suppress(OSError):
            os.close(self._handle)
        self._handle = -1


class SlotPool:
    """At most `limit` slots, made when first needed, the last one used first. Safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: list[Slot] = []
        self._made: set[Slot] = set()
        self._lock = Lock()
        self._closed = False

    def __len__(self) -> int:
        return len(self._made)

    @property
    def free(self) -> list[Slot]:
        """Those in nobody's hands."""
        with self._lock:
            return list(self._free)

    def take(self, grow: bool = True) -> Slot | None:
        """A slot that is the caller's alone until it is put back or dropped; None: all are taken, and no more may be
        made, or are to be without `grow`. Raises OSError."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._closed or not grow or len(self._made) >= self._limit:
                return None
            slot = Slot()
            self._made.add(slot)
            return slot

    def put_back(self, slot: Slot) -> None:
        """Only when nobody reads or writes it any more, Triton least of all."""
        with self._lock:
            if not self._closed:
                self._free.append(slot)

    def drop(self, slot: Slot) -> None:
        """Never to be used again, since somebody may still write into it; another may be made in its place."""
        with self._lock:
            self._made.discard(slot)
            slot.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for slot in self._made:
                slot.close()
            self._made.clear()
            self._free.clear()


def remove_stale() -> None:
    """Remove regions whose gateways are gone. Those of living ones, in this process or another, are locked."""
    for _ in abandoned(FOLDER, f"{PREFIX}*"):
        pass


def is_ours(name: str) -> bool:
    """Whether a gateway gave a region this name."""
    return name.startswith(PREFIX)


def exists(name: str) -> bool:
    return (FOLDER / name).exists()


def _require_space() -> None:
    """Raise OSError unless a slot leaves KEPT_FREE."""
    found = os.statvfs(FOLDER)
    free = found.f_bavail * found.f_frsize
    if free < SLOT_BYTES + KEPT_FREE:
        raise OSError(errno.ENOSPC, f"{FOLDER} has {free >> 20} MB free, of which {KEPT_FREE >> 20} are left to others")
