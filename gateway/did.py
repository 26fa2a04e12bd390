"""D-ID's talks API, as data: what a caller sends, what is answered, in which words.

Requests are read the way their clients write them: booleans and numbers also as strings; null, "" and {} are as good as
nothing. What would change the picture and cannot be done is refused by its name. What changes nothing is taken, and the
talk names it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator

from gateway.engine import MAX_PAD_SECONDS
from gateway.jobs import Job
from gateway.talks import TalkOrder, TalkResult, TextOrder
from lipserve.api import JobState
from lipserve.errors import LipserveError, by_kind
from lipserve.talk_api import Created, DidError, DidStatus, Metadata, Problem, Talk

MAX_URL = 2048
MAX_LIMIT = 1000
DEFAULT_LIMIT = 100  # talks on a page
MOST_CHARS = 100_000  # of a text, whatever is configured
MOST_FIELDS = 50  # in one part of a request
MOST_PROBLEMS = 20  # that are told of one request
MOST_SHOWN = 200  # characters of each

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


def _own_driver(value: str) -> str:
    if not value.startswith(DRIVER_BANK):
        raise ValueError("no driver can be given: this service moves the mouth alone")
    return value


def _no_logo(value: Any) -> bool:
    if value not in (False, 0, "false", "False"):
        raise ValueError("this service draws no logo")
    return False


@dataclass(frozen=True)
class Unused:
    """Marks a field that makes no difference here; `unless`: unless it is this, which is what happens anyway."""

    unless: bool = False


DRIVER_BANK = "bank://"  # D-ID's own movements of a head
No = Annotated[bool, AfterValidator(_refuse)]
Anything = Annotated[Any, Unused()]


class Given(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > MOST_FIELDS:  # a report on each would hold up the event loop
            raise ValueError(f"there are not {len(value)} fields")
        return {name: given for name, given in value.items() if given is not None and given not in ("", {}, [])}

    def without_effect(self, within: str = "") -> Iterator[str]:
        """The names of what was given and made no difference, in the whole request."""
        for name, field in type(self).model_fields.items():
            value, full = getattr(self, name), f"{within}{name}"
            if isinstance(value, Given):
                yield from value.without_effect(f"{full}.")
            elif name in self.model_fields_set:
                marks = [mark for mark in field.metadata if isinstance(mark, Unused)]
                if any(bool(value) != mark.unless for mark in marks):
                    yield full


class Provider(Given):
    """Whose voice. One voice is configured here; of others' names the language counts."""

    model_config = ConfigDict(protected_namespaces=())  # model_id is D-ID's name

    type: str = Field("", max_length=40)
    voice_id: str = Field("", max_length=100)
    language: str = Field("", max_length=40)
    model_id: Anything = None
    voice_config: Anything = None


class TextScript(Given):
    type: Literal["text"]
    input: str = Field(max_length=MOST_CHARS)
    provider: Provider = Field(default_factory=Provider)
    ssml: bool = False
    subtitles: No = False


class AudioScript(Given):
    type: Literal["audio"]
    audio_url: str = Field(max_length=MAX_URL)
    input: Anything = None
    provider: Anything = None
    ssml: Annotated[bool, Unused()] = False
    subtitles: No = False
    reduce_noise: No = False


class SilenceScript(Given):
    type: Literal["silence"]
    duration: float = Field(gt=0, allow_inf_nan=False, description="Seconds.")


SCRIPTS = ("text", "audio", "silence")
Script = Annotated[TextScript | AudioScript | SilenceScript, Discriminator("type")]


