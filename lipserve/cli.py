"""The command line: set up, serve, prepare, import, sync, demo, config; `models`, `keys`,
`talk` and `jobs` have modules of their own.

`prepare` and `sync` do in this process what the gateway does behind its endpoints, with a progress bar. Each command
starts the embedded Triton unless LIPSERVE_TRITON_URL names another one.
"""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lipserve import client_cli
from lipserve.errors import LipserveError, ModelsMissing
from lipserve.keys_cli import app as keys_app
from lipserve.settings import Settings
from lipserve.terminal import err, settings_or_exit, settings_table
from lipserve.weights.cli import app as models_app

app = typer.Typer(name="lipserve", help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.add_typer(client_cli.jobs, name="jobs")
app.command()(client_cli.talk)

MAX_CONNECTIONS = 512  # beyond them uvicorn answers 503 at once
DEMO = Path(__file__).parent.parent / "demo"
DEMO_SPEECH = DEMO / "speech.flac"


class DemoAvatar(StrEnum):
    """The bundled people."""

    lisa = "lisa"
    lucy = "lucy"
    mark = "mark"


def main() -> None:
    """The console script: errors of ours are a message and exit code 1, not a traceback."""
    try:
        app()
    except LipserveError as exc:
        err.print(f"[red]{exc.kind}[/red]: {escape(exc.message)}", soft_wrap=True, highlight=False)
        if exc.hint:
            err.print(f"  {escape(exc.hint)}", soft_wrap=True, highlight=False)
        sys.exit(1)


@contextmanager
def _triton(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """The Triton to use: its gRPC address, its metrics' URL if known. The embedded one lives as long as the block."""
    if settings.triton_url is not None:
        yield settings.triton_url, settings.triton_metrics_url
        return
    from lipserve.embedded import EmbeddedTriton, Ports

    ports = Ports(settings.triton_http_port, settings.triton_grpc_port, settings.triton_metrics_port)
    folders = settings.model_repository, settings.models_dir, settings.work_dir
    server = EmbeddedTriton(*folders, ports, explicit=settings.lazy_load)
    # SIGTERM must unwind like Ctrl-C, so that the child is stopped.
    previous = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        with err.status("starting Triton"):
            server.start()
        err.print(
            f"Triton is ready: gRPC {server.grpc_url}, metrics {server.metrics_url}, log {server.log_file}",
            soft_wrap=True,
        )
        yield server.grpc_url, server.metrics_url
    finally:
        server.stop()
        signal.signal(signal.SIGTERM, previous)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Bars:
    """One progress bar per stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)


@contextmanager
def _bars() -> Iterator[_Bars]:
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as progress:
        yield _Bars(progress)


@app.command()
def setup(
    perf_analyzer: Annotated[bool, typer.Option(help="Also fetch Triton's perf_analyzer, for benchmarks.")] = False,
) -> None:
    """Fetch the embedded Triton and the face models."""
    from lipserve.fetch import FACE_MODELS, PERF_ANALYZER, TRITONSERVER, fetch

    models_dir = settings_or_exit().models_dir
    for wheel in (TRITONSERVER, FACE_MODELS, *([PERF_ANALYZER] if perf_analyzer else [])):
        with err.status(f"fetching {wheel.requirement}"):
            fetched = fetch(wheel, models_dir)
        err.print(f"{wheel.requirement}: {'fetched to' if fetched else 'is in'} {models_dir / wheel.folder}")


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Serve: the embedded Triton and the gateway."""
    import uvicorn

    from gateway.app import create_app

    settings = settings_or_exit(host=host, port=port)
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(settings.work_dir)  # uploads are spooled there while they come in
    with _triton(settings) as (url, metrics_url):
        app = create_app(settings, url, metrics_url)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=10,
            limit_concurrency=MAX_CONNECTIONS,
        )
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):  # uvicorn passes the signal on after its own clean end
            try:
                server.run()
            except SystemExit:  # it could not start
                raise (app.state.failure or SystemExit(1)) from None
    if not server.started:
        sys.exit(1)


