"""The NVIDIA GPU of this machine, without torch: what it is, how much of its memory is free, arrays and a stream on it.

    python -m export.cuda

Prints the driver, the card and its memory; exit code 1, and what is needed, where no GPU can be used. Of several GPUs
it is the first, which CUDA_VISIBLE_DEVICES chooses. Knows nothing of networks. `cuda.bindings` (the CUDA runtime) and
`pynvml` (what the driver says beside it: ECC, processes) are imported by the functions that need them.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from export.errors import ExportError, GpuFailed, GpuUnavailable

NEEDED_DRIVER = "560"  # the first of the CUDA that Triton 24.10 and its TensorRT are built with
NEEDED_CUDA = (12, 6)
KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Driver:
    """version: of the kernel's module, as 560.35.03, or empty where nobody says; cuda: the newest CUDA that it runs."""

    version: str
    cuda: tuple[int, int]

    def __str__(self) -> str:
        return f"NVIDIA driver {self.version or 'of unknown version'}, CUDA {self.cuda[0]}.{self.cuda[1]}"


@dataclass(frozen=True)
class Card:
    """A GPU. total, free: bytes, free beside what this process' own CUDA context takes; ecc: None where nobody says;
    others: bytes of each process that was on it before, None where nobody says."""

    name: str
    capability: tuple[int, int]
    driver: Driver
    total: int
    free: int
    ecc: bool | None
    others: tuple[int, ...] | None

    def __str__(self) -> str:
        """Two lines: driver and card; memory."""
        ecc = {True: "ECC on", False: "ECC off", None: "ECC unknown"}[self.ecc]
        others = "other processes: unknown"
        if self.others is not None:
            others = f"other processes: {len(self.others)} with {sum(self.others) / GB:.1f} GB"
        model = f"{self.name}, compute capability {self.capability[0]}.{self.capability[1]}"
        return f"{self.driver}; {model}\n{self.free / GB:.1f} of {self.total / GB:.1f} GB free, {ecc}, {others}"


def card() -> Card:
    """The GPU that is used. Raises GpuUnavailable, and GpuFailed."""
    cudart = _cudart()
    driver = _usable(cudart)
    bus = _text(_call(cudart, "cudaDeviceGetPCIBusId", 32, 0))
    ecc, others = _ecc_and_others(bus)  # first: what follows makes this process one of them
    properties = _call(cudart, "cudaGetDeviceProperties", 0)
    free, total = _call(cudart, "cudaMemGetInfo")
    return Card(
        _text(properties.name), (properties.major, properties.minor), driver, int(total), int(free), ecc, others
    )


def free_memory() -> int:
    """Bytes. Raises GpuUnavailable and GpuFailed."""
    free, _ = _call(_cudart(), "cudaMemGetInfo")
    return int(free)


# -- arrays and a stream ----------------------------------------------------------------------------------------------


class DeviceArray:
    """An array in the GPU's memory, not initialised; freed when nobody refers to it any more."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = prod(shape) * self.dtype.itemsize
        cudart = _cudart()
        error, pointer = cudart.cudaMalloc(self.nbytes)
        if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
            free, total = _call(cudart, "cudaMemGetInfo")
            room = f"{free / MB:.0f} of {total / MB:.0f} MB are free"
            raise GpuFailed(f"has no room for {self.nbytes / MB:.0f} MB: {room}. nvidia-smi shows what else is on it")
        _require(cudart, error, "cudaMalloc")
        self.pointer = int(pointer)
        weakref.finalize(self, cudart.cudaFree, self.pointer)

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> DeviceArray:
        """A copy of the values."""
        made = cls(values.shape, values.dtype)
        cudart, values = _cudart(), np.ascontiguousarray(values)
        to_device = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(cudart, "cudaMemcpy", made.pointer, values.ctypes.data, made.nbytes, to_device)
        return made

    def numpy(self) -> NDArray[np.generic]:
        """A copy in the host's memory."""
        cudart, values = _cudart(), np.empty(self.shape, self.dtype)
        to_host = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(cudart, "cudaMemcpy", values.ctypes.data, self.pointer, self.nbytes, to_host)
        return values


class Stream:
    """A stream, which waits for the copies of `DeviceArray` and they for it, as CUDA's default stream has it."""

    def __init__(self) -> None:
        cudart = _cudart()
        stream = _call(cudart, "cudaStreamCreate")
        self.handle = int(stream)
        weakref.finalize(self, cudart.cudaStreamDestroy, stream)

    def synchronize(self) -> None:
        """Wait until all is done. Raises GpuFailed for what went wrong meanwhile."""
        _call(_cudart(), "cudaStreamSynchronize", self.handle)


