"""The command line's part `lipserve models`: MuseTalk's weights looked at, checked, fetched, put in their places.

Knows words and tables. The tables go to standard output, what is under way and what went wrong to standard error.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from lipserve.errors import ModelsMissing
from lipserve.terminal import err, settings_or_exit
from lipserve.weights import fetch as fetching
from lipserve.weights.check import Damaged
from lipserve.weights.check import verify as verify_file
from lipserve.weights.folder import Found, State, is_complete, look
from lipserve.weights.folder import repair as repair_folder
from lipserve.weights.manifest import MODELS, PROFILES, Model, Profile, WeightFile

app = typer.Typer(help="MuseTalk's weights: are they there, are they whole, bring them.", no_args_is_help=True)

WIDTH = 200  # of a table that nobody looks at while it is written
ProfileOption = Annotated[str, typer.Option(help=" or ".join(profile.name for profile in PROFILES) + ".")]
DEFAULT_PROFILE = PROFILES[0].name


@app.command()
def status(profile: ProfileOption = DEFAULT_PROFILE) -> None:
    """Which files are there. Exit code 0 if all that the profile requires are, 1 if not."""
    chosen, models_dir = _profile(profile), settings_or_exit().models_dir
    table = _table("model", "file", "state", "size", "licence", title=f"{chosen.name} in {models_dir}")
    for model in (*chosen.required, *chosen.optional):
        for file in _shown(model, models_dir):
            found = look(file, models_dir)
            optional = model in chosen.optional or file in model.extras
            table.add_row(
                model.name,
                file.place,
                _state(found, optional),
                _megabytes(file.size if found.size is None else found.size),
                _licence(model),
            )
    _print(table)
    missing = [model for model in chosen.required if not is_complete(model, models_dir)]
    if missing:
        err.print(f"incomplete: {', '.join(model.name for model in missing)}", highlight=False)
        err.print(f"  {_advice(chosen, models_dir)}", soft_wrap=True, highlight=False)
        raise typer.Exit(1)


@app.command()
def verify(
    profile: Annotated[str | None, typer.Option(help="Only the files of a profile; all must be there.")] = None,
) -> None:
    """Check the files that are there: size, sha256, and that each opens as what it claims. Exit code 1 if one fails."""
    models_dir = settings_or_exit().models_dir
    models = MODELS if profile is None else _profile(profile).required
    present = [file for model in models for file in model.files if (models_dir / file.place).is_file()]
    table, failed = _table("file", "result", "checked"), False
    with _bars() as bars:
        for file in present:
            try:
                row = ("good", verify_file(file, models_dir / file.place, partial(bars.advance, file)))
            except Damaged as exc:
                row, failed = ("[red]damaged[/red]", escape(str(exc))), True
            table.add_row(file.place, *row)
    _print(table)
    incomplete = [model.name for model in models if profile is not None and not is_complete(model, models_dir)]
    if incomplete:
        err.print(f"incomplete: {', '.join(incomplete)}; see: lipserve models status", highlight=False)
    if not present:
        err.print(f"no weights in {models_dir}", highlight=False)
    if failed or incomplete:
        raise typer.Exit(1)


@app.command()
def repair() -> None:
    """Move files that lie a folder too deep to their places. Never overwrites. Exit code 1 if one had to stay."""
    models_dir = settings_or_exit().models_dir
    if not _repair(models_dir):
        raise typer.Exit(1)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Models or files; without, all that the profile requires."),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    optional: Annotated[
        bool, typer.Option("--optional", help="Also the optional models whose licence allows commercial use.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Fetch files of the wrong size again.")] = False,
) -> None:
    """Fetch what is missing, from Hugging Face and the web. Stopped downloads go on where they stopped.

    Models that may not be used commercially without a thought are fetched only if they are named.
    """
    models_dir = settings_or_exit().models_dir
    chosen = _chosen(_profile(profile), names or [], optional)
    models = [item for item in chosen if isinstance(item, Model)]
    _repair(models_dir, tuple(file for item in chosen for file in (item.files if isinstance(item, Model) else (item,))))
    files = fetching.wanted(models, models_dir) + [item for item in chosen if isinstance(item, WeightFile)]
    files = [file for file in dict.fromkeys(files) if look(file, models_dir).state is not State.THERE]
    if files:
        _show_licences(files)
        with _bars() as bars:
            fetching.fetch(files, models_dir, bars, replace)
    err.print(f"{len(files)} files fetched; all that was asked for is in {models_dir}", highlight=False)


def _profile(name: str) -> Profile:
    for profile in PROFILES:
        if profile.name == name:
            return profile
    raise ModelsMissing(
        f"There is no profile {name!r} of MuseTalk's weights.",
        f"Profiles: {', '.join(profile.name for profile in PROFILES)}.",
    )


def _chosen(profile: Profile, names: list[str], optional: bool) -> list[Model | WeightFile]:
    chosen: list[Model | WeightFile] = [fetching.find(name) for name in names] or list(profile.required)
    if optional:
        free = [model for model in profile.optional if not model.licence.restriction]
        chosen += [model for model in free if model not in chosen]
        for model in profile.optional:
            if model not in chosen:
                err.print(
                    f"not fetched unless named: {model.name} ({model.licence.restriction})",
                    soft_wrap=True,
                    highlight=False,
                )
    return chosen


def _shown(model: Model, models_dir: Path) -> Iterator[WeightFile]:
    """Of files that do as well as one another, those that are there, or the one that would be fetched."""
    for part in model.parts:
        there = [file for file in part.files if look(file, models_dir).state is not State.MISSING]
        yield from there or part.files[:1]
    yield from model.extras


def _state(found: Found, optional: bool) -> str:
    if found.state is State.MISSING:
        return "missing, optional" if optional else "[red]missing[/red]"
    if found.state is State.WRONG_SIZE:
        return f"[red]wrong size[/red]: {found.size:,} instead of {found.file.size:,}"
    if found.state is State.WRONG_PLACE:
        return f"[red]wrong place[/red]: {found.at}"
    return "there"


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _licence(model: Model) -> str:
    restriction = model.licence.restriction
    return f"{model.licence.name}; {restriction}" if restriction else model.licence.name


def _advice(profile: Profile, models_dir: Path) -> str:
    files = [file for model in profile.required for file in model.files]
    if any(look(file, models_dir).state is State.WRONG_PLACE for file in files):
        return "Files lie in the wrong place; move them with: lipserve models repair"
    return f"Bring them with: lipserve models fetch --profile {profile.name}"


def _repair(models_dir: Path, files: tuple[WeightFile, ...] = ()) -> bool:
    """False if a file had to stay where it is."""
    moves = repair_folder(models_dir, files)
    for move in moves:
        word = f"left at {move.source}, not moved to {move.place}: {move.refused}"
        err.print(word if move.refused else f"moved {move.source} to {move.place}", soft_wrap=True, highlight=False)
    return not any(move.refused for move in moves)


def _show_licences(files: list[WeightFile]) -> None:
    table = _table("file", "size", "from", "licence")
    for file in files:
        (model,) = (model for model in MODELS if file in model.files)
        table.add_row(file.place, _megabytes(file.size), file.source.origin, _licence(model))
    _print(table)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    return table


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False).print(table)


class _Bars:
    """One bar per file."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, file: WeightFile, done: int, total: int | None) -> None:
        self._progress.update(self._task(file), completed=done, total=total)

    def advance(self, file: WeightFile, read: int) -> None:
        self._progress.advance(self._task(file), read)

    def _task(self, file: WeightFile) -> TaskID:
        if file.place not in self._tasks:
            self._tasks[file.place] = self._progress.add_task(file.place, total=file.size)
        return self._tasks[file.place]


@contextmanager
def _bars() -> Iterator[_Bars]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err) as progress:
        yield _Bars(progress)