@app.command()
def config(
    host: Annotated[str | None, typer.Option(help="As of `up`.")] = None,
    port: Annotated[int | None, typer.Option(help="As of `up`.")] = None,
) -> None:
    """Show every setting's value and where it is from; exit code 2 if one makes no sense."""
    options = {"host": host, "port": port}
    print(settings_table(settings_or_exit(**options), {name for name, value in options.items() if value is not None}))


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="A video, a picture, or a folder of pictures.", exists=True)],
    avatar_id: Annotated[str, typer.Option(help="The avatar's name from now on.")],
    version: Annotated[str, typer.Option(help="v1 or v15.")] = "v15",
    bbox_shift: Annotated[int, typer.Option(help="v1 only.")] = 0,
    extra_margin: Annotated[int, typer.Option(help="v15 only.")] = 10,
    parsing_mode: Annotated[str, typer.Option(help="jaw, raw or neck.")] = "jaw",
    left_cheek_width: int = 90,
    right_cheek_width: int = 90,
    batch_size: int = 8,
    fps: int = 25,
    force: Annotated[bool, typer.Option(help="Replace an avatar that exists.")] = False,
) -> None:
    """Prepare an avatar, once."""
    from avatar_prep.prepare import checked_parameters

    parameters = checked_parameters(
        {
            "version": version,
            "bbox_shift": bbox_shift,
            "extra_margin": extra_margin,
            "parsing_mode": parsing_mode,
            "left_cheek_width": left_cheek_width,
            "right_cheek_width": right_cheek_width,
            "batch_size": batch_size,
            "fps": fps,
        }
    )
    with _engine() as engine, _bars() as bars:
        info = engine.prepare(source, avatar_id, parameters, force, bars)
    err.print(f"{info.avatar_id}: {info.frames} frames, {info.frames_without_face} without a face")
    print(engine.store.folder(avatar_id))


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="What MuseTalk's scripts wrote.", exists=True, file_okay=False)],
    avatar_id: Annotated[str, typer.Option(help="The avatar's name from now on.")],
    fps: Annotated[int, typer.Option(help="The rate of the clip it was made from.")] = 25,
    video: Annotated[
        Path | None, typer.Option(help="That clip; its frames are taken, not full_imgs.", exists=True, dir_okay=False)
    ] = None,
    weights_id: Annotated[
        str | None, typer.Option(help="Of the VAE of its latents, unchecked. Else: as served now, and checked.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an avatar that exists.")] = False,
) -> None:
    """Take over an avatar that MuseTalk's realtime scripts prepared (v1 or v1.5)."""
    from avatar_prep.imported import import_avatar
    from avatar_prep.source import Limits
    from lipserve.store import AvatarStore

    settings = settings_or_exit()
    store = AvatarStore(settings.avatars_dir)
    if weights_id is None:
        with _engine() as engine, _bars() as bars:
            info = engine.import_avatar(folder, avatar_id, fps, video, force, bars)
    else:
        limits = Limits(settings.max_video_seconds, settings.max_frame_pixels)
        with store.writing(avatar_id, force) as draft, _bars() as bars:
            info = import_avatar(folder, draft, avatar_id, fps, weights_id, limits, bars, video)
    err.print(f"{info.avatar_id}: {info.frames} frames, {info.frames_without_face} without a face")
    print(store.folder(avatar_id))


@app.command()
def sync(
    avatar_id: str,
    audio: Annotated[Path, typer.Argument(help="Speech, in any usual format.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the video goes.")] = Path("out/sync.mp4"),
    fps: Annotated[int | None, typer.Option(help="Frames per second; the avatar's own if not given.")] = None,
    batch_size: int = 8,
    audio_padding_length_left: int = 2,
    audio_padding_length_right: int = 2,
) -> None:
    """Make a prepared avatar say something."""
    from gateway.engine import SyncRequest
    from gateway.features import Padding

    padding = Padding(audio_padding_length_left, audio_padding_length_right)
    output.parent.mkdir(parents=True, exist_ok=True)
    with _engine() as engine:
        _sync(engine, SyncRequest(avatar_id, fps, batch_size, padding), audio, output)


@app.command()
def demo(
    avatar: Annotated[DemoAvatar, typer.Option(help="Who speaks.")] = DemoAvatar.lisa,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("out/demo.mp4"),
) -> None:
    """A bundled avatar says the bundled sentence; it is prepared first if it is not there or not up to date."""
    from avatar_prep.prepare import checked_parameters
    from gateway.engine import SyncRequest

    clip = DEMO / f"{avatar.value}.mp4"
    if not clip.is_file():
        raise ModelsMissing(f"The bundled clip {clip} is not there.", "Run it from a clone of the repository.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with _engine() as engine:
        if not engine.is_usable(avatar.value):
            with _bars() as bars:
                engine.prepare(clip, avatar.value, checked_parameters({}), True, bars)
        _sync(engine, SyncRequest(avatar.value), DEMO_SPEECH, output)


@contextmanager
def _engine() -> Iterator[Any]:
    from gateway.engine import Engine

    settings = settings_or_exit()
    with _triton(settings) as (url, _):
        engine = Engine(settings, url)
        try:
            engine.store.recover()
            with err.status("warming up"):
                engine.warm_up()
            yield engine
        finally:
            engine.close()


def _sync(engine: Any, request: Any, audio: Path, output: Path) -> None:
    from gateway.timing import Stopwatch

    watch = Stopwatch()
    with _bars() as bars:
        result = engine.lip_sync(request, audio, output, bars, watch=watch)
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in watch.stages.items())
    err.print(f"{result.frames} frames at {result.fps} fps in {watch.total:.2f} s ({stages})", highlight=False)
    print(output.resolve())
