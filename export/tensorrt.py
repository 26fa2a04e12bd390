"""TensorRT engines from the checked ONNX graphs, held to the same reference as the graphs themselves.

An engine is of one GPU model, one TensorRT version, one graph and its batch profiles, and its file name says which:

    models/<profile>/engines/unet-nvidia-rtx-a5000-10.5.0-1a2b3c4d5e6f.plan

The network is strongly typed: TensorRT computes each tensor in the type that the graph gives it, so the graph's float32
islands stay islands. INT8 and FP8 engines are not built: INT8 needs calibration on real speech and real faces; Ampere
has no FP8 at all, and on cards that have it others measured it to be slower on this UNet. Needs no torch;
`tensorrt_bindings` is imported by the functions that need it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import cuda
from export.bundle import Bundle, data_file
from export.errors import EngineFailed, EngineUnavailable
from export.gate import Check, Reference, gate_batches, hold
from export.operators import require_operators
from export.repository import served_models
from export.triton_config import BATCH_PROFILES
from lipserve import contract

TRITON_IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"
TENSORRT_VERSION = "10.5.0"
# By name: the package tensorrt-cu12, which brings both, runs pip inside pip. The libraries are on NVIDIA's own index.
PACKAGE = (
    "--extra-index-url https://pypi.nvidia.com "
    f"tensorrt-cu12-bindings=={TENSORRT_VERSION} tensorrt-cu12-libs=={TENSORRT_VERSION}"
)
# In the export's image its build has written there which image TensorRT was taken out of, and the version.
TAKEN_FROM = Path("/opt/tensorrt/triton-image")

WORKSPACE = 4 << 30  # bytes a tactic may ask for while it is tried
HASH_DIGITS = 12

Profiles = Sequence[tuple[int, int, int]]  # (smallest, optimal, largest) batch of each optimisation profile


def require_tensorrt() -> None:
    """Raises EngineUnavailable, before any work, unless TensorRT in Triton's version and a GPU are there."""
    try:
        import tensorrt_bindings as tensorrt  # of the wheel alone: the name tensorrt is that of tensorrt-cu12
    except ImportError as exc:
        how = f"The export's image has it; outside of it: pip install -e '.[export,tensorrt]' {PACKAGE}"
        missing = isinstance(exc, ModuleNotFoundError)
        what = f"Python has no {exc.name}" if missing else f"TensorRT cannot be loaded ({exc})"
        raise EngineUnavailable(what, how) from exc
    version, (image, wanted) = str(tensorrt.__version__), serving_triton()
    if not f"{version}.".startswith(f"{wanted}."):
        raise EngineUnavailable(
            f"TensorRT is {version}, and {image} runs plans of {wanted} only",
            "Build the export's image anew, or, outside of it: pip install " + PACKAGE,
        )
    cuda.card()


def serving_triton() -> tuple[str, str]:
    """The Triton image that plans are built for, and the version of its TensorRT, as 10.5.0."""
    if not TAKEN_FROM.is_file():
        return TRITON_IMAGE, TENSORRT_VERSION
    image, version = TAKEN_FROM.read_text().split()
    return image, version


def build_engines(
    folder: Path, bundle: Bundle, say: Callable[[str], None], checked: Callable[[list[Check]], None]
) -> dict[str, Path]:
    """The engines of a profile's served graphs by model name, from `folder`/engines or built now; each is held to the
    reference, and `checked` told how far it is off. Raises EngineUnavailable, EngineFailed, GraphUnfit and
    ExportRefused."""
    require_operators(bundle.files)
    require_tensorrt()
    reference = Reference.load(folder)
    engines = {}
    for model in served_models(bundle.files):
        path, plan = kept_or_built(folder / "engines", model, bundle.files[model.name], BATCH_PROFILES[model.name], say)
        say(f"checking the engine of {model.name}")
        checked(check(model, plan, reference))
        keep(path, plan)
        engines[model.name] = path
    return engines


def kept_or_built(
    folder: Path, model: contract.Model, graph: Path, profiles: Profiles, say: Callable[[str], None]
) -> tuple[Path, bytes]:
    """The plan of a graph for this GPU, and the file in `folder` that it is from, or belongs into: that is not written.
    The timing cache lies beside it. Raises EngineFailed."""
    path = engine_file(folder, model, graph, profiles)
    if path.is_file():
        return path, path.read_bytes()
    say(f"building the engine of {model.name}: minutes")
    return path, build(model, graph, folder / f"{_machine()}.timing", profiles)


def build(model: contract.Model, graph: Path, timings: Path, profiles: Profiles) -> bytes:
    """Build a plan with these optimisation profiles; `timings` is read and written. Raises EngineFailed."""
    import tensorrt_bindings as trt

    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise EngineFailed(model.name, "; ".join(errors) or "the parser gave no reason")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
    # Refused if it is damaged, or of a device that has this name and other properties.
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    for smallest, optimal, largest in profiles:
        profile = builder.create_optimization_profile()
        for tensor in model.inputs:
            shapes = ((batch, *tensor.shape) for batch in (smallest, optimal, largest))
            profile.set_shape(tensor.name, *shapes)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineFailed(model.name, "; ".join(log.errors[-3:]) or "the builder gave no reason")
    if (cache := config.get_timing_cache()) is not None:
        keep(timings, bytes(cache.serialize()))
    return bytes(plan)


