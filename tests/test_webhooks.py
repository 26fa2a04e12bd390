"""Webhooks against a real HTTP server: signed, tried again, given up, remembered over a restart."""

import asyncio
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for
from receiver import LocalPoster, Receiver, receiving
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.jobs import Job, JobContext, JobService
from gateway.webhooks import ATTEMPTS, Webhooks, own_secret
from gateway.work import Workers
from lipserve.errors import InvalidParameter

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def describe(job: Job) -> dict[str, Any]:
    return {"id": job.id, "state": job.state, "who": "Zoë"}


class Bench:
    """Jobs that end at once, and what tells their end."""

    def __init__(self, folder: Path) -> None:
        self.jobs = JobService(folder, 10, 60)
        self.workers = Workers("bench", 1, 10)
        self.jobs.register("work", self._work, self.workers)
        self.jobs.start()

    def _work(self, context: JobContext) -> dict[str, Any]:
        return {}

    def webhooks(self) -> Webhooks:
        webhooks = Webhooks(LocalPoster(), SECRET, self.jobs, describe, first_wait=0.01)
        self.jobs.on_end(webhooks.tell)
        return webhooks

    def told(self, webhooks: Webhooks, url: str) -> Job:
        """A job, after everything there was to tell has been told."""

        async def story() -> Job:
            webhooks.start()
            job = await asyncio.to_thread(self.jobs.submit, "work", {}, "", webhook=url)
            pending = self.jobs.store.webhooks_pending
            await asyncio.to_thread(wait_for, lambda: self.jobs.get(job.id).ended and not pending(), 20)
            await webhooks.close()
            return self.jobs.get(job.id)

        return asyncio.run(story())

    def close(self) -> None:
        self.jobs.stop()
        self.workers.close()
        self.jobs.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "storage")
    yield bench
    bench.close()


def test_an_end_is_told_once_signed_so_that_others_libraries_agree(
    bench: Bench, receiver: Receiver, tmp_path: Path
) -> None:
    job = bench.told(bench.webhooks(), receiver.url)
    ((headers, body),) = receiver.got
    assert Webhook(SECRET).verify(body, headers) == describe(job) == json.loads(body)
    assert headers["webhook-id"] == job.id
    assert headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"done", b"gone"), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(own_secret(tmp_path)).verify(body, headers)


def test_kinds_may_have_bodies_of_their_own(bench: Bench, receiver: Receiver) -> None:
    webhooks = bench.webhooks()
    webhooks.bodies["work"] = lambda job: {"talk": job.id}
    job = bench.told(webhooks, receiver.url)
    assert json.loads(receiver.got[0][1]) == {"talk": job.id}


def test_it_is_tried_again_under_the_same_id(bench: Bench, receiver: Receiver) -> None:
    receiver.answers = [500, 429, 302]
    bench.told(bench.webhooks(), receiver.url)
    assert len(receiver.got) == 4
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1


@pytest.mark.parametrize(("answers", "tried"), [([500] * 9, ATTEMPTS), ([410], 1)])
def test_it_is_given_up(bench: Bench, receiver: Receiver, answers: list[int], tried: int) -> None:
    receiver.answers = answers
    bench.told(bench.webhooks(), receiver.url)
    assert len(receiver.got) == tried


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/nobody", "http://refused/"])
def test_receivers_that_cannot_be_reached_harm_nobody(bench: Bench, receiver: Receiver, url: str) -> None:
    webhooks = bench.webhooks()
    assert bench.told(webhooks, url).state == "done"
    assert bench.told(webhooks, receiver.url).state == "done"
    assert len(receiver.got) == 1


def test_what_was_not_told_is_told_after_a_restart(tmp_path: Path, receiver: Receiver) -> None:
    first = Bench(tmp_path / "storage")  # nothing here tells it
    job = first.jobs.submit("work", {}, "", webhook=receiver.url)
    cancelled = first.jobs.submit("work", {}, "")
    wait_for(lambda: first.jobs.get(cancelled.id).ended, 20)
    assert first.jobs.store.webhooks_pending() == [job.id]
    first.close()
    second = Bench(tmp_path / "storage")
    later = second.told(second.webhooks(), receiver.url)
    assert sorted(headers["webhook-id"] for headers, _ in receiver.got) == sorted([job.id, later.id])
    second.close()


def test_an_end_while_the_service_stops_stays_to_be_told(bench: Bench, receiver: Receiver) -> None:
    receiver.answers = [500] * 100
    webhooks = Webhooks(LocalPoster(), SECRET, bench.jobs, describe, first_wait=60)
    bench.jobs.on_end(webhooks.tell)

    async def story() -> None:
        webhooks.start()
        await asyncio.to_thread(bench.jobs.submit, "work", {}, "", webhook=receiver.url)
        await asyncio.to_thread(wait_for, lambda: receiver.got, 20)
        await webhooks.close()

    asyncio.run(asyncio.wait_for(story(), 30))
    assert len(bench.jobs.store.webhooks_pending()) == 1


def test_the_secret_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    secret = own_secret(tmp_path)
    assert own_secret(tmp_path) == secret
    assert secret.startswith("whsec_")
    assert stat.S_IMODE((tmp_path / "webhook_secret").stat().st_mode) == 0o600
    Webhook(secret)


@pytest.mark.parametrize("secret", ["whsec_", "", "whsec_ä", "x"])
def test_a_secret_that_is_none_is_refused(bench: Bench, secret: str) -> None:
    with pytest.raises(InvalidParameter, match="WEBHOOK_SECRET"):
        Webhooks(LocalPoster(), secret, bench.jobs, describe)
