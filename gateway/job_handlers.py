"""The main calls as jobs: their parameters as JSON, their inputs in the job's folder."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from avatar_prep.prepare import Parameters, checked_parameters
from gateway.engine import Engine, SyncRequest
from gateway.features import Padding
from gateway.inputs import media_file
from gateway.jobs import Job, JobContext, JobService
from gateway.jobs.model import RESULT
from gateway.work import Workers
from lipserve.avatar import AvatarInfo, sha256
from lipserve.errors import AvatarDamaged, AvatarNotFound
from lipserve.settings import Settings

PREPARE_STAGES = {"decode": 0.15, "faces": 0.35, "encode": 0.5}


def register_main_calls(
    jobs: JobService, engine: Engine, settings: Settings, syncs: Workers, preparations: Workers
) -> None:
    def lip_sync(context: JobContext) -> dict[str, Any]:
        request, output = context.job.request, context.folder / RESULT
        source = _source(context, "audio", settings.media_dir)
        result = engine.lip_sync(
            sync_request(request), source, output, context.report, context.cancelled, context.watch
        )
        return asdict(result)

    def prepare_avatar(context: JobContext) -> dict[str, Any]:
        request, source = context.job.request, _source(context, "video", settings.media_dir)
        parameters = checked_parameters(request)
        info = _stored_before(engine, context.job, source, parameters) or engine.prepare(
            source,
            request["avatar_id"],
            parameters,
            request["force"],
            context.report,
            context.cancelled,
            request["video"],
            context.watch,
        )
        return info.model_dump(mode="json")

    jobs.register("lip_sync", lip_sync, syncs)
    jobs.register("prepare_avatar", prepare_avatar, preparations, PREPARE_STAGES)


def sync_request(request: dict[str, Any]) -> SyncRequest:
    """Raises InvalidParameter."""
    padding = Padding(request["audio_padding_length_left"], request["audio_padding_length_right"])
    return SyncRequest(request["avatar_id"], request["fps"], request["batch_size"], padding)


def _source(context: JobContext, name: str, media_dir: Path | None) -> Path:
    """The upload, or the file of the media folder that the request names."""
    path = context.job.request[f"{name}_path"]
    return media_file(name, path, media_dir) if path is not None else context.folder / name


def _stored_before(engine: Engine, job: Job, source: Path, parameters: Parameters) -> AvatarInfo | None:
    """What the job's first attempt has stored, if it was killed between that and its end."""
    if job.attempts == 1:
        return None
    try:
        info = engine.store.info(job.request["avatar_id"])
    except (AvatarNotFound, AvatarDamaged):
        return None
    begun = job.created_at.replace(microsecond=0)  # prepared_at has no fractions
    same = info.source_sha256 == sha256(source) and info.parameters == parameters.model_dump()
    return info if same and datetime.fromisoformat(info.prepared_at) >= begun else None
