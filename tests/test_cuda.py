"""The GPU as `export.cuda` sees it, through a stand-in of the CUDA runtime; what is said where none can be used."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest
from fake_gpu import DIRT, Error, Gpu

from export import cuda, tensorrt
from export.errors import EngineFailed, EngineUnavailable, GpuFailed, GpuUnavailable
from lipserve import contract


@pytest.fixture(autouse=True)
def no_kernel_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the kernel would say its driver's version."""
    file = tmp_path / "version"
    monkeypatch.setattr(cuda, "KERNEL_DRIVER", file)
    return file


# -- what is there ----------------------------------------------------------------------------------------------------


def test_the_card_in_two_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nvml = fake_gpu.nvml(processes=((7, 300_000_000), (8, None), (9, 900_000_000)))
    Gpu(used=2 << 30).install(monkeypatch, nvml)
    cuda.main()
    assert capsys.readouterr().out == (
        "NVIDIA driver 560.35.03, CUDA 12.6; NVIDIA RTX A5000, compute capability 8.6\n"
        "22.0 of 24.1 GB free, ECC on, other processes: 3 with 1.2 GB\n"
    )
    assert nvml.opened == 0


@pytest.mark.parametrize(("answer", "ecc"), [(0, False), ("NVMLError_NotSupported", False), ("NVMLError", None)])
def test_ecc_that_is_off_that_no_card_has_and_that_nobody_knows(
    answer: Any, ecc: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Gpu().install(monkeypatch, fake_gpu.nvml(ecc=answer))
    assert cuda.card().ecc is ecc


@pytest.mark.parametrize("nvml", [None, fake_gpu.nvml(there=False)])
def test_without_nvml_the_kernel_says_the_drivers_version(
    nvml: Any, monkeypatch: pytest.MonkeyPatch, no_kernel_driver: Path
) -> None:
    no_kernel_driver.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03  Fri Aug 16 21:39:15 UTC 2024\n"
    )
    Gpu().install(monkeypatch, nvml)
    assert str(cuda.card()) == (
        "NVIDIA driver 560.35.03, CUDA 12.6; NVIDIA RTX A5000, compute capability 8.6\n"
        "23.1 of 24.1 GB free, ECC unknown, other processes: unknown"
    )


def test_bindings_of_a_later_cuda_work_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(cuda=13000, runtime=13000, devices=2).install(monkeypatch, fake_gpu.nvml("580.159.04"))
    assert str(cuda.card().driver) == "NVIDIA driver 580.159.04, CUDA 13.0"


# -- what is not ------------------------------------------------------------------------------------------------------

REFUSALS = [
    (Gpu(cuda=0), None, "there is no NVIDIA driver; driver 560 or later is needed"),
    (
        Gpu(cuda=12020),
        fake_gpu.nvml("535.183.01"),
        "there is NVIDIA driver 535.183.01, CUDA 12.2; driver 560 or later is needed",
    ),
    (
        Gpu(cuda=12020),
        None,
        "there is NVIDIA driver of unknown version, CUDA 12.2; driver 560 or later is needed",
    ),
    (
        Gpu(count=Error.cudaErrorInsufficientDriver, runtime=13000),
        fake_gpu.nvml(),
        "there is NVIDIA driver 560.35.03, CUDA 12.6, too old for the cuda-bindings of CUDA 13.0; "
        "pip install 'cuda-bindings>=12.8,<13' takes this driver",
    ),
    (
        Gpu(count=Error.cudaErrorNoDevice),
        fake_gpu.nvml(),
        "there is NVIDIA driver 560.35.03, CUDA 12.6, and no GPU; "
        "CUDA_VISIBLE_DEVICES may hide it; nvidia-smi -L lists all",
    ),
    (
        Gpu(devices=0),
        fake_gpu.nvml(),
        "there is NVIDIA driver 560.35.03, CUDA 12.6, and no GPU; "
        "CUDA_VISIBLE_DEVICES may hide it; nvidia-smi -L lists all",
    ),
    (
        Gpu(count=Error.cudaErrorSystemDriverMismatch),
        fake_gpu.nvml(),
        "there is NVIDIA driver 560.35.03, CUDA 12.6, and CUDA says: system has unsupported display driver / cuda "
        "driver combination; nvidia-smi may say more",
    ),
]


@pytest.mark.parametrize(("gpu", "nvml", "said"), REFUSALS)
def test_what_cannot_be_used_is_said_in_a_sentence(
    gpu: Gpu, nvml: Any, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.install(monkeypatch, nvml)
    with pytest.raises(EngineUnavailable) as caught:
        cuda.card()
    assert str(caught.value) == f"no GPU can be used: {said}"
    with pytest.raises(SystemExit) as ended:
        cuda.main()
    assert (ended.value.code, capsys.readouterr().out) == (1, f"refused: no GPU can be used: {said}\n")
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", fake_gpu.tensorrt(gpu))
    with pytest.raises(GpuUnavailable):
        tensorrt.require_tensorrt()


def test_a_driver_without_its_library_is_a_container_without_the_gpu(
    monkeypatch: pytest.MonkeyPatch, no_kernel_driver: Path
) -> None:
    no_kernel_driver.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03  Fri Aug 16 21:39:15 UTC 2024\n"
    )
    Gpu(cuda=0).install(monkeypatch)
    with pytest.raises(GpuUnavailable) as caught:
        cuda.card()
    assert str(caught.value) == (
        "no GPU can be used: the kernel has NVIDIA driver 560.35.03, but its libcuda.so.1 is not here; "
        "a container gets it by --gpus all"
    )


