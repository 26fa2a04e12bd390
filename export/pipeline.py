"""The export from end to end: networks → graphs → checks → files in their places.

Nothing is put in place unless every graph has passed its check. Imports torch only once it runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.repository import SERVED, graph_path, replace_file, require_target, write_repository
from lipserve import contract

if TYPE_CHECKING:
    from export.networks import Networks
    from export.verify import Check

Progress = Callable[[str], None]  # told in words what happens next


@dataclass(frozen=True)
class Written:
    """One graph that was written and passed: its size in bytes and the seconds that export and check took."""

    graph: str
    path: Path
    size: int
    seconds: float
    checks: list[Check]


def export_networks(
    networks: Networks, target: str, models_dir: Path, repository_dir: Path, progress: Progress | None = None
) -> list[Written]:
    """Export and check every graph of `networks`, then write the model repository and the audio encoder."""
    from export.onnx_graphs import graphs, write_graph
    from export.verify import verify

    require_target(target)
    say = progress or (lambda words: None)
    weights_id = networks.weights_id
    places = {model.name: graph_path(repository_dir / target, model) for model in SERVED}
    places[contract.AUDIO_ENCODER.name] = models_dir / networks.profile / "audio_encoder.onnx"
    written = []
    with tempfile.TemporaryDirectory(prefix="lipserve-export-") as scratch:
        files: dict[str, Path] = {}
        for graph in graphs(networks):
            started = time.monotonic()
            path = files[graph.name] = Path(scratch) / f"{graph.name}.onnx"
            say(f"exporting {graph.name}")
            write_graph(graph, path, weights_id)
            say(f"checking {graph.name}")
            checks = verify(graph, path)
            seconds = time.monotonic() - started
            written.append(Written(graph.name, places[graph.name], path.stat().st_size, seconds, checks))
        say("writing the model repository")
        replace_file(files[contract.AUDIO_ENCODER.name], places[contract.AUDIO_ENCODER.name])
        write_repository(repository_dir, target, files, weights_id)
    return written
