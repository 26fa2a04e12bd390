"""The export from end to end, in two halves: networks → checked graphs in a folder; graphs → a model repository.

Nothing is put in place unless every graph has passed its check. Only the first half needs torch, and imports it once
it runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.bundle import Bundle, graph_file, read_bundle
from export.repository import replace_file, require_target, write_repository

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


def write_graphs(networks: Networks, folder: Path, progress: Progress | None = None) -> list[Written]:
    """Export every graph of `networks` into `folder`, each checked against torch before the first is put in place."""
    from export.halves import make_small
    from export.onnx_graphs import graphs, write_graph
    from export.verify import verify

    say = progress or (lambda words: None)
    weights_id = networks.weights_id
    written = []
    with tempfile.TemporaryDirectory(prefix="lipserve-export-") as scratch:
        for graph in graphs(networks):
            started = time.monotonic()
            path = graph_file(Path(scratch), graph.model)
            say(f"exporting {graph.name}")
            write_graph(graph, path, weights_id)
            make_small(path)
            say(f"checking {graph.name}")
            checks = verify(graph, path)
            seconds = time.monotonic() - started
            written.append(Written(graph.name, graph_file(folder, graph.model), path.stat().st_size, seconds, checks))
        for done in written:
            replace_file(Path(scratch) / done.path.name, done.path)
    return written


def publish(models_dir: Path, profile: str, target: str, repository_dir: Path) -> Bundle:
    """Write the model repository of a target from the graphs in models_dir/<profile>; returns what it was made of."""
    require_target(target)
    bundle = read_bundle(models_dir / profile)
    write_repository(repository_dir, target, bundle.files, bundle.weights_id)
    return bundle
