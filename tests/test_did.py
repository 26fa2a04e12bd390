"""The D-ID mapping: what their clients send, what they are told. No server."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import did
from gateway.did import CreateTalk, talk
from gateway.jobs import Job
from gateway.talks import TalkOrder, TextOrder
from lipserve.api import JobState

AUDIO = {"type": "audio", "audio_url": "https://example.com/a.mp3"}
FACE = "https://example.com/a.jpg"
START = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def given(script: dict[str, Any] = AUDIO, **more: Any) -> CreateTalk:
    return CreateTalk.model_validate({"source_url": FACE, "script": script, **more})


def test_an_audio_script() -> None:
    order = given(user_data="order 17", name="greeting", config={"pad_audio": "0.5", "fluent": "false"}).order()
    shown = {"user_data": "order 17", "name": "greeting"}
    assert order == TalkOrder(source_url=FACE, audio_url=AUDIO["audio_url"], pad_audio=0.5, shown=shown)


def test_a_text_script_as_their_clients_write_it() -> None:
    """Booleans and numbers as strings; nothing as null, "" and {}."""
    provider = {"type": "microsoft", "voice_id": "en-US-JennyNeural", "voice_config": {}}
    script = {"type": "text", "input": "Hi.", "ssml": "true", "subtitles": "false", "provider": provider}
    nothing = {"driver_url": None, "result_url": "", "webhook": "", "name": "", "face": {}, "persist": "false"}
    order = given(script, **nothing, config={"stitch": "true", "pad_audio": "0.0", "result_format": ".mp4"}).order()
    text = TextOrder(text="Hi.", voice="en-US-JennyNeural", ssml=True)
    assert order == TalkOrder(source_url=FACE, text=text)


def test_a_silence_script() -> None:
    assert given({"type": "silence", "duration": "2.5"}).order() == TalkOrder(source_url=FACE, silence=2.5)


def test_an_order_is_kept_as_json() -> None:
    order = given({"type": "text", "input": "Hi."}, config={"pad_audio": 1}).order()
    assert TalkOrder.model_validate_json(order.model_dump_json()) == order


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"driver_url": "bank://lively"}, "driver_url"),
        ({"result_url": "https://example.com/put"}, "result_url"),
        ({"face": {"size": 512}}, "face"),
        ({"persist": "true"}, "persist"),
        ({"surprise": 1}, "surprise"),
        ({"source_url": None}, "source_url"),
        ({"source_url": "x" * 3000}, "source_url"),
        ({"user_data": "x" * 1001}, "user_data"),
        ({"name": "\ud800"}, "name"),
        ({"config": {"result_format": "gif"}}, "config.result_format"),
        ({"config": {"motion_factor": 0.5}}, "config.motion_factor"),
        ({"config": {"logo": {"url": "ai"}}}, "config.logo"),
        ({"config": {"driver_expressions": {"expressions": [1]}}}, "config.driver_expressions"),
        ({"config": {"pad_audio": -1}}, "config.pad_audio"),
        ({"config": {"pad_audio": 61}}, "config.pad_audio"),
        ({"config": {"pad_audio": "nan"}}, "config.pad_audio"),
        ({"config": {"fluent": "perhaps"}}, "config.fluent"),
        ({"script": {}}, "script"),
        ({"script": {"type": "dance"}}, "script"),
        ({"script": {"type": "audio"}}, "script.audio.audio_url"),
        ({"script": {"type": "audio", "audio_url": "x" * 3000}}, "script.audio.audio_url"),
        ({"script": {**AUDIO, "reduce_noise": True}}, "script.audio.reduce_noise"),
        ({"script": {"type": "text", "input": ""}}, "script.text.input"),
        ({"script": {"type": "text", "input": "a", "subtitles": True}}, "script.text.subtitles"),
        (
            {"script": {"type": "text", "input": "a", "provider": {"voice_config": {"rate": "1.5"}}}},
            "script.text.provider.voice_config",
        ),
        ({"script": {"type": "silence", "duration": 0}}, "script.silence.duration"),
        ({"script": {"type": "silence", "duration": "inf"}}, "script.silence.duration"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(more: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CreateTalk.model_validate({"source_url": FACE, "script": AUDIO, **more})
    assert ".".join(str(part) for part in refused.value.errors()[0]["loc"]) == named


def job(state: JobState, **more: Any) -> Job:
    times = [START + timedelta(seconds=s) for s in (0, 1, 5)]
    at: dict[str, Any] = dict(zip(("created_at", "started_at", "completed_at"), times, strict=True))
    if state == "queued":
        at |= {"started_at": None, "completed_at": None}
    if state == "processing":
        at |= {"completed_at": None}
    order = given(user_data="order 17").order().model_dump()
    fields = {"result": None, "error": None, "webhook": None, "attempts": 1, **at, **more}
    return Job("tlk_" + "0" * 32, "talk", state, 0.5, "render", owner="shop", request=order, **fields)


def test_a_talk_from_beginning_to_end() -> None:
    waiting = talk(job("queued"), None).model_dump(exclude_none=True)
    assert waiting == {
        "id": "tlk_" + "0" * 32,
        "object": "talk",
        "created_at": "2026-01-31T12:00:00.000Z",
        "created_by": "shop",
        "user_id": "shop",
        "status": "created",
        "source_url": FACE,
        "audio_url": AUDIO["audio_url"],
        "modified_at": "2026-01-31T12:00:00.000Z",
        "user_data": "order 17",
    }
    begun = talk(job("processing"), None)
    assert (begun.status, begun.started_at) == ("started", "2026-01-31T12:00:01.000Z")
    result = {
        "num_frames": 75,
        "num_faces": 1,
        "processing_fps": 31.4,
        "resolution": [512, 384],
        "size_kib": 210.5,
        "duration": 3.0,
        "fps": 25,
    }
    done = talk(job("done", result=result), "https://example.com/r.mp4").model_dump(exclude_none=True)
    assert (done["status"], done["duration"], done["result_url"]) == ("done", 3.0, "https://example.com/r.mp4")
    assert done["metadata"] == {
        "num_frames": 75,
        "num_faces": 1,
        "processing_fps": 31.4,
        "resolution": (512, 384),
        "size_kib": 210.5,
    }
    assert done["modified_at"] == "2026-01-31T12:00:05.000Z"


def test_a_talk_that_failed_or_was_cancelled() -> None:
    failed = talk(job("failed", error={"kind": "no_face", "message": "No face.", "hint": "Another picture."}), None)
    assert failed.status == "error" and failed.error is not None
    assert failed.error.model_dump() == {
        "kind": "BadRequestError",
        "description": "No face. Another picture.",
        "details": {"kind": "no_face"},
    }
    cancelled = talk(job("cancelled"), None)
    assert cancelled.status == "rejected" and cancelled.error is not None
    assert cancelled.error.details == {"kind": "cancelled"}


@pytest.mark.parametrize(
    ("kind", "status"),
    [("job_not_found", 404), ("no_face", 422), ("triton_unavailable", 503), ("internal", 500), ("who knows", 500)],
)
def test_every_kind_has_its_status(kind: str, status: int) -> None:
    assert did.status_of(kind) == status


@pytest.mark.parametrize(
    ("path", "theirs"),
    [
        ("/talks", True),
        ("/talks/tlk_1", True),
        ("/talks/", True),
        ("/images", True),
        ("/audios", True),
        ("/talk-status/tlk_1", False),
        ("/talkshow", False),
        ("/jobs/talks", False),
        ("/", False),
        ("", False),
    ],
)
def test_which_paths_tell_errors_in_their_form(path: str, theirs: bool) -> None:
    assert did.speaks(path) == theirs
