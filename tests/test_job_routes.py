"""Jobs over HTTP, on the real Triton: accepted, followed, fetched, cancelled, listed."""

import json
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from processes import wait_for
from receiver import receiving
from samples import facts, short_clip, tone, write_sound
from standardwebhooks import Webhook

from gateway.webhooks import own_secret
from lipserve.settings import Settings


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound") / "a.wav", tone(0.8), 16000)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many seconds of work."""
    return write_sound(tmp_path_factory.mktemp("sound") / "long.wav", tone(60), 16000)


def submit(client: TestClient, audio: Path, **form: object) -> dict[str, Any]:
    with audio.open("rb") as handle:
        response = client.post(
            "/lip_sync", data={"avatar_id": "lisa", "async": "true", **form}, files={"audio": handle}
        )
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    return job


def ended(client: TestClient, job: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
    def now() -> dict[str, Any]:
        shown: dict[str, Any] = client.get(f"/jobs/{job['id']}").json()
        return shown

    wait_for(lambda: now()["state"] not in ("queued", "processing"), seconds)
    return now()


def test_a_lip_sync_job_makes_the_same_video_as_the_call(
    client: TestClient, lisa: str, sound: Path, tmp_path: Path
) -> None:
    accepted = submit(client, sound, fps=30)
    assert (accepted["state"], accepted["kind"], accepted["progress"]) == ("queued", "lip_sync", 0.0)
    assert (accepted["result"], accepted["result_url"], accepted["error"]) == (None, None, None)
    job = ended(client, accepted)
    assert (job["state"], job["progress"], job["stage"], job["attempts"]) == ("done", 1.0, "render", 1)
    assert job["result"] == {"frames": 24, "fps": 30, "seconds": 0.8}
    assert job["request"]["fps"] == 30
    created, started, completed = (
        datetime.fromisoformat(job[f"{name}_at"]) for name in ("created", "started", "completed")
    )
    assert created.utcoffset() == timedelta(0)
    assert created <= started <= completed
    assert job["result_url"].startswith(f"http://testserver/jobs/{job['id']}/result?expires=")
    answer = client.get(job["result_url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    video = tmp_path / "said.mp4"
    video.write_bytes(answer.content)
    assert (facts(video)["frames"], facts(video)["rate"]) == (24, Fraction(30))
    part = client.get(job["result_url"], headers={"range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, answer.content[4:12])


def test_a_preparation_can_be_a_job(client: TestClient, lisa: str, tmp_path: Path) -> None:
    clip = short_clip(tmp_path / "clip.mp4", 4)
    answer = client.post(
        "/prepare_avatar",
        data={"avatar_id": "by-job"},
        files={"video": clip.open("rb")},
        headers={"prefer": "wait=1, respond-async"},
    )
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    job = ended(client, answer.json())
    assert (job["state"], job["stage"], job["result_url"]) == ("done", "encode", None)
    assert job["result"] == client.get("/avatars/by-job").json()["info"]
    assert job["result"]["source"] == "clip.mp4"
    assert client.get(f"/jobs/{job['id']}/result").json()["kind"] == "job_not_found"
    assert client.delete("/avatars/by-job").status_code == 204


def test_what_the_call_would_refuse_is_no_job(client: TestClient, lisa: str, sound: Path) -> None:
    def refused(**form: str) -> str:
        data = {"avatar_id": lisa, "async": "true", **form}
        response = client.post("/lip_sync", data=data, files={"audio": sound.open("rb")})
        assert response.status_code >= 400
        return str(response.json()["kind"])

    before = client.get("/jobs").json()["jobs"]
    assert refused(avatar_id="nobody") == "avatar_not_found"
    assert refused(fps="0") == refused(speed="2") == refused(audio_path="x.wav") == "invalid_parameter"
    assert refused(webhook="ftp://example.org/") == "url_not_allowed"
    nothing = client.post("/lip_sync", data={"avatar_id": lisa, "async": "true", "audio_path": "../x"})
    assert nothing.json()["kind"] == "path_not_allowed"
    late = client.post("/lip_sync", data={"avatar_id": lisa, "webhook": "http://x/"}, files={"audio": b"x"})
    assert late.json()["kind"] == "invalid_parameter"
    assert client.get("/jobs").json()["jobs"] == before


def test_a_job_whose_sound_is_none_fails_with_its_kind(client: TestClient, lisa: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("not a sound")
    job = ended(client, submit(client, file))
    assert (job["state"], job["error"]["kind"], job["result_url"]) == ("failed", "not_audio", None)
    answer = client.get(f"/jobs/{job['id']}/result")
    assert (answer.status_code, answer.json()["kind"]) == (409, "job_not_done")


def test_a_file_of_the_media_folder_serves_a_job(
    client: TestClient, lisa: str, settings: Settings, sound: Path
) -> None:
    assert settings.media_dir is not None
    (settings.media_dir / "job.wav").write_bytes(sound.read_bytes())
    form = {"avatar_id": lisa, "audio_path": "job.wav", "async": "true"}
    job = ended(client, client.post("/lip_sync", data=form).json())
    assert (job["state"], job["result"]["frames"]) == ("done", 20)


def test_delete_cancels_what_runs_and_removes_what_has_ended(
    client: TestClient, lisa: str, settings: Settings, long: Path
) -> None:
    job = submit(client, long)
    wait_for(lambda: client.get(f"/jobs/{job['id']}").json()["progress"] > 0, 60)
    answer = client.delete(f"/jobs/{job['id']}")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    wait_for(lambda: client.app.state.jobs.counts()["processing"] == 0, 20)  # type: ignore[attr-defined]
    assert client.get(f"/jobs/{job['id']}").json()["state"] == "cancelled"
    assert client.delete(f"/jobs/{job['id']}").status_code == 204
    assert client.get(f"/jobs/{job['id']}").json()["kind"] == "job_not_found"
    assert not (settings.storage_dir / "jobs" / job["id"]).exists()


def test_events_tell_every_change_until_the_end(client: TestClient, lisa: str, sound: Path) -> None:
    job = submit(client, sound)
    seen = []
    with client.stream("GET", f"/jobs/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
    assert seen[-1] == client.get(f"/jobs/{job['id']}").json()
    assert seen[-1]["state"] == "done"
    assert [view["progress"] for view in seen] == sorted(view["progress"] for view in seen)
    assert client.get("/jobs/job_" + "0" * 32 + "/events").status_code == 404


def test_a_jobs_end_is_posted_signed_to_its_webhook(
    client: TestClient, lisa: str, settings: Settings, sound: Path
) -> None:
    with receiving() as receiver:
        job = ended(client, submit(client, sound, webhook=receiver.url))
        wait_for(lambda: receiver.got, 20)
        ((headers, body),) = receiver.got
    told = Webhook(own_secret(settings.storage_dir)).verify(body, headers)
    link = told.pop("result_url")  # below the address in the settings
    assert link.startswith(f"http://127.0.0.1:8080/jobs/{job['id']}/result?expires=")
    assert client.get(link.removeprefix("http://127.0.0.1:8080")).status_code == 200
    job.pop("result_url")
    assert told == job


def test_jobs_are_listed_in_pages(client: TestClient, lisa: str, sound: Path) -> None:
    jobs = [ended(client, submit(client, sound))["id"] for _ in range(3)]
    first = client.get("/jobs", params={"limit": 2, "kind": "lip_sync", "state": "done"}).json()
    assert [job["id"] for job in first["jobs"]] == [jobs[2], jobs[1]]
    second = client.get("/jobs", params={"limit": 1, "before": first["next"]}).json()
    assert [job["id"] for job in second["jobs"]] == [jobs[0]]
    assert client.get("/jobs", params={"kind": "none"}).json() == {"jobs": [], "next": None}
    for wrong in ({"limit": 0}, {"limit": 101}, {"state": "odd"}, {"before": "x"}):
        assert client.get("/jobs", params=wrong).json()["kind"] == "invalid_parameter"
