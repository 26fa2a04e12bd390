"""A typed client of the gateway.

    with Client("http://127.0.0.1:8080") as client:
        client.prepare_avatar("lucy", "demo/lucy.mp4")
        client.lip_sync("lucy", "demo/speech.flac", "said.mp4")

Errors of the service are raised as the classes of lipserve.errors, by their `kind`. Files are paths, or objects open
for binary reading; downloads appear whole or not at all. One client may be used by several threads.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from lipserve.api import AvatarList, AvatarSummary, ErrorBody, JobList, JobState, JobView, Report
from lipserve.avatar import AvatarInfo
from lipserve.errors import (
    InvalidParameter,
    JobNotDone,
    LipserveError,
    ServiceError,
    ServiceUnreachable,
    by_kind,
)
from lipserve.talk_api import (
    Created,
    DidError,
    Submitted,
    Talk,
    TalkList,
    TalkStatus,
    Uploaded,
    UploadedAudio,
    UploadedImage,
)

M = TypeVar("M", bound=BaseModel)
File = str | Path | BinaryIO
AnyJob = str | JobView | Created | Submitted  # by its id

TIMEOUT = 60.0  # seconds without a byte
BLOCKING_TIMEOUT = 3600.0  # seconds until a blocking call is answered
POLL = 0.5  # seconds between two looks at a job
AWAY = 60.0  # seconds that the service may be away while a job is followed


class PrepareOptions(TypedDict, total=False):
    """The service's own defaults where they are left out."""

    version: Literal["v1", "v15"]
    bbox_shift: int
    extra_margin: int
    parsing_mode: Literal["jaw", "raw", "neck"]
    left_cheek_width: int
    right_cheek_width: int
    batch_size: int
    fps: int
    force: bool


class SyncOptions(TypedDict, total=False):
    fps: int
    batch_size: int
    audio_padding_length_left: int
    audio_padding_length_right: int


