"""The two main jobs, from files to files: prepare an avatar; make it say something. Knows no HTTP.

Everything here blocks and is meant to run in a worker thread; OpenCV, ONNX Runtime, gRPC and PyAV release the GIL. A
job asks `cancelled` between its steps and ends with Cancelled when it is set.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from threading import Event
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from avatar_prep.faces import FaceFinder
from avatar_prep.imported import import_avatar
from avatar_prep.prepare import MAX_BATCH_SIZE, Parameters, Progress, prepare
from avatar_prep.source import Limits
from gateway.audio import frame_count, recorded
from gateway.avatars import AvatarCache
from gateway.blend import blend
from gateway.features import AudioEncoder, Padding, Prompts
from gateway.metrics import Metrics
from gateway.on_demand import OnDemand
from gateway.timing import Stopwatch
from gateway.triton import CONTROL_TIMEOUT, Batch, TritonClient
from lipserve.avatar import Avatar, AvatarInfo
from lipserve.colour import U8
from lipserve.contract import (
    FACE_LATENTS,
    FACE_SIZE,
    LATENT_CHANNELS,
    LIPSYNC,
    LOWER_FROM_ROW,
    MAX_FPS,
    MIN_FPS,
    NORM_SUMS,
    REFERENCE_SUMS,
    VAE_ENCODER,
    Model,
    Priority,
)
from lipserve.errors import (
    AvatarDamaged,
    AvatarNotFound,
    AvatarOutdated,
    AvatarUndrawable,
    Cancelled,
    InvalidParameter,
    TritonFailed,
)
from lipserve.fetch import FACE_MODELS
from lipserve.media import Mp4Writer, Samples, VideoEncoding, choose_encoder
from lipserve.settings import Settings
from lipserve.store import AvatarStore

log = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 8  # MuseTalk's
MAX_PAD_SECONDS = 60

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class SyncRequest:
    """What to say, and how. Raises InvalidParameter."""

    avatar_id: str
    fps: int | None = None  # None: as configured, else the avatar's own
    batch_size: int = DEFAULT_BATCH_SIZE  # frames at once: of more than the ensemble takes, as many as it takes
    padding: Padding = field(default_factory=Padding)
    pad_seconds: float = 0.0  # of silence after the sound

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("fps", self.fps, MIN_FPS, MAX_FPS),
            ("batch_size", self.batch_size, 1, MAX_BATCH_SIZE),
        ):
            if value is not None and not low <= value <= high:
                raise InvalidParameter(f"{name} is {value}.", f"It must be from {low} to {high}.")
        if not 0 <= self.pad_seconds <= MAX_PAD_SECONDS:
            raise InvalidParameter(
                f"{self.pad_seconds} s of silence are to be added.", f"They must be 0 to {MAX_PAD_SECONDS}."
            )


@dataclass(frozen=True)
class SyncResult:
    frames: int
    fps: int
    seconds: float  # of sound


def ignore_progress(stage: str, done: int, total: int | None) -> None:
    """For callers that show none."""


def needs(
    model: Model,
) -> Callable[[Callable[Concatenate["Engine", P], T]], Callable[Concatenate["Engine", P], T]]:
    """The engine's method runs while Triton has this model; where models are loaded on demand, it is loaded first."""

    def decorate(method: Callable[Concatenate["Engine", P], T]) -> Callable[Concatenate["Engine", P], T]:
        @wraps(method)
        def call(engine: "Engine", /, *args: P.args, **kwargs: P.kwargs) -> T:
            if engine.on_demand is None:
                return method(engine, *args, **kwargs)
            with engine.on_demand.using(model.name):
                return method(engine, *args, **kwargs)

        return call

    return decorate


