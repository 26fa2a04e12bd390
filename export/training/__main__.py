"""`python -m export.training`: see the package for what each command does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export.speech.espeak import SpeechUnavailable
from lipserve.errors import LipserveError

STAGES = ("speech", "faces", "vae", "audio", "latents", "windows", "unet", "pack")


def main(
    stage: Annotated[str, typer.Argument(help=f"all, or one of: {', '.join(STAGES)}.")] = "all",
    folder: Annotated[Path, typer.Option(help="Data and checkpoints; some 20 GB.")] = Path("models/training"),
    out: Annotated[Path, typer.Option(help="Receives the graphs.")] = Path("models/demo"),
    face_models: Annotated[Path, typer.Option(help="MediaPipe's networks, from `lipserve setup`.")] = Path(
        "models/faces"
    ),
    start: Annotated[
        Path | None, typer.Option(help="Graphs that the networks begin with, like models/demo's; else random.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    tiny: Annotated[bool, typer.Option("--tiny", help="A few samples and steps, to see that it runs.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that render and synthesise.")] = 2,
    threads: Annotated[int, typer.Option(help="Torch's CPU threads; 0: its own choice.")] = 0,
) -> None:
    """Train the demo profile. Everything continues where it was left; run it again after an interruption."""
    console = Console()
    if stage not in ("all", *STAGES):
        raise typer.BadParameter(f"{stage!r} is none of all, {', '.join(STAGES)}")
    import torch

    from export.training import pipeline

    if threads:
        torch.set_num_threads(threads)
    sizes = pipeline.TINY if tiny else pipeline.Sizes()
    shop = pipeline.Workshop(folder, seed, sizes, face_models, workers, start)
    try:
        for name in STAGES if stage == "all" else (stage,):
            console.rule(name)
            if name == "pack":
                console.print_json(json.dumps(shop.pack(out)))
            elif name in ("vae", "audio", "unet"):
                getattr(shop, name)().train()
            else:
                getattr(shop, name)()
    except (SpeechUnavailable, LipserveError) as error:
        console.print(f"[red]stopped:[/red] {error}")
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