class Client:
    """Of the gateway at `base_url`. Raises ServiceUnreachable where nothing answers."""

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        timeout: float = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`timeout`: seconds without a byte; blocking calls may take longer. `transport`: another than the network."""
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InvalidParameter("That is no API key.", "`lipserve keys add` prints one.")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout
        with _unreachable(base_url):
            self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def health(self) -> Report:
        """Also of a service that is not healthy."""
        with self._answer("GET", "/health", expected=(200, 503)) as answer:
            return _read(Report, answer)

    # -- avatars ------------------------------------------------------------------------------------------------------

    def prepare_avatar(self, avatar_id: str, video: File, **options: Unpack[PrepareOptions]) -> AvatarInfo:
        """Answers when it is stored."""
        data = {"avatar_id": avatar_id, **options}
        return self._post(AvatarInfo, "/prepare_avatar", data, {"video": video}, BLOCKING_TIMEOUT)

    def submit_prepare(
        self, avatar_id: str, video: File, webhook: str | None = None, **options: Unpack[PrepareOptions]
    ) -> JobView:
        """The same as a job."""
        data = {"avatar_id": avatar_id, "async": True, "webhook": webhook, **options}
        return self._post(JobView, "/prepare_avatar", data, {"video": video})

    def avatars(self) -> list[AvatarSummary]:
        return self._get(AvatarList, "/avatars").avatars

    def avatar(self, avatar_id: str) -> AvatarSummary:
        return self._get(AvatarSummary, f"/avatars/{_part(avatar_id)}")

    def delete_avatar(self, avatar_id: str) -> None:
        with self._answer("DELETE", f"/avatars/{_part(avatar_id)}"):
            pass

    def lip_sync(self, avatar_id: str, audio: File, output: str | Path, **options: Unpack[SyncOptions]) -> Path:
        """The video, written to `output`."""
        data = {"avatar_id": avatar_id, **options}
        with (
            _opened({"audio": audio}) as files,
            self._answer("POST", "/lip_sync", data=_form(data), files=files, timeout=BLOCKING_TIMEOUT) as answer,
        ):
            return _save(answer, Path(output))

    def submit_lip_sync(
        self, avatar_id: str, audio: File, webhook: str | None = None, **options: Unpack[SyncOptions]
    ) -> JobView:
        """The same as a job; its video: `download`."""
        data = {"avatar_id": avatar_id, "async": True, "webhook": webhook, **options}
        return self._post(JobView, "/lip_sync", data, {"audio": audio})

    # -- jobs; talks are jobs, too ------------------------------------------------------------------------------------

    def job(self, job: AnyJob) -> JobView:
        return self._get(JobView, f"/jobs/{_id(job)}")

    def jobs(self, state: JobState | None = None, kind: str | None = None, page: int = 20) -> Iterator[JobView]:
        """All of them, newest first, asked for page by page."""
        before: str | None = None
        while True:
            found = self._get(JobList, "/jobs", state=state, kind=kind, limit=page, before=before)
            yield from found.jobs
            before = found.next
            if before is None:
                return

    def cancel(self, job: AnyJob) -> JobView:
        """Raises JobNotDone, in the sense of too late, if it has ended."""
        if self.job(job).ended:
            raise JobNotDone("The job has ended already.", "delete_job removes it.")
        with self._answer("DELETE", f"/jobs/{_id(job)}") as answer:
            return _read(JobView, answer)

    def delete_job(self, job: AnyJob) -> None:
        """With its files; cancelled first, if it has not ended."""
        with self._answer("DELETE", f"/jobs/{_id(job)}") as answer:
            cancelled = answer.status_code == 202
        if cancelled:
            with self._answer("DELETE", f"/jobs/{_id(job)}"):
                pass

    def follow(self, job: AnyJob) -> Iterator[JobView]:
        """The job now and after every change until it has ended; a broken stream is taken up again.

        Raises ServiceUnreachable if the service is away for longer than AWAY.
        """
        last, away_since = None, None
        while last is None or not last.ended:
            try:
                for view in self._views(job):
                    away_since = None
                    if view != last:
                        yield view
                    last = view
            except ServiceUnreachable:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > AWAY:
                    raise
            if last is None or not last.ended:
                time.sleep(POLL)

    def wait(self, job: AnyJob, timeout: float = BLOCKING_TIMEOUT) -> JobView:
        """The job when it has ended, in whichever way. Raises JobNotDone if it has not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (view := self.job(job)).ended:
            left = deadline - time.monotonic()
            if left <= 0:
                raise JobNotDone(f"The job has not ended within {timeout:g} s.", "Wait longer, or cancel it.")
            time.sleep(min(POLL, left))
        return view

    def download(self, job: AnyJob, output: str | Path) -> Path:
        """The video of a job or talk that is done. Raises JobNotDone."""
        with self._answer("GET", f"/jobs/{_id(job)}/result") as answer:
            return _save(answer, Path(output))

    # -- talks, D-ID's way --------------------------------------------------------------------------------------------

    def upload_image(self, image: File) -> UploadedImage:
        return self._post(UploadedImage, "/images", {}, {"image": image})

    def upload_audio(self, audio: File) -> UploadedAudio:
        return self._post(UploadedAudio, "/audios", {}, {"audio": audio})

    def create_talk(
        self,
        source_url: str,
        *,
        text: str | None = None,
        audio_url: str | None = None,
        voice: str = "",
        webhook: str = "",
        user_data: str = "",
        name: str = "",
        **config: bool | float | str,
    ) -> Created:
        """`source_url`, `audio_url`: http(s), or an upload's; for a prepared avatar: lipserve://avatars/<id>."""
        if (text is None) == (audio_url is None):
            raise InvalidParameter("Exactly one of text and audio_url must be given.", "Give text=, or audio_url=.")
        script: dict[str, Any] = {"type": "audio", "audio_url": audio_url}
        if text is not None:
            script = {"type": "text", "input": text, "provider": {"voice_id": voice}}
        body = {
            "source_url": source_url,
            "script": script,
            "config": config,
            "webhook": webhook,
            "user_data": user_data,
            "name": name,
        }
        with self._answer("POST", "/talks", json=body) as answer:
            return _read(Created, answer)

    def talk(self, talk: AnyJob) -> Talk:
        return self._get(Talk, f"/talks/{_id(talk)}")

    def talks(self, page: int = 100) -> Iterator[Talk]:
        """All of them, newest first, asked for page by page."""
        token: str | None = None
        while True:
            found = self._get(TalkList, "/talks", limit=page, token=token)
            yield from found.talks
            token = found.token
            if token is None:
                return

    def delete_talk(self, talk: AnyJob) -> Talk:
        """Raises JobNotDone while it is being made."""
        with self._answer("DELETE", f"/talks/{_id(talk)}") as answer:
            return _read(Talk, answer)

    # -- talks, the way of self-hosted MuseTalk services --------------------------------------------------------------

    def generate_video(
        self,
        *,
        source_url: str | None = None,
        source_image: File | None = None,
        audio_url: str | None = None,
        audio_data: File | None = None,
    ) -> Submitted:
        """One of each pair."""
        data = {"source_url": source_url, "audio_url": audio_url}
        return self._post(Submitted, "/generate-video", data, {"source_image": source_image, "audio_data": audio_data})

    def talk_status(self, talk: AnyJob) -> TalkStatus:
        return self._get(TalkStatus, f"/talk-status/{_id(talk)}")

    def upload_source(self, file: File) -> Uploaded:
        """A picture or a clip."""
        return self._post(Uploaded, "/upload-source-image", {}, {"file": file})

    # -- how ----------------------------------------------------------------------------------------------------------

    def _get(self, model: type[M], path: str, **query: str | int | None) -> M:
        given = {name: value for name, value in query.items() if value is not None}
        with self._answer("GET", path, params=given) as answer:
            return _read(model, answer)

    def _post(
        self,
        model: type[M],
        path: str,
        data: Mapping[str, object],
        files: Mapping[str, File | None],
        timeout: float | None = None,
    ) -> M:
        with (
            _opened(files) as opened,
            self._answer("POST", path, data=_form(data), files=opened, timeout=timeout) as answer,
        ):
            return _read(model, answer)

    def _views(self, job: AnyJob) -> Iterator[JobView]:
        """Until the stream ends, which may be too early."""
        with self._answer("GET", f"/jobs/{_id(job)}/events") as answer:
            event, data = "", []
            for line in answer.iter_lines():
                field, _, value = line.partition(":")
                if field == "event":
                    event = value.strip()
                elif field == "data":
                    data.append(value.removeprefix(" "))
                elif not line:
                    if event == "job":
                        yield _parsed(JobView, "\n".join(data))
                    event, data = "", []

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        expected: tuple[int, ...] = (200, 201, 202, 204),
        timeout: float | None = None,
        **content: Any,
    ) -> Iterator[httpx.Response]:
        """Not read yet. Raises what the service says is wrong; `timeout`: seconds until it answers."""
        limits = httpx.Timeout(self._timeout, read=max(timeout or 0, self._timeout))
        with (
            _unreachable(str(self._http.base_url)),
            self._http.stream(method, path, timeout=limits, **content) as answer,
        ):
            if answer.status_code not in expected:
                raise _error(answer)
            yield answer