class Engine:
    def __init__(self, settings: Settings, triton_url: str, metrics: Metrics | None = None) -> None:
        """Loads the audio encoder; does not need Triton yet. Raises ModelsMissing or EncoderUnavailable."""
        self._settings = settings
        self._priority = Priority[settings.priority.upper()]
        self._metrics = metrics = metrics or Metrics()
        self.store = AvatarStore(settings.avatars_dir)
        self.avatars = AvatarCache(self.store, settings.avatar_cache, metrics)
        # Of each request, the batches at Triton and the one whose faces are being blended.
        slots = settings.max_concurrent_syncs * (settings.batches_in_flight + 1)
        self.triton = TritonClient(triton_url, settings.triton_timeout, metrics, settings.shared_memory, slots)
        self.on_demand = OnDemand(self.triton, settings.unload_idle_seconds) if settings.lazy_load else None
        file = settings.models_dir / settings.profile / "audio_encoder.onnx"
        self._encoder = AudioEncoder(file, settings.audio_threads, settings.feature_cache, metrics.segment_looked_up)
        self._listeners = ThreadPoolExecutor(settings.max_concurrent_syncs, thread_name_prefix="listen")
        self._encoding = video_encoding(settings)
        self._face_models = settings.models_dir / FACE_MODELS.folder
        FaceFinder(self._face_models)  # so that missing files are found out at start-up

    def close(self) -> None:
        self._listeners.shutdown(cancel_futures=True)
        if self.on_demand is not None:
            self.on_demand.close()
        self.triton.close()

    def warm_up(self) -> None:
        """One pass through every model, or through those that are not loaded on demand. Raises TritonUnavailable or
        TritonFailed."""
        self._encoder.warm_up()
        if self.on_demand is not None:
            self.triton.connect()
            return
        self._weights_id()
        self.triton.warm_up()

    @property
    def weights_id(self) -> str:
        """Of the audio encoder here, and so of the models at Triton, if they fit."""
        return self._encoder.weights_id

    def is_ready(self, timeout: float = CONTROL_TIMEOUT) -> bool:
        """Whether Triton has the models, or would load them."""
        return self.triton.is_ready(timeout) if self.on_demand is None else self.triton.is_live(timeout)

    def _weights_id(self, model: Model = LIPSYNC) -> str:
        """Of the models at Triton, which must belong to the audio encoder here."""
        served = self.triton.weights_id(model)
        if served != self._encoder.weights_id:
            raise TritonFailed(
                f"Triton runs the weights {served!r}, the audio encoder is of {self._encoder.weights_id!r}.",
                "Export both together, and restart both.",
            )
        return served

    # -- prepare ------------------------------------------------------------------------------------------------------

    @needs(VAE_ENCODER)
    def prepare(
        self,
        source: Path,
        avatar_id: str,
        parameters: Parameters,
        force: bool = False,
        progress: Progress = ignore_progress,
        cancelled: Event | None = None,
        source_name: str | None = None,
        watch: Stopwatch | None = None,
        store: AvatarStore | None = None,
    ) -> AvatarInfo:
        """Make and store an avatar, among the named ones unless `store` is given; it appears whole, or not at all.
        Raises AvatarExists without `force`."""
        watch = watch or Stopwatch()

        watch.lap("queue")

        def report(stage: str, done: int, total: int | None) -> None:
            _require_wanted(cancelled)
            watch.lap(stage)
            progress(stage, done, total)

        weights_id = self._weights_id(VAE_ENCODER)
        limits = Limits(self._settings.max_video_seconds, self._settings.max_frame_pixels)
        with (store or self.store).writing(avatar_id, force) as draft:
            info = prepare(
                source,
                draft,
                avatar_id,
                parameters,
                FaceFinder(self._face_models),
                self.triton.encode_faces,
                weights_id,
                limits,
                report,
                source_name,
            )
            self._give_norm_sums(draft, report, cancelled)
        watch.lap("store")
        return info

    @needs(VAE_ENCODER)
    def import_avatar(
        self,
        folder: Path,
        avatar_id: str,
        fps: int,
        video: Path | None = None,
        force: bool = False,
        progress: Progress = ignore_progress,
    ) -> AvatarInfo:
        """Store an avatar that MuseTalk's scripts prepared with the weights being served; see avatar_prep.imported."""
        weights_id = self._weights_id(VAE_ENCODER)
        limits = Limits(self._settings.max_video_seconds, self._settings.max_frame_pixels)
        encode = self.triton.encode_faces
        with self.store.writing(avatar_id, force) as draft:
            info = import_avatar(folder, draft, avatar_id, fps, weights_id, limits, progress, video, encode)
            self._give_norm_sums(draft, progress)
        return info

    # -- lip-sync -----------------------------------------------------------------------------------------------------

    @needs(LIPSYNC)
    def lip_sync(
        self,
        request: SyncRequest,
        audio: Path,
        output: Path,
        progress: Progress = ignore_progress,
        cancelled: Event | None = None,
        watch: Stopwatch | None = None,
        avatars: AvatarCache | None = None,
    ) -> SyncResult:
        """Write the mp4 in which the avatar, a named one unless `avatars` is given, says what is in `audio`."""
        watch = watch or Stopwatch()
        watch.lap("queue")
        queued = watch.total
        avatar = self._open(request.avatar_id, avatars or self.avatars)
        lower = self.triton.takes_norm_sums()
        if lower:
            with watch.stage("sums"):
                self._require_norm_sums(avatar, progress, cancelled)
        fps = request.fps or self._settings.output_fps or avatar.info.fps
        draft = output.with_name(f".{output.name}.part")
        try:
            with ExitStack() as stack:
                with watch.stage("audio"):
                    limit, pad = self._settings.max_audio_seconds, request.pad_seconds
                    sound = stack.enter_context(recorded(audio, limit, output.parent, pad, cancelled))
                    frames = frame_count(sound.heard.length, fps)
                heard = Prompts(sound.heard, fps, request.padding, self._encoder.hidden_states, self._listeners)
                stack.enter_context(closing(heard))
                video = stack.enter_context(self._writer(draft, avatar, fps, sound.played))
                faces = self._faces(avatar, lower, heard, frames, request.batch_size, watch, cancelled)
                for index, face in stack.enter_context(closing(faces)):
                    _require_wanted(cancelled)
                    with watch.stage("blend"):
                        blend(avatar, index, face, video.picture())
                    with watch.stage("encode"):
                        video.append()
                    self._metrics.frames.inc()
                    progress("render", video.frames, frames)
                with watch.stage("finish"):
                    video.finish()
                seconds = sound.played.seconds
            draft.replace(output)
            self._metrics.frame_rate.observe(frames / (watch.total - queued))
        finally:
            draft.unlink(missing_ok=True)
        return SyncResult(frames, fps, seconds)

    def _writer(self, file: Path, avatar: Avatar, fps: int, sound: Samples) -> Mp4Writer:
        info = avatar.info
        return Mp4Writer(file, (info.width, info.height), fps, sound, info.tags, self._encoding)

    @needs(LIPSYNC)
    def is_usable(self, avatar_id: str) -> bool:
        """Whether the avatar can be used as it is. Raises TritonUnavailable."""
        try:
            self._open(avatar_id, self.avatars)
        except (AvatarNotFound, AvatarDamaged, AvatarOutdated):
            return False
        return True

    def _open(self, avatar_id: str, avatars: AvatarCache) -> Avatar:
        avatar = avatars.get(avatar_id)
        served = self._weights_id()
        if avatar.info.weights_id != served:
            raise AvatarOutdated(
                f"The avatar {avatar_id!r} was prepared with the weights {avatar.info.weights_id!r}, "
                f"Triton now runs {served!r}.",
                "Prepare it again with force=true.",
            )
        return avatar

    # -- the decoder of the lower rows --------------------------------------------------------------------------------

    def _require_norm_sums(self, avatar: Avatar, progress: Progress, cancelled: Event | None = None) -> None:
        """The avatar has its sums afterwards, for a served decoder that draws only the lower rows.

        Raises TritonUnavailable, TritonFailed, Cancelled, AvatarDamaged, OSError, and AvatarUndrawable if the avatar
        shows rows that are not drawn.
        """
        first = avatar.first_face_row
        if first < LOWER_FROM_ROW:
            raise AvatarUndrawable(
                f"The avatar {avatar.info.avatar_id!r} shows its faces from row {first} of {FACE_SIZE} on, and the "
                f"served decoder, sd-vae-lower, draws them from row {LOWER_FROM_ROW} on.",
                "Prepare it with a smaller bbox_shift or from a video that shows the whole face, or serve sd-vae.",
            )
        if not avatar.has_norm_sums:
            avatar.keep_norm_sums(self._made_norm_sums(avatar, progress, cancelled))

    def _give_norm_sums(self, draft: Path, progress: Progress, cancelled: Event | None = None) -> None:
        """To an avatar that is not published yet, so that its first video need not wait for them; not where that would
        load models that nobody asked for."""
        if self.on_demand is None and self.triton.takes_norm_sums():
            self._require_norm_sums(Avatar(draft), progress, cancelled)

    def _made_norm_sums(self, avatar: Avatar, progress: Progress, cancelled: Event | None) -> NDArray[np.float32]:
        """Of the frames with a face, from their stored latents; zeros for the others: float32 (n, 19, 32, 2)."""
        sums = np.zeros((avatar.info.frames, *NORM_SUMS.shape), np.float32)
        shown = np.flatnonzero(avatar.regions["has_face"])
        latents = np.empty((REFERENCE_SUMS.max_batch_size, *FACE_LATENTS.shape), np.float16)
        with self.on_demand.using(REFERENCE_SUMS.name) if self.on_demand is not None else nullcontext():
            for start in range(0, len(shown), REFERENCE_SUMS.max_batch_size):
                _require_wanted(cancelled)
                indices = shown[start : start + REFERENCE_SUMS.max_batch_size]
                avatar.read_latents(indices.tolist(), latents[: len(indices)])
                sums[indices] = self.triton.reference_sums(latents[: len(indices), LATENT_CHANNELS:])
                progress("sums", start + len(indices), len(shown))
        return sums

    def _faces(
        self,
        avatar: Avatar,
        lower: bool,
        heard: Prompts,
        frames: int,
        batch_size: int,
        watch: Stopwatch,
        cancelled: Event | None = None,
    ) -> Generator[tuple[int, U8]]:
        """(stored frame's index, generated face) for every output frame, in order.

        While the caller works on one batch, the next ones are already at Triton. A face is valid until the next is
        asked for.
        """
        pending: deque[tuple[list[int], Batch]] = deque()
        most = min(batch_size, LIPSYNC.max_batch_size)
        starts = iter(range(0, frames, most))

        def send() -> None:
            start = next(starts, None)
            if start is not None:
                stop = min(start + most, frames)
                indices = [avatar.index(frame, heard.fps) for frame in range(start, stop)]
                batch = self.triton.batch(len(indices), self._priority, lower)
                pending.append((indices, batch))
                with watch.stage("features"):
                    heard.batch(start, stop, batch.features)
                avatar.read_latents(indices, batch.latents)
                if lower:
                    avatar.read_norm_sums(indices, batch.norm_sums)
                batch.send(cancelled)

        try:
            for _ in range(self._settings.batches_in_flight):
                send()
            while pending:
                indices, batch = pending.popleft()
                with batch:
                    with watch.stage("faces"):
                        faces = batch.faces(cancelled)
                    send()
                    yield from zip(indices, faces, strict=True)
        finally:
            for _, batch in pending:
                batch.release()


def video_encoding(settings: Settings) -> VideoEncoding:
    """As configured, for this machine. Raises EncoderUnavailable."""
    encoder, why = choose_encoder(settings.video_encoder)
    log.info("videos are encoded by %s: %s", encoder, why)
    return VideoEncoding(encoder, settings.video_preset, settings.video_crf, settings.video_threads)


def _require_wanted(cancelled: Event | None) -> None:
    if cancelled is not None and cancelled.is_set():
        raise Cancelled("The request was cancelled.")