class Config(Given):
    """No head is moved here, and the whole picture comes back: what is about drivers or stitching has no effect."""

    fluent: bool = False
    pad_audio: float = Field(0.0, ge=0, le=MAX_PAD_SECONDS, allow_inf_nan=False, description="Seconds of silence.")
    stitch: Annotated[bool, Unused(unless=True)] = True
    align_driver: bool = True
    align_expand_factor: float = Field(0.3, ge=0, le=1, allow_inf_nan=False)
    auto_match: bool = True
    normalization_factor: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    motion_factor: Annotated[float, AfterValidator(_one)] = 1.0
    sharpen: bool = True
    driver_expressions: Anything = None
    logo: Annotated[bool, BeforeValidator(_no_logo)] = False
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
    driver_url: Annotated[str, AfterValidator(_own_driver), Unused()] = Field("", max_length=MAX_URL)
    result_url: str = Field("", max_length=MAX_URL, description="http(s): the finished mp4 is sent there by PUT, too.")

    def order(self) -> TalkOrder:
        script = self.script
        text = None
        if isinstance(script, TextScript):
            voice = script.provider
            text = TextOrder(text=script.input, voice=voice.voice_id, language=voice.language, ssml=script.ssml)
        config = self.config.model_dump(exclude_unset=True, exclude={"driver_expressions"})
        shown = {
            "user_data": self.user_data,
            "name": self.name,
            "config": config,
            "ignored": list(self.without_effect()),
        }
        return TalkOrder(
            source_url=self.source_url,
            audio_url=script.audio_url if isinstance(script, AudioScript) else None,
            text=text,
            silence=script.duration if isinstance(script, SilenceScript) else None,
            pad_audio=self.config.pad_audio,
            result_url=self.result_url or None,
            shown={name: value for name, value in shown.items() if value},
        )


def created(job: Job) -> Created:
    return Created(id=job.id, created_at=iso(job.created_at), created_by=job.owner, status=STATUSES[job.state])


def talk(job: Job, result_url: str | None, speech_url: str | None = None) -> Talk:
    """`result_url`: where its video is, if there is one; `speech_url`: where its text's speech is, likewise."""
    order = TalkOrder.model_validate(job.request)
    result = TalkResult.model_validate(job.result) if job.state == "done" else None
    return Talk(
        **created(job).model_dump(),
        user_id=job.owner,
        source_url=order.source_url,
        audio_url=order.audio_url or speech_url,
        result_url=result_url,
        started_at=iso(job.started_at) if job.started_at else None,
        modified_at=iso(job.completed_at or job.started_at or job.created_at),
        duration=result.duration if result else None,
        metadata=Metadata(**result.model_dump(include=set(Metadata.model_fields))) if result else None,
        user_data=order.shown.get("user_data"),
        name=order.shown.get("name"),
        config=order.shown.get("config"),
        webhook=job.webhook,
        ignored=_ignored(order) or None,
        error=_failure(job),
    )


def _ignored(order: TalkOrder) -> list[str]:
    own_voice = order.text is not None and order.text.own_voice
    return [*order.shown.get("ignored", ()), *(("script.provider.voice_id",) if own_voice else ())]


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


def invalid(kind: str, problems: Sequence[Any], more: dict[str, str]) -> DidError:
    """A request that is not of its form; `problems` as pydantic tells them."""
    messages: dict[str, list[str]] = {}
    for problem in problems[:MOST_PROBLEMS]:
        messages.setdefault(_where(problem["loc"]), []).append(_shown(problem["msg"]))
    told = {where: Problem(message="; ".join(found)) for where, found in messages.items()}
    return DidError(kind="ValidationError", description="validation failed", details={**told, "kind": kind, **more})


def _where(place: Sequence[Any]) -> str:
    """body.script.input: neither the script's type, by which pydantic chose its form, nor places in what is no JSON."""
    parts = [str(part) for part in place if isinstance(part, str)]
    if parts[:2] == ["body", "script"] and parts[2:3] and parts[2] in SCRIPTS:
        del parts[2]
    return _shown(".".join(parts))


def _shown(text: str) -> str:
    """Short, and without the lone surrogates that a caller's names may have."""
    return text[:MOST_SHOWN].encode(errors="replace").decode()


def status_of(kind: str) -> int:
    """The HTTP status of an error known by its `kind`."""
    return by_kind().get(kind, LipserveError).status
