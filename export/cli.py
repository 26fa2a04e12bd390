"""The command line: `python -m export --target cpu --profile demo`. Knows words and tables, nothing of graphs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from export import pipeline
from export.bundle import Bundle, is_exported, sizes
from export.errors import ExportError, UnknownDecoder
from export.gate import error_table
from export.profiles import DECODERS, DEMO, PROFILES, SD_VAE, parts, precision, require_profile
from export.repository import TARGETS, TENSORRT, require_target

app = typer.Typer(add_completion=False)


@app.command()
def main(
    target: Annotated[str, typer.Option(help=f"What the graphs will run on: {', '.join(TARGETS)}.")] = "cpu",
    profile: Annotated[str, typer.Option(help=f"Whose weights: {', '.join(PROFILES)}.")] = DEMO,
    decoder: Annotated[str, typer.Option(help=f"What draws MuseTalk's faces: {', '.join(DECODERS)}.")] = SD_VAE,
    again: Annotated[bool, typer.Option(help="Write MuseTalk's graphs anew where they are there already.")] = False,
    models_dir: Annotated[Path, typer.Option(help="Has weights, and graphs: <profile>/*.onnx.")] = Path("models"),
    model_repository: Annotated[Path, typer.Option(help="Receives <target>/, a Triton model repository.")] = Path(
        "model_repository"
    ),
) -> None:
    """Write a profile's ONNX graphs where they are missing, check them, and make a Triton model repository of them."""
    console = Console()
    try:
        require_profile(profile)
        require_target(target)
        if decoder not in DECODERS:
            raise UnknownDecoder(decoder, DECODERS)
        with console.status("starting") as status:
            if target == TENSORRT:
                from export.tensorrt import require_tensorrt

                require_tensorrt()
            graphs = models_dir / profile
            if profile != DEMO and (again or not is_exported(graphs, precision(profile, target), decoder)):
                written = export_musetalk(models_dir, profile, decoder, target, status.update)
                console.print(error_table(check for graph in written for check in graph.checks))
            bundle = pipeline.publish(models_dir, profile, target, model_repository, status.update)
    except ExportError as error:
        console.print(f"[red]refused:[/red] {error}")
        raise typer.Exit(1) from error
    console.print(file_table(bundle))
    console.print(f"weights id {bundle.weights_id}, written to {model_repository / target}")


def export_musetalk(
    models_dir: Path, profile: str, decoder: str, target: str, say: pipeline.Progress
) -> list[pipeline.Written]:
    """MuseTalk's weights to checked graphs, for what the target computes in."""
    parts(models_dir, profile, decoder)  # missing files are said before torch is loaded
    from export import musetalk

    say("reading the weights")
    networks = musetalk.load(models_dir, profile, decoder)
    return pipeline.write_graphs(networks, models_dir / profile, say, precision(profile, target))


def file_table(bundle: Bundle) -> Table:
    """What is served, and how large it is."""
    table = Table(title="graphs")
    table.add_column("file", overflow="fold")
    table.add_column("MB", justify="right")
    for file, size in sizes(bundle):
        table.add_row(str(file), f"{size / 1e6:.2f}")
    return table
