"""The OpenAPI document: complete, with examples, and kept to by the running gateway whatever is sent."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from processes import wait_for
from samples import pictures, tone, write_sound
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from serving import serving

from gateway.app import create_app
from lipserve.client import Client
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
AWAY = (503, 507)  # documented, and not a defect
EXAMPLES = 25  # of requests, for each endpoint
ENDPOINTS = [
    "POST /prepare_avatar",
    "POST /lip_sync",
    "GET /avatars",
    "GET /avatars/{avatar_id}",
    "GET /avatars/{avatar_id}/preview",
    "GET /jobs",
    "GET /jobs/{job_id}",
    "GET /jobs/{job_id}/events",
    "GET /jobs/{job_id}/result",
    "POST /talks",
    "GET /talks",
    "GET /talks/{talk_id}",
    "GET /talks/{talk_id}/audio",
    "POST /images",
    "POST /audios",
    "POST /generate-video",
    "GET /talk-status/{talk_id}",
    "POST /upload-source-image",
    "POST /upload-audio",
    "GET /health",
    "GET /health/live",
    "GET /health/ready",
    "GET /metrics",
    # last: what they delete, the others name
    "DELETE /avatars/{avatar_id}",
    "DELETE /jobs/{job_id}",
    "DELETE /talks/{talk_id}",
]
METHODS = ("get", "post", "delete")


@pytest.fixture(scope="module")
def app(settings: Settings, triton: EmbeddedTriton, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """A gateway of its own: what strangers' requests leave behind disturbs nobody."""
    root = tmp_path_factory.mktemp("schema")
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = {"avatars_dir": root / "avatars", "work_dir": root / "work", "storage_dir": root / "storage"}
    return create_app(Settings(**given | own), triton.grpc_url)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url, Client(url) as client:
        wait_for(lambda: client.health().status == "healthy", 60)
        yield url
        for job in list(client.jobs(page=100)):
            client.delete_job(job)


@pytest.fixture(scope="module")
def media(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bytes]]:
    """Names and contents of files."""
    folder = tmp_path_factory.mktemp("media")
    sound = write_sound(folder / "a.wav", tone(0.2), 16000)
    assert cv2.imwrite(str(folder / "a.jpg"), cv2.cvtColor(pictures(1)[0], cv2.COLOR_YUV2BGR_I420))
    files = {"clip": clip, "sound": sound, "picture": folder / "a.jpg"}
    return {name: (file.name, file.read_bytes()) for name, file in files.items()}


@pytest.fixture(scope="module")
def known(url: str, clip: Path, media: dict[str, tuple[str, bytes]]) -> dict[str, str]:
    """What there is: by the parameters that name it."""
    with Client(url) as client:
        client.prepare_avatar("lucy", clip)
        audio = client.upload_audio(io.BytesIO(media["sound"][1])).url
        job, talk = (client.create_talk("lipserve://avatars/lucy", text="Hi.").id for _ in range(2))
        assert client.wait(job).state == client.wait(talk).state == "done"
    return {"avatar_id": "lucy", "job_id": job, "talk_id": talk, "audio_url": audio}


def strategy(operation: Any) -> SearchStrategy[schemathesis.Case]:
    """What fits the description; and where something is taken, as often what does not."""
    fitting = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not (operation.path_parameters or operation.query or operation.body):
        return fitting
    return st.one_of(fitting, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))


def name_what_is_there(case: schemathesis.Case, known: dict[str, str]) -> None:
    """Ids at random hardly ever name anything."""
    for part in (case.path_parameters, case.body):
        if isinstance(part, dict):
            part.update({name: known[name] for name in part if name in known})


@pytest.mark.parametrize("name", ENDPOINTS)
def test_the_gateway_keeps_to_its_description(
    app: FastAPI, url: str, known: dict[str, str], media: dict[str, tuple[str, bytes]], name: str
) -> None:
    method, path = name.split()
    operation = schemathesis.openapi.from_dict(app.openapi())[path][method]
    seen: set[int] = set()

    @seed(1)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy(operation), there=st.booleans())
    def send(case: schemathesis.Case, there: bool) -> None:
        if there and method != "DELETE":
            name_what_is_there(case, known)
        response = case.call(base_url=url, timeout=30)
        seen.add(response.status_code)
        checks = CHECKS if response.status_code in AWAY else [*CHECKS, not_a_server_error]
        case.validate_response(response, checks=checks)

    send()
    if method != "GET" and not any(status < 300 for status in seen):  # found at random hardly ever
        request = httpx.Request(method, url + path.format(**known), **good(name, known, media))
        request.read()
        with httpx.Client(timeout=60) as client:
            answer = client.send(request)
        seen.add(answer.status_code)
        named = {part.name: known[part.name] for part in operation.path_parameters}
        operation.Case(path_parameters=named).validate_response(answer, checks=CHECKS)
    assert any(status < 300 for status in seen), seen


def good(name: str, known: dict[str, str], media: dict[str, tuple[str, bytes]]) -> dict[str, Any]:
    """What httpx sends so that an endpoint succeeds."""
    lucy, audio = "lipserve://avatars/lucy", {"audio_url": known["audio_url"]}
    bodies: dict[str, dict[str, Any]] = {
        "POST /prepare_avatar": {"data": {"avatar_id": "mark"}, "files": {"video": media["clip"]}},
        "POST /lip_sync": {"data": {"avatar_id": "lucy"}, "files": {"audio": media["sound"]}},
        "POST /talks": {"json": {"source_url": lucy, "script": {"type": "audio", **audio}}},
        "POST /images": {"files": {"image": media["picture"]}},
        "POST /audios": {"files": {"audio": media["sound"]}},
        "POST /generate-video": {"data": {"source_url": lucy, **audio}},
        "POST /upload-source-image": {"files": {"file": media["clip"]}},
        "POST /upload-audio": {"files": {"file": media["sound"]}},
    }
    return bodies.get(name, {})


