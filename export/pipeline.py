"""The export from end to end, in two halves: networks → checked graphs in a folder; graphs → a model repository.

Nothing is put in place unless every graph has passed its check. Only the first half needs torch, and imports it once
it runs; building TensorRT engines needs TensorRT and a GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.bundle import HALVED, Bundle, data_file, graph_file, open_graph, read_bundle
from export.gate import HEADROOM, PSNR, REFERENCE, Reference, hold
from export.profiles import FP16, FP32, UNETS, precision
from export.repository import (
    ONNX,
    TENSORRT,
    graph_path,
    move_file,
    require_target,
    served_models,
    write_repository,
)
from lipserve import contract

if TYPE_CHECKING:
    from export.gate import Check
    from export.networks import Networks
    from export.onnx_graphs import Graph

Progress = Callable[[str], None]  # told in words what happens next
Checked = Callable[["list[Check]"], None]


@dataclass(frozen=True)
class Written:
    """One graph that was written and passed: its size in bytes and the seconds that export and check took."""

    graph: str
    path: Path
    size: int
    seconds: float
    checks: list[Check]


def write_graphs(
    networks: Networks,
    folder: Path,
    progress: Progress | None = None,
    precision: str = FP32,
    headroom: float = HEADROOM,
    psnr: float = PSNR,
) -> list[Written]:
    """Export every graph of `networks` into `folder`, each checked against torch before the first is put in place.

    In FP16 the networks are used up: UNet and decoder have no weights afterwards. Their largest activation must then
    fit into FP16 `headroom` times. psnr: dB, that a decoder of the lower rows may be from the whole one, at least.
    Raises ExportRefused, HeadroomLacking and LowerDecoderOff.
    """
    say = progress or (lambda words: None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as name:
        scratch = Path(name)
        if networks.lower:
            _held_to_whole(networks, say, psnr)
        written = _halved(networks, scratch, say, headroom) if precision == FP16 else _plain(networks, scratch, say)
        placed = []
        for done in written:
            path = folder / done.path.relative_to(scratch)
            if data_file(done.path).is_file():
                move_file(data_file(done.path), data_file(path))
            else:
                data_file(path).unlink(missing_ok=True)
            move_file(done.path, path)
            placed.append(Written(done.graph, path, done.size, done.seconds, done.checks))
        if precision == FP16:
            move_file(scratch / REFERENCE, folder / REFERENCE)
    return placed


def _plain(networks: Networks, folder: Path, say: Progress) -> list[Written]:
    """All graphs in float32."""
    from export.onnx_graphs import graphs, metadata

    notes = metadata(networks)
    _simplified(networks, say)
    # The demo's graphs are its only weights, each found again by its name; MuseTalk's weights have files of their own.
    folded = networks.profile in UNETS
    return [_plain_graph(graph, folder, notes, say, folded) for graph in graphs(networks)]


def _plain_graph(graph: Graph, folder: Path, notes: dict[str, str], say: Progress, folded: bool) -> Written:
    from export.halves import make_small
    from export.onnx_graphs import write_graph
    from export.verify import verify

    started = time.monotonic()
    path = graph_file(folder, graph.model)
    say(f"exporting {graph.name}")
    write_graph(graph, path, notes, folded)
    if not data_file(path).is_file():
        make_small(path)
    say(f"checking {graph.name}")
    checks = verify(graph, path)
    return Written(graph.name, path, _size(path), time.monotonic() - started, checks)


def _halved(networks: Networks, folder: Path, say: Progress, headroom: float) -> list[Written]:
    """UNet and decoder in FP16, held to what they computed in float32; the encoders in float32."""
    from export.half import halve
    from export.onnx_graphs import graphs, metadata, write_graph
    from export.samples import reference
    from export.verify import verify_half

    notes = metadata(networks)  # before a weight changes
    say("computing the reference")
    kept = reference(networks, headroom)  # by the networks as they were published
    kept.save(folder)
    _simplified(networks, say)
    whole = graphs(networks)
    encoders = [graph for graph in whole if graph.model.name not in HALVED]
    written = {graph.name: _plain_graph(graph, folder, notes, say, folded=True) for graph in encoders}
    for graph in whole:
        if graph.model.name not in HALVED:
            continue
        started = time.monotonic()
        path = graph_file(folder, graph.model, FP16)
        path.parent.mkdir(exist_ok=True)
        say(f"exporting {graph.name}")
        halve(graph.module)
        write_graph(graph, path, notes, folded=True)
        if graph.model is contract.UNET:  # the check needs the room; the others are small, and two share their weights
            for parameter in graph.module.parameters():
                parameter.data = parameter.data.new_empty(0)
        say(f"checking {graph.name}")
        checks = verify_half(graph.model, path, kept)
        written[graph.name] = Written(graph.name, path, _size(path), time.monotonic() - started, checks)
    return [written[graph.name] for graph in whole]


def _held_to_whole(networks: Networks, say: Progress, psnr: float) -> None:
    """The decoder of the lower rows must draw what the whole one does. Raises LowerDecoderOff."""
    from export.lower import hold_to_whole
    from export.samples import spoken

    say("holding the lower rows to the whole decoder's")
    decibels = hold_to_whole(networks.vae, *spoken(), psnr)
    say(f"the lower rows are {decibels:.1f} dB from the whole decoder's")


def _simplified(networks: Networks, say: Progress) -> None:
    """MuseTalk's networks in fewer operators; the demo's stay as they are trained. Raises ExportRefused."""
    from export.plain import simplify

    if networks.profile in UNETS:
        say("folding the timestep")
        moved = max(check.maximum for check in simplify(networks))
        say(f"the timestep is folded: no output moved by more than {moved:.1e}")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, data_file(path)) if file.is_file())


def publish(
    models_dir: Path,
    profile: str,
    target: str,
    repository_dir: Path,
    progress: Progress | None = None,
    checked: Checked | None = None,
) -> Bundle:
    """Write the model repository of a target from the graphs in models_dir/<profile>; returns what it was made of.
    checked: told of each engine how far it is from the reference."""
    say = progress or (lambda words: None)
    require_target(target)
    folder = models_dir / profile
    say("checking the graphs")
    bundle = read_bundle(folder, precision(profile, target))
    files = bundle.files
    if target == TENSORRT:
        from export.tensorrt import build_engines

        files = build_engines(folder, bundle, say, checked or (lambda checks: None))
    if target == ONNX and profile in UNETS:
        reference = Reference.load(folder)

        def check(written: Path) -> None:
            say("checking what ONNX Runtime gets")
            _hold_written(written, bundle, reference)

        write_repository(repository_dir, target, files, bundle.weights_id, check)
    else:
        write_repository(repository_dir, target, files, bundle.weights_id)
    return bundle


def _hold_written(repository: Path, bundle: Bundle, reference: Reference) -> None:
    """Graphs rewritten for ONNX Runtime, held to the reference once more, one frame and all of them. Raises
    ExportRefused."""
    for model in served_models(bundle.files):
        if model.name in HALVED:
            large = data_file(bundle.files[model.name]).is_file()
            session, (output,) = open_graph(graph_path(repository, model, ONNX), large), model.outputs
            for batch in (1, len(reference)):
                frames = reference.repeated(batch)
                (actual,) = session.run([output.name], frames.feeds(model))
                hold(model, frames.output(model), actual, f"{model.name}, rewritten")
