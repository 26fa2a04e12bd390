"""The command line: `python -m export --target cpu --profile demo`. Knows words and tables, nothing of graphs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export import pipeline
from export.bundle import Bundle, is_exported, sizes
from export.errors import ExportError, UnknownDecoder
from export.gate import HEADROOM, error_table
from export.profiles import DECODERS, DEMO, PROFILES, SD_VAE, parts, precision, require_profile
from export.repository import CPU, TARGETS, TENSORRT, require_target, served_graphs, served_models

app = typer.Typer(add_completion=False)


@app.command()
def main(
    target: Annotated[str, typer.Option(help=f"What the graphs will run on: {', '.join(TARGETS)}.")] = "cpu",
    profile: Annotated[str, typer.Option(help=f"Whose weights: {', '.join(PROFILES)}.")] = DEMO,
    decoder: Annotated[str, typer.Option(help=f"What draws MuseTalk's faces: {', '.join(DECODERS)}.")] = SD_VAE,
    headroom: Annotated[
        float, typer.Option(min=1.0, help="Times that the samples' largest activation must fit into FP16.")
    ] = HEADROOM,
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
            graphs = models_dir / profile
            there = profile == DEMO or (not again and is_exported(graphs, precision(profile, target), decoder))
            if target == TENSORRT:
                from export.operators import require_operators
                from export.tensorrt import require_tensorrt

                if there:
                    require_operators(served_graphs(models_dir, profile, target))
                require_tensorrt()
            if not there:
                written = export_musetalk(models_dir, profile, decoder, target, status.update, headroom)
                console.print(error_table(check for graph in written for check in graph.checks))
            bundle = pipeline.publish(
                models_dir,
                profile,
                target,
                model_repository,
                status.update,
                lambda checks: console.print(error_table(checks, "TensorRT against torch")),
            )
    except ExportError as error:
        console.print(f"[red]refused:[/red] {escape(str(error))}")
        raise typer.Exit(1) from error
    console.print(file_table(bundle))
    console.print(f"weights id {bundle.weights_id}, written to {model_repository / target}")
    if target != CPU and profile != DEMO:  # the demo's graphs are not folded, and small
        try:
            say_what_a_gpu_needs(console, bundle, target)
        except ExportError as error:  # it is advice: what was asked for is done
            console.print(f"what a GPU needs for it is not known: {escape(str(error))}")


def say_what_a_gpu_needs(console: Console, bundle: Bundle, target: str) -> None:
    """How much of its memory, computed, and operators that keep these graphs from the target tensorrt."""
    from export.memory import print_budget  # with onnx, which the target cpu goes without
    from export.operators import unknown_operators

    print_budget(console, bundle.files, target)
    unknown = sorted(
        {name for model in served_models(bundle.files) for name in unknown_operators(bundle.files[model.name])}
    )
    if unknown:
        console.print(f"TensorRT's parser takes no {', '.join(unknown)}: these graphs are for the target onnx alone")


def export_musetalk(
    models_dir: Path, profile: str, decoder: str, target: str, say: pipeline.Progress, headroom: float
) -> list[pipeline.Written]:
    """MuseTalk's weights to checked graphs, for what the target computes in."""
    parts(models_dir, profile, decoder)  # missing files are said before torch is loaded
    from export import musetalk

    say("reading the weights")
    networks = musetalk.load(models_dir, profile, decoder)
    return pipeline.write_graphs(networks, models_dir / profile, say, precision(profile, target), headroom)


def file_table(bundle: Bundle) -> Table:
    """What is served, and how large it is."""
    table = Table(title="graphs")
    table.add_column("file", overflow="fold")
    table.add_column("MB", justify="right")
    for file, size in sizes(bundle):
        table.add_row(str(file), f"{size / 1e6:.2f}")
    return table
