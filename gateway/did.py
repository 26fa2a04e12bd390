"""D-ID's talks API, as data: what a caller sends, what is answered, in which words.

Requests are read the way their clients write them: booleans and numbers also as strings; null, "" and {} are as good as
nothing. What lipserve cannot do is refused by its name, unless it is what would happen anyway.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, model_validator

from gateway.engine import MAX_PAD_SECONDS
from gateway.jobs import Job
from gateway.talks import TalkOrder, TalkResult, TextOrder
from lipserve.api import JobState
from lipserve.errors import LipserveError, by_kind
from lipserve.talk_api import Created, DidError, DidStatus, Metadata, Talk

MAX_URL = 2048
MAX_LIMIT = 1000
DEFAULT_LIMIT = 100  # talks on a page
MOST_CHARS = 100_000  # of a text, whatever is configured

STATUSES: dict[JobState, DidStatus] = {
    "queued": "created",
    "processing": "started",
    "done": "done",
    "failed": "error",
    "cancelled": "rejected",
}


def _refuse(value: bool) -> bool:
    if value:
        raise ValueError("this service cannot do that")
    return value


def _one(value: float) -> float:
    if value != 1:
        raise ValueError("this service moves the mouth alone: only 1 is possible")
    return value


No = Annotated[bool, AfterValidator(_refuse)]


class Given(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: given for name, given in value.items() if given is not None and given not in ("", {}, [])}


class Provider(Given):
    """Whose voice. One voice is configured here; of others' names the language counts."""

    type: str = Field("", max_length=40)
    voice_id: str = Field("", max_length=100)
    language: str = Field("", max_length=40)


class TextScript(Given):
    type: Literal["text"]
    input: str = Field(max_length=MOST_CHARS)
    provider: Provider = Field(default_factory=Provider)
    ssml: bool = False
    subtitles: No = False


class AudioScript(Given):
    type: Literal["audio"]
    audio_url: str = Field(max_length=MAX_URL)
    subtitles: No = False
    reduce_noise: No = False


class SilenceScript(Given):
    type: Literal["silence"]
    duration: float = Field(gt=0, allow_inf_nan=False, description="Seconds.")


Script = Annotated[TextScript | AudioScript | SilenceScript, Discriminator("type")]


class Config(Given):
    """No head is moved here, and the whole picture comes back: what is about drivers or stitching has no effect."""

    fluent: bool = False
    pad_audio: float = Field(0.0, ge=0, le=MAX_PAD_SECONDS, allow_inf_nan=False, description="Seconds of silence.")
    stitch: bool = True
    align_driver: bool = True
    align_expand_factor: float = Field(0.3, ge=0, le=1, allow_inf_nan=False)
    auto_match: bool = True
    normalization_factor: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    motion_factor: Annotated[float, AfterValidator(_one)] = 1.0
    sharpen: bool = True
    result_format: Literal["mp4", ".mp4"] = "mp4"


class CreateTalk(Given):
    """POST /talks."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "source_url": "https://example.com/anna.jpg",
                    "script": {"type": "audio", "audio_url": "https://example.com/hello.mp3"},
                },
                {
                    "source_url": "lipserve://avatars/lucy",
                    "script": {
                        "type": "text",
                        "input": "Hello!",
                        "provider": {"type": "microsoft", "voice_id": "en-US-JennyNeural"},
                    },
                    "config": {"pad_audio": "0.5"},
                    "webhook": "https://example.com/hook",
                    "user_data": "order 17",
                    "name": "greeting",
                },
            ]
        }
    )

    source_url: str = Field(max_length=MAX_URL, description="http(s), or what POST /images gave, or a prepared avatar.")
    script: Script
    config: Config = Field(default_factory=Config)
    webhook: str = Field("", max_length=MAX_URL)
    user_data: str = Field("", max_length=1000)
    name: str = Field("", max_length=200)
    persist: No = False

    def order(self) -> TalkOrder:
        script = self.script
        text = None
        if isinstance(script, TextScript):
            voice = script.provider
            text = TextOrder(text=script.input, voice=voice.voice_id, language=voice.language, ssml=script.ssml)
        shown = {"user_data": self.user_data, "name": self.name}
        return TalkOrder(
            source_url=self.source_url,
            audio_url=script.audio_url if isinstance(script, AudioScript) else None,
            text=text,
            silence=script.duration if isinstance(script, SilenceScript) else None,
            pad_audio=self.config.pad_audio,
            shown={name: value for name, value in shown.items() if value},
        )


def created(job: Job) -> Created:
    return Created(id=job.id, created_at=iso(job.created_at), created_by=job.owner, status=STATUSES[job.state])


def talk(job: Job, result_url: str | None) -> Talk:
    """`result_url`: where its video is, if there is one."""
    order = TalkOrder.model_validate(job.request)
    result = TalkResult.model_validate(job.result) if job.state == "done" else None
    return Talk(
        **created(job).model_dump(),
        user_id=job.owner,
        source_url=order.source_url,
        audio_url=order.audio_url,
        result_url=result_url,
        started_at=iso(job.started_at) if job.started_at else None,
        modified_at=iso(job.completed_at or job.started_at or job.created_at),
        duration=result.duration if result else None,
        metadata=Metadata(**result.model_dump(include=set(Metadata.model_fields))) if result else None,
        user_data=order.shown.get("user_data"),
        name=order.shown.get("name"),
        error=_failure(job),
    )


def _failure(job: Job) -> DidError | None:
    if job.state == "cancelled":
        return DidError(kind="CancelledError", description="The talk was cancelled.", details={"kind": "cancelled"})
    if job.error is None:
        return None
    kind, message, hint = (job.error[name] for name in ("kind", "message", "hint"))
    return error(status_of(kind), kind, message, hint, {})


def iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# -- errors -----------------------------------------------------------------------------------------------------------

PATHS = ("talks", "images", "audios")
KINDS = {
    400: "BadRequestError",
    401: "AuthorizationError",
    403: "PermissionError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "TimeoutError",
    409: "ConflictError",
    413: "PayloadTooLargeError",
    429: "TooManyRequestsError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}


def speaks(path: str) -> bool:
    """Whether this path's errors are told in D-ID's form."""
    return path.split("/", 2)[1:2] != [] and path.split("/", 2)[1] in PATHS


def status(ours: int) -> int:
    """What is wrong with the request is 400 to their clients."""
    return 400 if ours == 422 else ours


def error(ours: int, kind: str, message: str, hint: str, more: dict[str, str]) -> DidError:
    theirs = KINDS.get(status(ours), "InternalServerError" if ours >= 500 else "BadRequestError")
    return DidError(kind=theirs, description=f"{message} {hint}".strip(), details={"kind": kind, **more})


def status_of(kind: str) -> int:
    """The HTTP status of an error known by its `kind`."""
    return by_kind().get(kind, LipserveError).status
