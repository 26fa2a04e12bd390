"""`lipserve talk` and `lipserve jobs`: a running gateway's work, ordered and fetched through lipserve.client."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lipserve import errors
from lipserve.api import JobState, JobView
from lipserve.client import Client
from lipserve.errors import InvalidParameter, LipserveError
from lipserve.terminal import err

jobs = typer.Typer(help="Jobs of a running gateway.", no_args_is_help=True)

Url = Annotated[str, typer.Option(help="The gateway's address.")]
Key = Annotated[str | None, typer.Option(help="An API key. Others see it in the list of processes: see --key-file.")]
KeyFile = Annotated[Path | None, typer.Option(help="A file that has the key.", exists=True, dir_okay=False)]
JobId = Annotated[str, typer.Argument(help="A job's or a talk's id.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the video goes.")]
HERE = "http://127.0.0.1:8080"


def talk(
    text: Annotated[str, typer.Argument(help="What is said.")],
    avatar: Annotated[str | None, typer.Option(help="A prepared avatar says it.")] = None,
    source: Annotated[str | None, typer.Option(help="Instead: a picture or a clip, a file or http(s).")] = None,
    voice: Annotated[str, typer.Option(help="A voice's name, if not the service's own.")] = "",
    output: Output = Path("out/talk.mp4"),
    url: Url = HERE,
    key: Key = None,
    key_file: KeyFile = None,
) -> None:
    """Let a running gateway make an avatar, a picture or a clip say a text."""
    if (avatar is None) == (source is None):
        raise InvalidParameter("Exactly one of --avatar and --source must be given.", "Give --avatar, or --source.")
    with _client(url, key, key_file) as client:
        source_url = f"lipserve://avatars/{avatar}" if source is None else _source_url(client, source)
        ordered = client.create_talk(source_url, text=text, voice=voice)
        err.print(f"{ordered.id} is ordered", highlight=False)
        _fetch(client, ordered.id, output)


@jobs.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="queued, processing, done, failed or cancelled.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest first.", min=1)] = 20,
    url: Url = HERE,
    key: Key = None,
    key_file: KeyFile = None,
) -> None:
    """A line for each job."""
    with _client(url, key, key_file) as client:
        for _, job in zip(range(limit), client.jobs(_state(state)), strict=False):
            ordered = job.created_at.isoformat(" ", "seconds")
            print(f"{job.id}  {job.kind:<14}  {job.state:<10}  {job.progress:>4.0%}  {ordered}")


@jobs.command()
def show(job_id: JobId, url: Url = HERE, key: Key = None, key_file: KeyFile = None) -> None:
    """One job, as JSON."""
    with _client(url, key, key_file) as client:
        print(client.job(job_id).model_dump_json(indent=2))


@jobs.command()
def cancel(job_id: JobId, url: Url = HERE, key: Key = None, key_file: KeyFile = None) -> None:
    """Cancel a job that has not ended."""
    with _client(url, key, key_file) as client:
        print(client.cancel(job_id).state)


@jobs.command()
def fetch(
    job_id: JobId, output: Output = Path("out/job.mp4"), url: Url = HERE, key: Key = None, key_file: KeyFile = None
) -> None:
    """Wait for a job, and write its video."""
    with _client(url, key, key_file) as client:
        _fetch(client, job_id, output)


def _client(url: str, key: str | None, key_file: Path | None) -> Client:
    if key_file is not None:
        key = key_file.read_text().strip()
    return Client(url, key)


def _source_url(client: Client, source: str) -> str:
    if source.lower().startswith(("http:", "https:")):
        return source
    if not Path(source).is_file():
        raise InvalidParameter(f"There is no file {source}.", "Give a picture, a clip, or a URL that begins with http.")
    return client.upload_source(source).url


def _state(given: str | None) -> JobState | None:
    """Raises InvalidParameter."""
    if given is None:
        return None
    for state in get_args(JobState):
        if given == state:
            return cast(JobState, state)
    raise InvalidParameter(f"There is no state {given!r}.", f"There are {', '.join(get_args(JobState))}.")


def _fetch(client: Client, job_id: str, output: Path) -> None:
    """Raises what the job has failed with."""
    columns = (TextColumn("{task.description:>8}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=err) as progress:
        bar = progress.add_task("queued", total=1.0)
        for job in client.follow(job_id):
            progress.update(bar, description=job.stage or job.state, completed=job.progress)
    _require_done(job)
    output.parent.mkdir(parents=True, exist_ok=True)
    print(client.download(job_id, output).resolve())


def _require_done(job: JobView) -> None:
    if job.state == "cancelled":
        raise errors.Cancelled("The job was cancelled.", "Order it again.")
    if job.error is not None:
        kind: type[LipserveError] = errors.by_kind().get(job.error.kind, errors.ServiceError)
        raise kind(job.error.message, job.error.hint)