# -- the runtime and the driver ---------------------------------------------------------------------------------------


def _cudart() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as exc:
        raise GpuUnavailable("Python has no cuda.bindings", "pip install 'cuda-bindings>=12.8,<13' brings it") from exc
    return runtime


def _call(cudart: Any, name: str, *given: Any) -> Any:
    """What a function of the CUDA runtime answers: nothing, a value or several. Raises GpuFailed."""
    error, *values = getattr(cudart, name)(*given)
    _require(cudart, error, name)
    return values[0] if len(values) == 1 else values


def _require(cudart: Any, error: Any, name: str) -> None:
    if error != cudart.cudaError_t.cudaSuccess:
        raise GpuFailed(f"refused {name}: {_words(cudart, error)}")


def _words(cudart: Any, error: Any) -> str:
    _, text = cudart.cudaGetErrorString(error)
    return _text(text)


def _text(field: bytes) -> str:
    """Of a field of C, which has anything after its end."""
    return bytes(field).partition(b"\0")[0].decode()


def _usable(cudart: Any) -> Driver:
    """The driver, which is new enough and has a GPU. Raises GpuUnavailable."""
    version, code = _driver_version(), int(_call(cudart, "cudaDriverGetVersion"))
    needed = f"driver {NEEDED_DRIVER} or later is needed"
    if not code and version:
        hint = "a container gets it by --gpus all"
        raise GpuUnavailable(f"the kernel has NVIDIA driver {version}, but its libcuda.so.1 is not here", hint)
    if not code:
        raise GpuUnavailable("there is no NVIDIA driver", needed)
    driver = Driver(version, _release(code))
    if driver.cuda < NEEDED_CUDA:
        raise GpuUnavailable(f"there is {driver}", needed)
    error, count = cudart.cudaGetDeviceCount()
    if error == cudart.cudaError_t.cudaErrorInsufficientDriver:
        bound = ".".join(map(str, _release(int(_call(cudart, "cudaRuntimeGetVersion")))))
        hint = "pip install 'cuda-bindings>=12.8,<13' takes this driver"
        raise GpuUnavailable(f"there is {driver}, too old for the cuda-bindings of CUDA {bound}", hint)
    if error == cudart.cudaError_t.cudaErrorNoDevice or (error == cudart.cudaError_t.cudaSuccess and not count):
        raise GpuUnavailable(
            f"there is {driver}, and no GPU", "CUDA_VISIBLE_DEVICES may hide it; nvidia-smi -L lists all"
        )
    if error != cudart.cudaError_t.cudaSuccess:
        raise GpuUnavailable(f"there is {driver}, and CUDA says: {_words(cudart, error)}", "nvidia-smi may say more")
    return driver


def _release(code: int) -> tuple[int, int]:
    """12060 is CUDA 12.6."""
    return code // 1000, code % 1000 // 10


def _driver_version() -> str:
    """As 560.35.03, by NVML or the kernel; empty where neither says."""
    with _nvml() as pynvml:
        if pynvml is not None:
            return str(pynvml.nvmlSystemGetDriverVersion())
    try:
        found = re.search(r"\s(\d+(?:\.\d+)+)\s", KERNEL_DRIVER.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def _ecc_and_others(bus: str) -> tuple[bool | None, tuple[int, ...] | None]:
    """Whether the GPU on a PCI bus has its ECC on, and the bytes of each process on it; None where NVML is silent."""
    with _nvml() as pynvml:
        if pynvml is None:
            return None, None
        try:
            device = pynvml.nvmlDeviceGetHandleByPciBusId(bus)
        except pynvml.NVMLError:
            return None, None
        return _ecc(pynvml, device), _others(pynvml, device)


def _ecc(pynvml: Any, device: Any) -> bool | None:
    try:
        current, _ = pynvml.nvmlDeviceGetEccMode(device)
    except pynvml.NVMLError_NotSupported:
        return False  # a card without ECC
    except pynvml.NVMLError:
        return None
    return bool(current)


def _others(pynvml: Any, device: Any) -> tuple[int, ...] | None:
    """A process that computes and draws is in both lists."""
    found: dict[int, int] = {}
    try:
        for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
            found |= {process.pid: process.usedGpuMemory or 0 for process in ask(device)}
    except pynvml.NVMLError:
        return None
    return tuple(found.values())


@contextmanager
def _nvml() -> Iterator[Any]:
    """The module pynvml with NVML opened, or None without the package or the driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        yield None
        return
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def main() -> None:
    try:
        print(card())
    except ExportError as error:
        print(f"refused: {error}")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
