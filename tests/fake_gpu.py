"""A GPU that is not there: the CUDA runtime, NVML and TensorRT's runtime, over the host's memory.

`Gpu.install` puts them where `export.cuda` and `export.tensorrt` import them from. What is allocated is tracked to the
byte: a copy beyond it is an error of CUDA's, and what was not freed is in `memory`.
"""

import ctypes
import json
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lipserve import contract

DIRT = 0xA5  # what new memory is full of


class Error(IntEnum):
    """cudaError_t, with CUDA's own numbers."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorSystemDriverMismatch = 803


WORDS = {
    Error.cudaErrorInvalidValue: b"invalid argument",
    Error.cudaErrorIllegalAddress: b"an illegal memory access was encountered",
    Error.cudaErrorSystemDriverMismatch: b"system has unsupported display driver / cuda driver combination",
}


class Kind(IntEnum):
    """cudaMemcpyKind."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class Gpu:
    """cuda: of the driver, as CUDA says it, 0 without one; count: what asking for the devices answers; runtime: of the
    CUDA that the bindings bring. total: bytes of memory; used: by others."""

    def __init__(
        self,
        cuda: int = 12060,
        count: Error = Error.cudaSuccess,
        devices: int = 1,
        runtime: int = 12090,
        total: int = 23_028 << 20,
        used: int = 1 << 30,
    ) -> None:
        self.cuda, self.count, self.devices, self.runtime = cuda, count, devices, runtime
        self.total, self.used = total, used
        self.memory: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.freed = 0
        self.fails: dict[str, Error] = {}  # calls that fail from now on

    def __getattr__(self, name: str) -> Any:
        """A function of the runtime: `_name` below, unless it fails."""
        if not name.startswith("cuda"):
            raise AttributeError(name)
        call = object.__getattribute__(self, f"_{name}")
        return lambda *given: (self.fails[name], None) if name in self.fails else call(*given)

    cudaError_t, cudaMemcpyKind = Error, Kind

    def _cudaDriverGetVersion(self) -> Any:
        return Error.cudaSuccess, self.cuda

    def _cudaRuntimeGetVersion(self) -> Any:
        return Error.cudaSuccess, self.runtime

    def _cudaGetDeviceCount(self) -> Any:
        return self.count, self.devices if self.count == Error.cudaSuccess else None

    def _cudaGetErrorString(self, error: Error) -> Any:
        return Error.cudaSuccess, WORDS[error]

    def _cudaDeviceGetPCIBusId(self, length: int, device: int) -> Any:
        return Error.cudaSuccess, b"0000:01:00.0\0".ljust(length)

    def _cudaGetDeviceProperties(self, device: int) -> Any:
        name = b"NVIDIA RTX A5000".ljust(256, b"\0")
        return Error.cudaSuccess, SimpleNamespace(name=name, major=8, minor=6)

    def _cudaMemGetInfo(self) -> Any:
        taken = sum(len(block) for block in self.memory.values())
        return Error.cudaSuccess, self.total - self.used - taken, self.total

    def _cudaMalloc(self, size: int) -> Any:
        if size > self._cudaMemGetInfo()[1]:
            return Error.cudaErrorMemoryAllocation, None
        block = (ctypes.c_ubyte * size)(*[DIRT] * size)
        self.memory[ctypes.addressof(block)] = block
        return Error.cudaSuccess, ctypes.addressof(block)

    def _cudaFree(self, pointer: int) -> Any:
        if self.memory.pop(pointer, None) is None:
            return (Error.cudaErrorInvalidValue,)
        self.freed += 1
        return (Error.cudaSuccess,)

    def _cudaMemcpy(self, destination: int, source: int, size: int, kind: Kind) -> Any:
        device = destination if kind == Kind.cudaMemcpyHostToDevice else source
        if device not in self.memory or size > len(self.memory[device]):
            return (Error.cudaErrorInvalidValue,)
        ctypes.memmove(destination, source, size)
        return (Error.cudaSuccess,)

    def _cudaStreamCreate(self) -> Any:
        self.streams.add(handle := 0x5000 + len(self.streams))
        return Error.cudaSuccess, handle

    def _cudaStreamDestroy(self, handle: int) -> Any:
        self.streams.remove(handle)
        return (Error.cudaSuccess,)

    def _cudaStreamSynchronize(self, handle: int) -> Any:
        return (Error.cudaSuccess if handle in self.streams else Error.cudaErrorInvalidValue,)

    def view(self, pointer: int, shape: tuple[int, ...], dtype: str) -> Any:
        """An array over allocated memory; a KeyError where nothing, or less, is allocated."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(self.memory[pointer], np.uint8)[:size].view(dtype).reshape(shape)

    def install(self, patch: pytest.MonkeyPatch, nvml: Any = None) -> "Gpu":
        """As `cuda.bindings.runtime`; nvml: as `pynvml`, which is missing by default."""
        package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
        bindings.runtime = self  # type: ignore[attr-defined]
        for name, module in (("cuda", package), ("cuda.bindings", bindings), ("pynvml", nvml)):
            patch.setitem(sys.modules, name, module)
        return self


def nvml(
    driver: str = "560.35.03",
    ecc: int | str = 1,
    processes: tuple[tuple[int, int | None], ...] = (),
    there: bool = True,
) -> Any:
    """pynvml. ecc: 1 or 0, or the name of the error that asking for it raises; processes: (pid, bytes) of those that
    compute, the first of which also draws; there: whether NVML's own library is."""
    module: Any = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    for name in ("NVMLError_NotSupported", "NVMLError_LibraryNotFound", "NVMLError_NoPermission"):
        setattr(module, name, type(name, (module.NVMLError,), {}))
    module.opened = 0

    def init() -> None:
        if not there:
            raise module.NVMLError_LibraryNotFound
        module.opened += 1

    def shutdown() -> None:
        module.opened -= 1

    def ecc_mode(device: str) -> list[int]:
        assert device == "0000:01:00.0" and module.opened == 1
        if isinstance(ecc, str):
            raise getattr(module, ecc)
        return [ecc, 1 - ecc]  # what is pending is not what is

    running = [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes]
    module.nvmlInit, module.nvmlShutdown = init, shutdown
    module.nvmlSystemGetDriverVersion = lambda: driver
    module.nvmlDeviceGetHandleByPciBusId = lambda bus: bus
    module.nvmlDeviceGetEccMode = ecc_mode
    module.nvmlDeviceGetComputeRunningProcesses = lambda device: running
    module.nvmlDeviceGetGraphicsRunningProcesses = lambda device: running[:1]
    return module


