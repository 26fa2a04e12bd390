"""A talk: a picture, a clip or a prepared avatar says a sound or a text. What both talk APIs order, as a stored job.

Knows where what is ordered comes from (uploads, avatars, URLs, voices) and the order of the work; no HTTP of ours.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from wave import Wave_write
from wave import open as open_wave

import structlog
from pydantic import BaseModel, ConfigDict, Field

from avatar_prep.prepare import Progress
from gateway.avatars import AvatarCache
from gateway.delivery import deliver
from gateway.engine import Engine, SyncRequest
from gateway.fetching import UrlFetcher
from gateway.jobs import Job, JobContext, JobService
from gateway.jobs.model import RESULT
from gateway.pictures import PictureAvatars
from gateway.speech import Text, choose_voice
from gateway.uploads import Uploads, What
from gateway.work import Workers
from lipserve.contract import SAMPLE_RATE
from lipserve.errors import InvalidParameter, UploadNotFound
from lipserve.settings import Settings

KIND = "talk"
PREFIX = "tlk_"
STAGES = {"fetch": 1.0, "speech": 1.0, "prepare": 3.0, "render": 10.0, "deliver": 1.0}  # and the share of the time
PREPARING = {"decode": (0.0, 0.1), "faces": (0.1, 0.5), "encode": (0.6, 0.4)}  # where in `prepare`, and how long
AVATAR_URL = "lipserve://avatars/"
KEPT_SOURCE, KEPT_AUDIO = "source", "audio"  # uploads, in the job's folder: they may be gone when its turn comes
FETCHED_SOURCE, SPOKEN = ".source", ".speech"  # begin with a dot: scratch
SPEECH = "speech.wav"  # what a text became, in the job's folder: it stays there
SOURCES: tuple[What, ...] = ("image", "video")
AUDIOS: tuple[What, ...] = ("audio", "video")

log = structlog.stdlib.get_logger("gateway")


class TextOrder(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    voice: str = ""
    language: str = ""
    ssml: bool = False
    own_voice: bool = False  # `voice` is none that is known here: the service's own speaks

    def said(self) -> Text:
        """Raises InvalidParameter."""
        return Text(self.text, self.voice, self.language, self.ssml)


class TalkOrder(BaseModel):
    """What is to be made, as the job keeps it. Of `audio_url`, `text` and `silence` exactly one is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source_url: str  # http(s), an upload, or lipserve://avatars/<id>
    audio_url: str | None = None  # http(s) or an upload
    text: TextOrder | None = None
    silence: float | None = None  # seconds
    pad_audio: float = 0.0  # seconds of silence after it
    result_url: str | None = None  # http(s): the finished video is sent there, too
    shown: dict[str, Any] = Field(default_factory=dict)  # what the caller gets to see again, and we make nothing of


class TalkResult(BaseModel):
    num_frames: int
    num_faces: int
    processing_fps: float  # frames rendered a second
    resolution: tuple[int, int]  # width, height
    size_kib: float
    duration: float  # seconds
    fps: int


