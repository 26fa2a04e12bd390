"""The command line: `python -m export --target cpu --profile demo`. Knows words and tables, nothing of graphs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from export import pipeline
from export.bundle import Bundle, sizes
from export.errors import ExportError, UnknownProfile

PROFILES = ("demo",)

app = typer.Typer(add_completion=False)


@app.command()
def main(
    target: Annotated[str, typer.Option(help="What the graphs will run on: cpu.")] = "cpu",
    profile: Annotated[str, typer.Option(help="Whose weights: demo.")] = "demo",
    models_dir: Annotated[Path, typer.Option(help="Has the profile's graphs: <profile>/*.onnx.")] = Path("models"),
    model_repository: Annotated[Path, typer.Option(help="Receives <target>/, a Triton model repository.")] = Path(
        "model_repository"
    ),
) -> None:
    """Check a profile's ONNX graphs against the contract and write a Triton model repository of them."""
    console = Console()
    try:
        if profile not in PROFILES:
            raise UnknownProfile(profile, PROFILES)
        with console.status("checking the graphs"):
            bundle = pipeline.publish(models_dir, profile, target, model_repository)
    except ExportError as error:
        console.print(f"[red]refused:[/red] {error}")
        raise typer.Exit(1) from error
    console.print(file_table(bundle))
    console.print(f"weights id {bundle.weights_id}, written to {model_repository / target}")


def file_table(bundle: Bundle) -> Table:
    """What is served, and how large it is."""
    table = Table(title="graphs")
    table.add_column("file", overflow="fold")
    table.add_column("MB", justify="right")
    for file, size in sizes(bundle):
        table.add_row(str(file), f"{size / 1e6:.2f}")
    return table
