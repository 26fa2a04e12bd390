"""How long a full queue takes to say no, while the work it is full of goes on.

    python benchmarks/refusal.py [--clients 1,8] [--refusals 4000] [--triton-url HOST:PORT]

`lipserve up` as the README starts it, its workers busy with long jobs and its queue full; then every client asks for
one more job, again and again. Beside it the same clients ask for /health/live, which does nothing: what the server,
the client and the busy cores take. Both carry an upload of a second of sound. The last line is RESULT with JSON.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
from load import AVATAR, Service, avatar, machine, rounded, spoken, started, summary
from rich.console import Console
from rich.table import Table

WAITING = 4  # places in the queue
LONG = 600.0  # seconds of sound of the jobs that fill it
SHORT = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,8", help="how many at once, one level after another")
    parser.add_argument("--refusals", type=int, default=4000, help="of all clients together")
    parser.add_argument("--triton-url", help="gRPC address of a running Triton")
    parser.add_argument("--video", type=Path, default=Path(__file__).parent.parent / "demo/lisa.mp4", help="the avatar")
    args = parser.parse_args()
    args.url = args.gateway_pid = args.triton_pid = None
    args.minutes = LONG / 60
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = stack.enter_context(started(args, scratch, MAX_WAITING=WAITING))
        stack.enter_context(avatar(service, args.video))
        fill(service)
        gc.collect()
        gc.freeze()  # this process's own collections are not the service's
        rows = [level(service, int(n), args.refusals) for n in args.clients.split(",")]
        for job in service.http.get("/jobs").json()["jobs"]:
            service.http.delete(f"/jobs/{job['id']}")
    table = Table("clients", "answer", "p50 ms", "p95 ms", "p99 ms", "most ms", "frames rendered meanwhile")
    for row in rows:
        for name in ("refused", "live"):
            table.add_row(str(row["clients"]), name, *(f"{value:.1f}" for value in row[name].values()))  # type: ignore[union-attr]
    Console().print(table)
    print("RESULT", json.dumps({"machine": machine(), "levels": rows}))


def order(service: Service, audio: bytes) -> httpx.Response:
    fields = {"avatar_id": AVATAR, "async": "true"}
    return service.http.post("/lip_sync", data=fields, files={"audio": ("speech.wav", audio)})


def fill(service: Service) -> None:
    """Until the workers have theirs and the queue takes no more."""
    audio = spoken(LONG)
    while (answer := order(service, audio)).status_code == 202:
        time.sleep(0.3)
    require(answer, 429)
    while service.frames() == 0:
        time.sleep(0.1)


def require(answer: httpx.Response, status: int) -> None:
    if answer.status_code != status:
        sys.exit(f"the service answers {answer.status_code}: {answer.text}")


def level(service: Service, clients: int, count: int) -> dict[str, object]:
    audio = spoken(SHORT)

    def refused() -> None:
        require(order(service, audio), 429)

    def live() -> None:
        files = {"audio": ("speech.wav", audio)}
        require(service.http.request("GET", "/health/live", files=files), 200)

    return {
        "clients": clients,
        **{ask.__name__: timed(service, ask, clients, count) for ask in (refused, live)},
    }


def timed(service: Service, ask: Callable[[], None], clients: int, count: int) -> dict[str, float]:
    """Milliseconds of `count` calls, and the frames that were rendered meanwhile."""

    def once(_: int) -> float:
        start = time.monotonic()
        ask()
        return 1000 * (time.monotonic() - start)

    before = service.frames()
    with ThreadPoolExecutor(clients) as pool:
        milliseconds = list(pool.map(once, range(count)))
    found = summary(milliseconds)
    del found["slowest_over_median"]
    return rounded(found | {"most": max(milliseconds), "frames": service.frames() - before})


if __name__ == "__main__":
    main()