@contextmanager
def _unreachable(base_url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as exc:
        reason = str(exc) or type(exc).__name__
        raise ServiceUnreachable(f"{base_url} does not answer: {reason}.", "Is `lipserve up` running there?") from exc


def _error(answer: httpx.Response) -> LipserveError:
    text, header = answer.read(), answer.headers.get("retry-after", "")
    retry_after = int(header) if header.isascii() and header.isdigit() else None
    try:
        body = ErrorBody.model_validate_json(text)
    except ValidationError:
        try:
            did = DidError.model_validate_json(text)
        except ValidationError:
            message = f"The answer is {answer.status_code} {answer.reason_phrase}, and not lipserve's."
            return ServiceError(message, "Is it lipserve's address?", retry_after, answer.status_code)
        problems = " ".join(f"{where}: {problem}." for where, problem in did.problems.items())
        body = ErrorBody(kind=did.our_kind, message=problems or did.description, hint="", request_id="")
    known = by_kind().get(body.kind)
    if known is None:
        return ServiceError(body.message, body.hint, retry_after, answer.status_code, body.kind)
    return known(body.message, body.hint, retry_after)


def _read(model: type[M], answer: httpx.Response) -> M:
    return _parsed(model, answer.read())


def _parsed(model: type[M], text: str | bytes) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as exc:
        raise ServiceError("The answer is not as this client knows it.", "Use a client of the same version.") from exc


def _save(answer: httpx.Response, output: Path) -> Path:
    """Beside its place until it is whole."""
    draft = output.with_name(f".{output.name[:100]}-{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as out:
            for block in answer.iter_bytes(1 << 20):
                out.write(block)
        draft.replace(output)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return output


@contextmanager
def _opened(given: Mapping[str, File | None]) -> Iterator[dict[str, tuple[str, BinaryIO]]]:
    """As httpx sends them; what was given as a path is closed again."""
    with ExitStack() as stack:
        files: dict[str, tuple[str, BinaryIO]] = {}
        for field, file in given.items():
            if isinstance(file, (str, Path)):
                files[field] = (Path(file).name, stack.enter_context(Path(file).open("rb")))
            elif file is not None:
                files[field] = (Path(str(getattr(file, "name", field))).name, file)
        yield files


def _form(data: Mapping[str, object]) -> dict[str, str]:
    """What was given, as text; booleans as JSON writes them."""
    given = {name: value for name, value in data.items() if value is not None}
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


def _id(job: AnyJob) -> str:
    return _part(job if isinstance(job, str) else job.id)


def _part(name: str) -> str:
    """Of a path, whatever is in it. Raises InvalidParameter for what could only be another path."""
    if name in ("", ".", ".."):
        raise InvalidParameter(f"{name!r} is no id.", "Ids are as the service gave them.")
    return quote(name, safe="")
