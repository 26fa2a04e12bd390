"""A complete Triton model repository, there whole or not at all.

Knows which files lie where and puts them there in one move; what is in them comes from `triton_config`, from
`triton_model.py` and from the graphs it is handed.
"""

import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from export.bundle import data_file, find_graphs
from export.errors import UnknownTarget
from export.profiles import precision, require_profile
from export.triton_config import CPU, ONNX, TARGETS, TENSORRT, ensemble_config, model_config
from lipserve import contract

__all__ = [
    "CPU",
    "ONNX",
    "TARGETS",
    "TENSORRT",
    "ensemble",
    "graph_path",
    "replaced",
    "require_target",
    "served_graphs",
    "served_models",
    "write_repository",
]

VERSION = "1"
BACKEND_MODEL = Path(__file__).with_name("triton_model.py")

SERVED = tuple(model for model in contract.MODELS if model is not contract.LIPSYNC)  # those with a graph of their own
LOWER_SERVED = (contract.UNET, contract.LOWER_DECODER, contract.REFERENCE_SUMS, contract.VAE_ENCODER)


def require_target(target: str) -> None:
    """Refuse a target that does not exist."""
    if target not in TARGETS:
        raise UnknownTarget(target, TARGETS)


def served_graphs(models_dir: Path, profile: str, target: str) -> dict[str, Path]:
    """A profile's exported graphs that a target serves, by model name.

    Raises UnknownProfile, UnknownTarget, GraphsMissing and GraphUnfit.
    """
    require_profile(profile)
    require_target(target)
    folder = models_dir / profile
    files, _ = find_graphs(folder, precision(profile, target))
    return {model.name: files[model.name] for model in served_models(files)}


def served_models(names: Container[str]) -> tuple[contract.Model, ...]:
    """Triton's models with a graph of their own, where these are the graphs' names."""
    return LOWER_SERVED if contract.REFERENCE_SUMS.name in names else SERVED


def ensemble(names: Container[str]) -> contract.Model:
    """The ensemble over them."""
    return contract.LOWER_LIPSYNC if contract.REFERENCE_SUMS.name in names else contract.LIPSYNC


def graph_path(folder: Path, model: contract.Model, target: str = CPU) -> Path:
    """Where a model's ONNX file or TensorRT engine lies in the repository `folder`."""
    return folder / model.name / VERSION / ("model.plan" if target == TENSORRT else "model.onnx")


def write_repository(
    repository: Path,
    target: str,
    graphs: Mapping[str, Path],
    weights_id: str,
    check: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write `repository/<target>` from ONNX files, or engines, by model name, replacing what was there. `check` looks
    at the new folder first, and may raise."""
    require_target(target)
    destination = repository / target
    with replaced(destination) as folder:
        for model in served_models(graphs):
            _model_folder(folder, model, model_config(model, weights_id, target))
            graph, place = graphs[model.name], graph_path(folder, model, target)
            _copy(graph, place, target)
            if data_file(graph).is_file():  # a graph names this file, so it keeps its name
                _link(data_file(graph), place.with_name(data_file(graph).name))
            if target == CPU:
                shutil.copyfile(BACKEND_MODEL, place.with_name("model.py"))
        _model_folder(folder, contract.LIPSYNC, ensemble_config(weights_id, ensemble(graphs)))
        check(folder)
    return destination


def _model_folder(folder: Path, model: contract.Model, config: str) -> None:
    """Create the model's folder: its configuration and an empty version, which is all that an ensemble has."""
    version = folder / model.name / VERSION
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(config)


def _copy(graph: Path, place: Path, target: str) -> None:
    if target == ONNX:
        from export.arena import write_for_onnxruntime  # with onnx, which the target cpu goes without

        write_for_onnxruntime(graph, place)
    else:
        shutil.copyfile(graph, place)


def _link(source: Path, destination: Path) -> None:
    """One file under two names where the file system can, else a copy. Both are only ever replaced, never changed."""
    try:
        destination.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, destination)


@contextmanager
def replaced(destination: Path) -> Iterator[Path]:
    """A new folder beside `destination`, which takes its place when the block ends well and is removed otherwise."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    token = uuid4().hex[:8]
    fresh, stale = (destination.with_name(f".{destination.name}-{word}-{token}") for word in ("new", "old"))
    fresh.mkdir()
    try:
        yield fresh
        if destination.exists():
            destination.rename(stale)
        try:
            fresh.rename(destination)
        except OSError:
            if stale.exists():
                stale.rename(destination)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def move_file(source: Path, destination: Path) -> None:
    """Move `source`, on the same file system, to `destination`, replacing what was there."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    source.replace(destination)


def replace_file(source: Path, destination: Path) -> None:
    """Copy `source` over `destination` so that a reader sees the old file or the new one, never half of one."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = destination.with_name(f".{destination.name}-{uuid4().hex[:8]}")
    try:
        shutil.copyfile(source, fresh)
        fresh.replace(destination)
    finally:
        fresh.unlink(missing_ok=True)