def operations(app: FastAPI) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in app.openapi()["paths"].items():
        for method in METHODS:
            if method in item:
                yield f"{method.upper()} {path}", item[method]


def resolved(app: FastAPI, schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = app.openapi()["components"]["schemas"][name] if name else schema
    return found


def has_example(app: FastAPI, content: dict[str, Any]) -> bool:
    schema = resolved(app, content.get("schema", {}))
    return "example" in content or "examples" in content or bool(schema.get("examples"))


def test_every_endpoint_is_described_with_examples_and_errors(app: FastAPI) -> None:
    assert sorted(name for name, _ in operations(app)) == sorted(ENDPOINTS)
    for name, operation in operations(app):
        assert operation.get("summary") and operation.get("description"), name
        for parameter in operation.get("parameters", []):
            told = parameter["schema"]
            assert parameter.get("description") or told.get("examples") or not parameter["required"], (name, parameter)
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            if media_type == "application/json":
                assert has_example(app, content), name
                continue
            fields = resolved(app, content["schema"])["properties"]
            assert any("examples" in field for field in fields.values()) or all(
                "contentMediaType" in field for field in fields.values()
            ), name
        for status, response in operation["responses"].items():
            assert response["description"], (name, status)
            assert status == "204" or response["content"], (name, status)
            for content in response.get("content", {}).values():
                assert has_example(app, content), (name, status)
        if name not in ("GET /health", "GET /health/live", "GET /health/ready", "GET /metrics"):
            assert {"401", "429", "500", "503"} <= operation["responses"].keys(), name
        if "requestBody" in operation:
            assert {"400", "408", "413", "507"} <= operation["responses"].keys(), name
    assert "HTTPValidationError" not in json.dumps(app.openapi())


def test_examples_are_examples_of_what_they_stand_by(app: FastAPI) -> None:
    from lipserve import api, talk_api

    checked = 0
    for module in (api, talk_api):
        for model in vars(module).values():
            extra = getattr(model, "model_config", {}).get("json_schema_extra")
            for example in extra["examples"] if extra else ():
                assert set(model.model_validate(example).model_dump(mode="json")) >= set(example), model
                checked += 1
    assert checked >= 15
    api.AvatarInfo.model_validate(api.AVATAR_INFO)


HUGE = "9" * 5000
TALK = '{"source_url": "lipserve://avatars/lucy", "script": %s}'
FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "body"),
    [
        ("GET", "/avatars/%00", {}, ""),
        ("GET", "/avatars/%FF%FE", {}, ""),
        ("GET", "/avatars/%ED%A0%80/preview", {}, ""),
        ("GET", "/jobs/job_%00", {}, ""),
        ("GET", "/talks/%ED%A0%80", {}, ""),
        ("GET", "/jobs?kind=%00%ED%A0%80", {}, ""),
        ("GET", "/jobs?before=%00", {}, ""),
        ("GET", f"/jobs?limit={HUGE}", {}, ""),
        ("GET", f"/talks?limit={HUGE}", {}, ""),
        ("GET", "/talks?token=%ED%A0%80", {}, ""),
        ("GET", "/jobs/job_0/result?expires=%FF&signature=%00", {}, ""),
        ("POST", "/lip_sync", FORM, "avatar_id=%ED%A0%80&audio_path=%00"),
        ("POST", "/lip_sync", FORM, f"avatar_id=lucy&audio_path=a&fps={HUGE}"),
        ("POST", "/lip_sync", FORM, f"avatar_id=lucy&audio_path=a&batch_size=-{HUGE}"),
        ("POST", "/lip_sync", FORM, f"avatar_id=lucy&audio_path={HUGE}&async=true"),
        ("POST", "/lip_sync", FORM, "avatar_id=lucy&audio_path=a&async=true&webhook=http://%ED%A0%80/"),
        ("POST", "/prepare_avatar", FORM, f"avatar_id=x&video_path=%00&bbox_shift={HUGE}"),
        ("POST", "/prepare_avatar", {"content-type": "multipart/form-data"}, "--x"),
        ("POST", "/images", {"content-type": "multipart/form-data; boundary=x"}, "--x\r\n\r\n\r\n--x--"),
        ("POST", "/generate-video", FORM, "source_url=%00&audio_url=%ED%A0%80"),
        ("POST", "/talks", JSON, "[" * 100_000),
        ("POST", "/talks", JSON, TALK % '{"type": "text", "input": "\\ud800"}'),
        ("POST", "/talks", JSON, TALK % '{"type": "text", "input": "\\u0000"}'),
        ("POST", "/talks", JSON, TALK % '{"type": "silence", "duration": 1e999}'),
        ("POST", "/talks", JSON, TALK % f'{{"type": "silence", "duration": {HUGE}}}'),
        ("POST", "/talks", JSON, TALK % '{"type": "silence", "duration": NaN}'),
        ("POST", "/talks", JSON, '{"source_url": "http://\\ud800/", "script": {"type": "silence", "duration": 1}}'),
        ("POST", "/talks", JSON, "\udcff\udcfe"),
    ],
)
def test_odd_input_is_the_callers_mistake(
    url: str, known: dict[str, str], method: str, path: str, headers: dict[str, str], body: str
) -> None:
    content = body.encode(errors="surrogateescape")
    answer = httpx.request(method, url + path, headers=headers, content=content, timeout=30)
    assert (200 if method == "GET" else 400) <= answer.status_code < 500, answer.text
    assert "kind" in answer.json() or (method == "GET" and answer.status_code == 200)
