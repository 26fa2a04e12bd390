"""The D-ID mapping: what their clients send, what they are told. No server."""

import json
from datetime import UTC, datetime, timedelta
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
START = datetime(2026, 1, 31, 12, tzinfo=UTC)


def given(script: dict[str, Any] = AUDIO, **more: Any) -> CreateTalk:
    return CreateTalk.model_validate({"source_url": FACE, "script": script, **more})


def test_an_audio_script() -> None:
    order = given(user_data="order 17", name="greeting", config={"pad_audio": "0.5", "fluent": "false"}).order()
    shown = {"user_data": "order 17", "name": "greeting", "config": {"pad_audio": 0.5, "fluent": False}}
    assert order == TalkOrder(source_url=FACE, audio_url=AUDIO["audio_url"], pad_audio=0.5, shown=shown)


def test_a_text_script_as_their_clients_write_it() -> None:
    """Booleans and numbers as strings; nothing as null, "" and {}."""
    provider = {"type": "microsoft", "voice_id": "en-US-JennyNeural", "voice_config": {}}
    script = {"type": "text", "input": "Hi.", "ssml": "true", "subtitles": "false", "provider": provider}
    nothing = {"driver_url": None, "result_url": "", "webhook": "", "name": "", "face": {}, "persist": "false"}
    order = given(script, **nothing, config={"stitch": "true", "pad_audio": "0.0", "result_format": ".mp4"}).order()
    text = TextOrder(text="Hi.", voice="en-US-JennyNeural", ssml=True)
    config = {"stitch": True, "pad_audio": 0.0, "result_format": ".mp4"}
    assert order == TalkOrder(source_url=FACE, text=text, shown={"config": config})


def test_where_the_video_is_sent() -> None:
    order = given(result_url="https://example.com/put?signature=x").order()
    assert order == TalkOrder(
        source_url=FACE, audio_url=AUDIO["audio_url"], result_url="https://example.com/put?signature=x"
    )


PROVIDER = {"type": "elevenlabs", "voice_id": "21m00Tcm4TlvDq8ikWAM"}


@pytest.mark.parametrize(
    ("more", "ignored"),
    [
        ({}, []),
        ({"driver_url": "bank://lively/"}, ["driver_url"]),
        ({"config": {"driver_expressions": {"expressions": [{"start_frame": 0}]}}}, ["config.driver_expressions"]),
        ({"config": {"logo": False, "stitch": True, "sharpen": True}}, []),
        ({"config": {"logo": "false", "stitch": "false"}}, ["config.stitch"]),
        ({"config": {"logo": None}}, []),
        (
            {"script": {"type": "text", "input": "a", "provider": {**PROVIDER, "model_id": "eleven_turbo_v2"}}},
            ["script.provider.model_id"],
        ),
        (
            {"script": {"type": "text", "input": "a", "provider": {**PROVIDER, "voice_config": {"rate": "0.5"}}}},
            ["script.provider.voice_config"],
        ),
        (
            {"script": {**AUDIO, "input": "Hi.", "provider": PROVIDER, "ssml": "true"}},
            ["script.input", "script.provider", "script.ssml"],
        ),
        ({"script": {**AUDIO, "input": "", "provider": None, "ssml": "false"}}, []),
    ],
)
def test_what_changes_nothing_is_taken_and_said(more: dict[str, Any], ignored: list[str]) -> None:
    order = CreateTalk.model_validate({"source_url": FACE, "script": AUDIO, **more}).order()
    assert order.shown.get("ignored", []) == ignored
    shown = talk(job("queued", request=order.model_dump()), None)
    assert shown.ignored == (ignored or None)
    assert shown.config is None or "driver_expressions" not in shown.config


def test_a_voice_that_fell_back_is_said() -> None:
    text = TextOrder(text="Hi.", voice="Joanna", own_voice=True)
    order = TalkOrder(source_url=FACE, text=text, shown={"ignored": ["driver_url"]})
    assert talk(job("queued", request=order.model_dump()), None).ignored == ["driver_url", "script.provider.voice_id"]


def test_a_silence_script() -> None:
    assert given({"type": "silence", "duration": "2.5"}).order() == TalkOrder(source_url=FACE, silence=2.5)