def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(GpuUnavailable) as caught:
        cuda.free_memory()
    said = "no GPU can be used: Python has no cuda.bindings; pip install 'cuda-bindings>=12.8,<13' brings it"
    assert str(caught.value) == said


def test_this_machine_is_described_without_a_traceback() -> None:
    done = subprocess.run([sys.executable, "-m", "export.cuda"], capture_output=True, text=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) in (1, 2)
    assert done.returncode == (1 if done.stdout.startswith("refused: no GPU can be used: ") else 0)


# -- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_an_array_goes_there_and_comes_back(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, values = Gpu().install(monkeypatch), np.arange(24).reshape(2, 3, 4).astype(dtype)
    array = cuda.DeviceArray.of(values.transpose(2, 0, 1))  # not contiguous
    assert (array.shape, array.dtype, array.nbytes) == ((4, 2, 3), np.dtype(dtype), values.nbytes)
    assert (array.numpy() == values.transpose(2, 0, 1)).all()
    del array
    assert (gpu.memory, gpu.freed) == ({}, 1)


def test_a_new_array_is_not_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu().install(monkeypatch)
    assert cuda.DeviceArray((2, 2), "uint8").numpy().tolist() == [[DIRT, DIRT], [DIRT, DIRT]]


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(total=50_000_000, used=20_000_000).install(monkeypatch)
    with pytest.raises(GpuFailed) as caught:
        cuda.DeviceArray((100, 1000, 1000), "float16")
    said = "the GPU has no room for 200 MB: 30 of 50 MB are free. nvidia-smi shows what else is on it"
    assert str(caught.value) == said and gpu.memory == {}


def test_a_call_that_is_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu().install(monkeypatch)
    stream = cuda.Stream()
    gpu.fails["cudaStreamSynchronize"] = Error.cudaErrorIllegalAddress
    with pytest.raises(GpuFailed) as caught:
        stream.synchronize()
    assert str(caught.value) == "the GPU refused cudaStreamSynchronize: an illegal memory access was encountered"
    del stream, caught  # whose traceback refers to it
    assert gpu.streams == set()


# -- an engine on it --------------------------------------------------------------------------------------------------


def feeds(n: int) -> dict[str, Any]:
    rng = np.random.default_rng(n)
    return {t.name: rng.standard_normal((n, *t.shape)).astype(t.dtype) for t in contract.UNET.inputs}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu().install(monkeypatch, fake_gpu.nvml())
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", fake_gpu.tensorrt(gpu))
    return gpu


def test_an_engine_answers_on_every_profile_and_leaves_nothing_behind(gpu: Gpu) -> None:
    tensorrt.require_tensorrt()
    engine = tensorrt.Engine(contract.UNET, fake_gpu.plan([(1, 8, 32), (1, 1, 4)], scale=2))
    assert (engine.profiles, engine.memory) == (2, 12_345)
    for profile, n in ((0, 8), (0, 3), (1, 4), (0, 32), (1, 1)):
        given = feeds(n)
        answer = engine.run(given, profile)
        assert (answer.dtype, answer.shape) == (np.float16, (n, *contract.LATENTS.shape))
        assert (answer == given["face_latents"][:, 4:] * np.float16(2)).all()
        assert gpu.memory == {}
    assert gpu.freed == 5 * 3 and len(gpu.streams) == 1
    del engine
    assert gpu.streams == set()


def test_a_batch_beyond_the_profile_is_refused_and_freed(gpu: Gpu) -> None:
    engine = tensorrt.Engine(contract.UNET, fake_gpu.plan([(1, 8, 32), (1, 1, 4)]))
    with pytest.raises(EngineFailed, match=r"profile 1 takes no audio_features of \(5, 50, 384\)"):
        engine.run(feeds(5), 1)
    with pytest.raises(EngineFailed, match="optimisation profile 2 cannot be set"):
        engine.run(feeds(1), 2)
    assert gpu.memory == {}


def test_an_engine_without_room_for_its_output(gpu: Gpu) -> None:
    engine = tensorrt.Engine(contract.UNET, fake_gpu.plan([(1, 8, 32)]))
    gpu.used = gpu.total - 2_000_000
    with pytest.raises(GpuFailed, match="the GPU has no room for 1 MB: 1 of 24147 MB are free"):
        engine.run(feeds(32))
    assert gpu.memory == {}


def test_the_name_of_an_engine_is_of_the_card(gpu: Gpu, tmp_path: Path) -> None:
    name = tensorrt.engine_file(tmp_path, contract.UNET, tmp_path / "unet.onnx", [(1, 8, 32)]).name
    assert name.startswith("unet-nvidia-rtx-a5000-10.5.0-")