# -- TensorRT's runtime -----------------------------------------------------------------------------------------------


def plan(profiles: list[tuple[int, int, int]], scale: float = 1.0) -> bytes:
    """A plan of the UNet: latents are the reference half of the face latents times `scale`."""
    return json.dumps({"profiles": profiles, "scale": scale}).encode()


def tensorrt(gpu: Gpu, version: str = "10.5.0") -> Any:
    """The module tensorrt, as far as plans are run."""
    severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)
    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    module.ILogger = type("ILogger", (), {"Severity": severity, "__init__": lambda self: None})
    module.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=lambda content: Plan(gpu, content))
    return module


class Plan:
    """A deserialised plan, which is its own and only execution context."""

    device_memory_size = 12_345

    def __init__(self, gpu: Gpu, content: bytes) -> None:
        self.gpu, self.content = gpu, json.loads(content)
        self.num_optimization_profiles = len(self.content["profiles"])
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def create_execution_context(self) -> "Plan":
        return self

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return stream in self.gpu.streams and profile < self.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.content["profiles"][self.profile]
        wanted = {tensor.name: tensor.shape for tensor in contract.UNET.inputs}
        self.shapes[name] = shape
        return smallest <= shape[0] <= largest and shape[1:] == wanted[name]

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return pointer in self.gpu.memory

    def execute_async_v3(self, stream: int) -> bool:
        shape = self.shapes["face_latents"]
        faces = self.gpu.view(self.addresses["face_latents"], shape, "float16")
        output = self.gpu.view(self.addresses["latents"], (shape[0], 4, 32, 32), "float16")
        output[...] = faces[:, 4:] * np.float16(self.content["scale"])
        return stream in self.gpu.streams