def check(model: contract.Model, plan: bytes, reference: Reference) -> list[Check]:
    """Run a plan on the reference's frames, on every optimisation profile in a batch of each size that it allows of
    those that are held. Raises EngineFailed, GraphUnfit and ExportRefused, which name the profile."""
    runner, profiles = Engine(model, plan), BATCH_PROFILES[model.name]
    if runner.profiles != len(profiles):
        raise EngineFailed(model.name, f"it has {runner.profiles} optimisation profiles instead of {len(profiles)}")
    checks = []
    for index, (smallest, _, largest) in enumerate(profiles):
        for batch in (size for size in gate_batches(model) if smallest <= size <= largest):
            frames = reference.repeated(batch)
            answer = runner.run(frames.feeds(model), index)
            checks.append(hold(model, frames.output(model), answer, f"{model.name}, profile {index}"))
    return checks


class Engine:
    """A plan on the GPU, with an execution context of its own."""

    def __init__(self, model: contract.Model, plan: bytes) -> None:
        import tensorrt_bindings as trt

        self.model = model
        self._log = _log(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._failed("the plan cannot be read")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failed("there is no memory for an execution context")
        self._stream = cuda.Stream()
        self._profile = -1

    @property
    def profiles(self) -> int:
        """How many optimisation profiles it has."""
        return int(self._engine.num_optimization_profiles)

    @property
    def memory(self) -> int:
        """Bytes of GPU memory that one execution context takes beside the weights."""
        return int(self._engine.device_memory_size)

    def run(self, feeds: Mapping[str, NDArray[np.generic]], profile: int = 0) -> NDArray[np.generic]:
        """The model's output for a batch of its inputs by name, each (n, ...). Raises EngineFailed and GpuFailed."""
        (tensor,) = self.model.outputs
        output = cuda.DeviceArray((len(next(iter(feeds.values()))), *tensor.shape), tensor.dtype)
        self.run_on_gpu({name: cuda.DeviceArray.of(feed) for name, feed in feeds.items()}, output, profile)
        return output.numpy()

    def run_on_gpu(self, inputs: Mapping[str, cuda.DeviceArray], output: cuda.DeviceArray, profile: int = 0) -> None:
        """The same between arrays on the GPU; returns when the output is there."""
        stream, (tensor,) = self._stream, self.model.outputs
        if profile != self._profile:
            done = self._context.set_optimization_profile_async(profile, stream.handle)
            self._require(done, f"optimisation profile {profile} cannot be set")
            self._profile = profile
        for name, values in inputs.items():
            shape = values.shape
            self._require(self._context.set_input_shape(name, shape), f"profile {profile} takes no {name} of {shape}")
            self._require(self._context.set_tensor_address(name, values.pointer), f"it has no input {name}")
        self._require(self._context.set_tensor_address(tensor.name, output.pointer), f"it has no {tensor.name}")
        self._require(self._context.execute_async_v3(stream.handle), "the engine did not run")
        stream.synchronize()

    def _require(self, done: bool, otherwise: str) -> None:
        if not done:
            raise self._failed(otherwise)

    def _failed(self, otherwise: str) -> EngineFailed:
        """With TensorRT's own last words, if it had any."""
        return EngineFailed(self.model.name, "; ".join(self._log.errors[-3:]) or otherwise)


def nearest_profile(model: contract.Model, batch: int) -> int:
    """The optimisation profile that Triton takes for a batch: of those that allow it, the nearest optimum."""
    profiles = enumerate(BATCH_PROFILES[model.name])
    fitting = [(abs(best - batch), index) for index, (least, best, most) in profiles if least <= batch <= most]
    return min(fitting)[1]


def engine_file(folder: Path, model: contract.Model, graph: Path, profiles: Profiles) -> Path:
    """Where in `folder` the engine of a graph with these profiles lies for this GPU and this TensorRT."""
    return folder / f"{model.name}-{_machine()}-{engine_hash(graph, profiles)}.plan"


def engine_hash(graph: Path, profiles: Profiles) -> str:
    """SHA-256 over the profiles, an ONNX file and its weights, the first digits."""
    sha = hashlib.sha256(repr([tuple(profile) for profile in profiles]).encode())
    for file in (graph, data_file(graph)):
        if file.is_file():
            with file.open("rb") as handle:
                while block := handle.read(1 << 24):
                    sha.update(block)
    return sha.hexdigest()[:HASH_DIGITS]


def _machine() -> str:
    """The GPU and the TensorRT here, as part of a file name."""
    import tensorrt_bindings as tensorrt

    gpu = re.sub(r"[^a-z0-9]+", "-", cuda.card().name.lower()).strip("-")
    return f"{gpu}-{tensorrt.__version__}"


def keep(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)


def _log(trt: Any) -> Any:
    """A log for TensorRT that keeps what went wrong, for the error to say."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()