class Talks:
    def __init__(
        self,
        settings: Settings,
        jobs: JobService,
        workers: Workers,
        engine: Engine,
        pictures: PictureAvatars,
        uploads: Uploads,
    ) -> None:
        """Registers the kind with `jobs`; `workers` make the talks."""
        self._settings, self._jobs, self._engine = settings, jobs, engine
        self._pictures, self._uploads = pictures, uploads
        self._fetcher, self._voice = UrlFetcher(settings), choose_voice(settings)
        self._workers = workers
        jobs.register(KIND, self._make, workers, STAGES)

    # -- accepting ----------------------------------------------------------------------------------------------------

    def require_room(self) -> None:
        """Raises QueueFull. Quick."""
        self._jobs.require_room(self._workers)

    def submit(self, order: TalkOrder, owner: str, webhook: str | None) -> Job:
        """Checks what can be checked at once, and queues. Raises InvalidParameter, UrlNotAllowed, UploadNotFound,
        AvatarNotFound, SpeechUnavailable or QueueFull."""
        order = self._checked_speech(order)
        for url in (webhook, order.result_url):
            if url:
                self._fetcher.check(url)
        if order.source_url.startswith(AVATAR_URL):
            self._engine.store.version(order.source_url.removeprefix(AVATAR_URL))
        kept = {KEPT_SOURCE: self._upload("source_url", order.source_url, SOURCES, owner)}
        if order.audio_url is not None:
            kept[KEPT_AUDIO] = self._upload("audio_url", order.audio_url, AUDIOS, owner)

        def fill(folder: Path) -> None:
            for name, upload in kept.items():
                if upload is not None:
                    _take_over(upload, folder / name)

        return self._jobs.submit(KIND, order.model_dump(), owner, fill=fill, webhook=webhook or None, prefix=PREFIX)

    def _checked_speech(self, order: TalkOrder) -> TalkOrder:
        """With a note, if its text is spoken by another voice than it names."""
        if (order.audio_url is None) + (order.text is None) + (order.silence is None) != 2:
            raise InvalidParameter("Exactly one sound or text must be given.", "Give audio, or a text.")
        if order.audio_url is not None and order.audio_url.startswith(AVATAR_URL):
            raise InvalidParameter("audio_url names an avatar.", "Name a sound: an upload, or a URL.")
        if order.silence is not None and not 0 < order.silence <= self._settings.max_audio_seconds:
            most = self._settings.max_audio_seconds
            raise InvalidParameter(f"The silence lasts {order.silence} s.", f"It must be above 0 and at most {most} s.")
        SyncRequest("any", pad_seconds=order.pad_audio)  # checks it
        if order.text is not None:
            length, most_chars = len(order.text.text), self._settings.max_text_chars
            if length > most_chars:
                raise InvalidParameter(f"The text has {length} characters.", f"At most {most_chars} are spoken.")
            said = order.text.said()
            self._voice.check(said)
            if not self._voice.has(said):
                log.info("a voice is not known here; the service's own speaks", voice=said.voice)
                return order.model_copy(update={"text": order.text.model_copy(update={"own_voice": True})})
        return order

    def _upload(self, field: str, url: str, allowed: tuple[What, ...], owner: str) -> Path | None:
        """The upload's file; None if it is somewhere else, of which what can be said at once is checked."""
        if url.startswith(AVATAR_URL):
            return None
        if url.lower().startswith(("http:", "https:")):
            self._fetcher.check(url)
            return None
        what = self._uploads.get(url, owner).what
        if what not in allowed:
            raise InvalidParameter(f"{field} names an upload that is {what}.", f"It must be {' or '.join(allowed)}.")
        return self._uploads.open(url, owner)

    # -- working ------------------------------------------------------------------------------------------------------

    def _make(self, context: JobContext) -> dict[str, Any]:
        """The job's handler."""
        order = TalkOrder.model_validate(context.job.request)
        watch = context.watch
        watch.lap("queue")
        try:
            context.report("fetch", 0, 1)
            source = self._source(order, context)
            watch.lap("fetch")
            context.report("speech", 0, 1)
            audio = self._audio(order, context)
            watch.lap("speech")
            context.report("prepare", 0, 1)
            with self._avatar(order, source, context) as (avatar_id, avatars):
                result = self._render(SyncRequest(avatar_id, pad_seconds=order.pad_audio), audio, avatars, context)
            if order.result_url is not None:
                self._deliver(order.result_url, context)
                watch.lap("deliver")
            return result
        finally:
            for name in (FETCHED_SOURCE, SPOKEN):
                (context.folder / name).unlink(missing_ok=True)

    def _source(self, order: TalkOrder, context: JobContext) -> Path | None:
        """The picture or clip; None: it is a prepared avatar."""
        if order.source_url.startswith(AVATAR_URL):
            return None
        return self._fetched(order.source_url, KEPT_SOURCE, FETCHED_SOURCE, context)

    def _audio(self, order: TalkOrder, context: JobContext) -> Path:
        target = context.folder / SPOKEN
        if order.audio_url is not None:
            return self._fetched(order.audio_url, KEPT_AUDIO, SPOKEN, context)
        if order.text is not None:
            self._voice.say(order.text.said(), target, context.cancelled)
            return target.replace(context.folder / SPEECH)
        assert order.silence is not None
        write_silence(target, order.silence)
        return target

    def _deliver(self, url: str, context: JobContext) -> None:
        def sent(done: int, size: int) -> None:
            context.report("deliver", done, size)

        deliver(self._fetcher, url, context.folder / RESULT, sent, context.cancelled)

    def _fetched(self, url: str, kept: str, target: str, context: JobContext) -> Path:
        """From the job's folder, if it was an upload."""
        upload, file = context.folder / kept, context.folder / target
        if upload.is_file():
            return upload
        self._fetcher.fetch(url, file, self._settings.max_upload_mb * 10**6, context.cancelled)
        return file

    @contextmanager
    def _avatar(self, order: TalkOrder, source: Path | None, context: JobContext) -> Iterator[tuple[str, AvatarCache]]:
        """The avatar's id, and where it is."""
        if source is None:
            yield order.source_url.removeprefix(AVATAR_URL), self._engine.avatars
        else:
            with self._pictures.avatar(source, preparing(context.report), context.cancelled, context.watch) as found:
                yield found, self._pictures.avatars

    def _render(self, request: SyncRequest, audio: Path, avatars: AvatarCache, context: JobContext) -> dict[str, Any]:
        info = avatars.store.info(request.avatar_id)
        output, watch = context.folder / RESULT, context.watch
        start = watch.total
        made = self._engine.lip_sync(request, audio, output, context.report, context.cancelled, watch, avatars)
        seconds = watch.total - start
        return TalkResult(
            num_frames=made.frames,
            num_faces=1,
            processing_fps=round(made.frames / max(seconds, 1e-3), 2),
            resolution=(info.width, info.height),
            size_kib=round(output.stat().st_size / 1024, 2),
            duration=made.frames / made.fps,
            fps=made.fps,
        ).model_dump(mode="json")


def preparing(report: Progress) -> Progress:
    """Engine.prepare's stages as parts of the one stage `prepare`, in thousandths."""

    def progress(stage: str, done: int, total: int | None) -> None:
        start, length = PREPARING.get(stage, (0.0, 0.0))
        part = min(done / total, 1.0) if total else 0.0
        report("prepare", round(1000 * (start + length * part)), 1000)

    return progress


def write_silence(target: Path, seconds: float) -> None:
    """A WAV file, second by second."""
    frames = round(seconds * SAMPLE_RATE)
    with target.open("wb") as file, open_wave(file, "wb") as wave:
        assert isinstance(wave, Wave_write)
        wave.setparams((1, 2, SAMPLE_RATE, frames, "NONE", ""))
        for start in range(0, frames, SAMPLE_RATE):
            wave.writeframesraw(bytes(2 * min(SAMPLE_RATE, frames - start)))


def _take_over(upload: Path, target: Path) -> None:
    """As a second name of the same file, where the file system has them."""
    try:
        with suppress(OSError):
            os.link(upload, target)
            return
        shutil.copyfile(upload, target)
    except FileNotFoundError as exc:
        raise UploadNotFound("The upload has just been removed.", "Upload the file again.") from exc