def test_an_order_is_kept_as_json() -> None:
    order = given({"type": "text", "input": "Hi."}, config={"pad_audio": 1}).order()
    assert TalkOrder.model_validate_json(order.model_dump_json()) == order


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"driver_url": "https://example.com/driver.mp4"}, "driver_url"),
        ({"result_url": "x" * 3000}, "result_url"),
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
        ({"config": {"logo": True}}, "config.logo"),
        ({"config": {"logo": "https://example.com/logo.png"}}, "config.logo"),
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
        ({"script": {"type": "text", "input": "a", "provider": {"voice": "x"}}}, "script.text.provider.voice"),
        ({"script": {"type": "silence", "duration": 0}}, "script.silence.duration"),
        ({"script": {"type": "silence", "duration": "inf"}}, "script.silence.duration"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(more: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CreateTalk.model_validate({"source_url": FACE, "script": AUDIO, **more})
    assert ".".join(str(part) for part in refused.value.errors()[0]["loc"]) == named


@pytest.mark.parametrize("within", ["", "script", "config"])
def test_thousands_of_fields_are_one_mistake(within: str) -> None:
    body: dict[str, Any] = {"source_url": FACE, "script": {**AUDIO}, "config": {}}
    (body[within] if within else body).update({f"f{number}": 1 for number in range(100_000)})
    with pytest.raises(ValidationError) as refused:
        CreateTalk.model_validate(body)
    (problem,) = refused.value.errors()
    assert problem["loc"][:1] == ((within,) if within else ())
    assert "fields" in problem["msg"]


def job(state: JobState, **more: Any) -> Job:
    times = [START + timedelta(seconds=s) for s in (0, 1, 5)]
    at: dict[str, Any] = dict(zip(("created_at", "started_at", "completed_at"), times, strict=True))
    if state == "queued":
        at |= {"started_at": None, "completed_at": None}
    if state == "processing":
        at |= {"completed_at": None}
    order = given(user_data="order 17").order().model_dump()
    fields = {"request": order, "result": None, "error": None, "webhook": None, "attempts": 1, **at, **more}
    return Job("tlk_" + "0" * 32, "talk", state, 0.5, "render", owner="shop", **fields)


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


def test_a_talk_shows_its_order_again() -> None:
    order = given({"type": "text", "input": "Hi."}, config={"pad_audio": "0.5"}).order()
    spoken = "https://example.com/said.wav"
    shown = talk(job("processing", request=order.model_dump(), webhook="https://example.com/hook"), None, spoken)
    assert (shown.config, shown.webhook) == ({"pad_audio": 0.5}, "https://example.com/hook")
    assert (shown.audio_url, shown.result_url) == (spoken, None)
    assert talk(job("processing"), None, spoken).audio_url == AUDIO["audio_url"]


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


def test_what_is_wrong_with_a_request_is_told_by_where_it_is() -> None:
    body = {"script": {"type": "text", "input": "", "subtitles": True}, "x" * 5000: 1}
    with pytest.raises(ValidationError) as refused:
        CreateTalk.model_validate(body)
    problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in refused.value.errors()]
    told = did.invalid("invalid_parameter", problems, {"request_id": "d0c5"}).model_dump(mode="json")
    assert (told["kind"], told["description"]) == ("ValidationError", "validation failed")
    details = told["details"]
    assert (details.pop("kind"), details.pop("request_id")) == ("invalid_parameter", "d0c5")
    assert details["body.source_url"] == {"message": "Field required"}
    assert details["body.script.input"] == {"message": "Field required"}
    assert set(details["body.script.subtitles"]) == {"message"}
    assert set(details) == {
        "body.source_url",
        "body.script.input",
        "body.script.subtitles",
        ("body." + "x" * 5000)[:200],
    }
    told = did.invalid("k", [{"loc": ("body", "\ud800"), "msg": "\ud800"}], {})
    assert told.problems == {"body.?": "?"}
    unread = {"loc": ("body", 15), "msg": "JSON decode error"}
    assert set(did.invalid("k", [unread], {}).details) == {"body", "kind"}
    many = [{"loc": ("query", f"p{n}"), "msg": "x" * 1000} for n in range(1000)]
    assert len(json.dumps(did.invalid("k", many, {}).model_dump())) < 10_000


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
