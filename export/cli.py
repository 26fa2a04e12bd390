"""The command line: `python -m export --target cpu --profile demo`. Knows words and tables, nothing of graphs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from export import pipeline
from export.errors import ExportError, UnknownProfile
from export.repository import require_target

PROFILES = ("demo",)

app = typer.Typer(add_completion=False)


@app.command()
def main(
    target: Annotated[str, typer.Option(help="What the graphs will run on: cpu.")] = "cpu",
    profile: Annotated[str, typer.Option(help="Whose weights: demo (small, random).")] = "demo",
    seed: Annotated[int, typer.Option(help="Seed of the demo profile's random weights.")] = 0,
    models_dir: Annotated[Path, typer.Option(help="Receives <profile>/audio_encoder.onnx.")] = Path("models"),
    model_repository: Annotated[Path, typer.Option(help="Receives <target>/, a Triton model repository.")] = Path(
        "model_repository"
    ),
) -> None:
    """Export a profile's networks to ONNX, check each graph against torch, and write a Triton model repository."""
    console = Console()
    try:
        require_target(target)
        if profile not in PROFILES:
            raise UnknownProfile(profile, PROFILES)
        with console.status("loading torch") as status:
            from export import demo

            networks = demo.build(seed)
            written = pipeline.export_networks(
                networks, target, models_dir, model_repository, lambda words: status.update(f"{words} …")
            )
    except ExportError as error:
        console.print(f"[red]refused:[/red] {error}")
        raise typer.Exit(1) from error
    from export.verify import error_table

    console.print(error_table([check for graph in written for check in graph.checks]))
    console.print(file_table(written))
    console.print(f"weights id {networks.weights_id}")


def file_table(written: list[pipeline.Written]) -> Table:
    """What was written where, how large, and how long it took."""
    table = Table(title="written")
    table.add_column("file", overflow="fold")
    table.add_column("MB", justify="right")
    table.add_column("seconds", justify="right")
    for graph in written:
        table.add_row(str(graph.path), f"{graph.size / 1e6:.2f}", f"{graph.seconds:.1f}")
    return table
