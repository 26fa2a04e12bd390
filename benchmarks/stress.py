"""Whether the embedded Triton outlives many small requests, from gateways that leave, close and are killed.

    python benchmarks/stress.py                                    # ten starts, 10 000 requests each, both transports
    python benchmarks/stress.py --networks demo --starts 2 --requests 2000
    python benchmarks/stress.py --places 256                       # more at Triton at once than a gateway sends
    python benchmarks/stress.py --cancel 192 --places 256          # what the gateway no longer does: Triton crashes

Each request is one frame for the ensemble, of either priority. They go through the gateway's own client, whose answers
are held to what was asked: the models of no cost give back the mark that the request carries. A share of the requests
is given up unread; the client is closed and made anew meanwhile, and gateways beside it are killed in the middle.
Prints a line per start, then a line RESULT with the same as JSON; ends with 1 if a Triton did not live or answer.
"""

import argparse
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from service import ROOT, machine

from export.triton_config import render
from gateway.metrics import Metrics
from gateway.places import Places
from gateway.shared_memory import FOLDER, PREFIX, remove_stale
from gateway.triton import MAX_OUTSTANDING, Batch, TritonClient
from lipserve.contract import LIPSYNC, UNET, VAE_DECODER, Priority
from lipserve.embedded import EmbeddedTriton
from lipserve.errors import LipserveError, ServiceBusy
from lipserve.settings import Settings, SharedMemoryMode

THREADS = 8
KILLED_OUTSTANDING = 64  # open at once at a gateway that will be killed
TIMEOUT = 60.0  # seconds, of one request
MARKS = 200  # different ones: whole numbers, exact as FP16 and as uint8


@dataclass(frozen=True)
class Load:
    """What one start is asked."""

    requests: int = 10_000
    outstanding: int = 256  # open at once, at Triton or waiting in the gateway
    places: int = MAX_OUTSTANDING  # at Triton at once
    leave: float = 0.1  # share that is given up unread
    cancel: int = 0  # so many calls at a time are cancelled at Triton, as the gateway never does; 0: none
    closings: int = 3  # how often the client is closed and made anew
    kills: int = 3  # gateways beside it that are killed in the middle
    marked: bool = True  # whether the models give the mark back
    seconds: float = 300.0  # for all of it


@dataclass(frozen=True)
class Outcome:
    """What became of one start."""

    transport: str
    answered: int
    busy: int  # refused by Triton's queues
    left: int  # given up unread
    wrong: int  # answered with another request's faces
    failed: int
    ended: str  # how Triton ended, if it did
    regions_left: int
    seconds: float

    def is_good(self, load: Load) -> bool:
        """Whether Triton lived and every request had its own answer, unless nobody wanted one."""
        whole = self.answered + self.busy + self.left == load.requests
        return whole and not (self.ended or self.wrong or self.failed or self.regions_left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--transports", default="on,off", help="values of LIPSERVE_SHARED_MEMORY, each with its starts")
    parser.add_argument("--networks", choices=["none", "demo"], default="none", help="models of no cost, or the demo's")
    parser.add_argument("--batch-milliseconds", type=float, default=0.0, help="that a model of no cost sleeps")
    for name, value in asdict(Load()).items():
        if name != "marked":
            parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--gateway", help=argparse.SUPPRESS)  # host:port: this process is one that will be killed
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in asdict(Load()) if name != "marked"}
    load = Load(**given, marked=args.networks == "none")
    if args.gateway:
        Gateway(args.gateway, args.transports, load).work(load.requests)
        return
    raise SystemExit(run(args, load))


def run(args: argparse.Namespace, load: Load) -> int:
    settings, outcomes = Settings(), []
    with tempfile.TemporaryDirectory() as scratch:
        models = settings.model_repository
        if args.networks == "none":
            models = write_repository(settings.model_repository, Path(scratch, "models"), args.batch_milliseconds)
        for transport in args.transports.split(","):
            for _ in range(args.starts):
                outcome = start(models, settings.models_dir, Path(scratch, "run"), transport, load)
                outcomes.append(outcome)
                print(outcome, flush=True)
    good = sum(outcome.is_good(load) for outcome in outcomes)
    print(f"Triton lived and answered in {good} of {len(outcomes)} starts.")
    result = {
        "machine": machine(),
        "networks": args.networks,
        "load": asdict(load),
        "good": good,
        "rows": [asdict(o) for o in outcomes],
    }
    print("RESULT", json.dumps(result))
    return int(good < len(outcomes))


def write_repository(models: Path, folder: Path, batch_milliseconds: float) -> Path:
    """The real ensemble with its queues, and models of no cost in it."""
    parameter = {"key": "seconds_per_batch", "value": {"string_value": str(batch_milliseconds / 1000)}}
    shutil.copytree(models / LIPSYNC.name, folder / LIPSYNC.name)
    for model in (UNET, VAE_DECODER):
        config = (models / model.name / "config.pbtxt").read_text()
        (folder / model.name / "1").mkdir(parents=True)
        (folder / model.name / "config.pbtxt").write_text(config + render({"parameters": [parameter]}))
        shutil.copyfile(Path(__file__).with_name("stress_model.py"), folder / model.name / "1/model.py")
    return folder


def start(models: Path, files: Path, run_dir: Path, transport: SharedMemoryMode, load: Load) -> Outcome:
    """One Triton, from its start to its end."""
    assert transport in get_args(SharedMemoryMode)
    watch, begun, gateways = Ends(), time.monotonic(), [os.getpid()]
    logging.getLogger("lipserve.embedded").addHandler(watch)
    try:
        with EmbeddedTriton(models, files, run_dir) as triton:
            counts = asked(triton, transport, load, gateways)
    finally:
        logging.getLogger("lipserve.embedded").removeHandler(watch)
    remove_stale()  # as the next gateway does, of those that were killed
    names = ("answered", "busy", "left", "wrong", "failed")
    return Outcome(
        transport,
        **{name: counts[name] for name in names},
        ended="; ".join(watch.ends),
        regions_left=sum(len(list(FOLDER.glob(f"{PREFIX}{pid}-*"))) for pid in gateways),
        seconds=round(time.monotonic() - begun, 1),
    )


def asked(triton: EmbeddedTriton, transport: SharedMemoryMode, load: Load, gateways: list[int]) -> Counter[str]:
    """All requests of one start. The process ids of those that are killed are added to `gateways`."""
    pid, until = triton.pid, time.monotonic() + load.seconds
    counts: Counter[str] = Counter()
    done = threading.Event()
    killer = threading.Thread(target=kill_gateways, args=(triton.grpc_url, transport, load, done, gateways))
    killer.start()
    try:
        parts = 1 + load.closings
        for part in range(parts):
            if triton.pid != pid or time.monotonic() > until:
                break
            requests = load.requests * (part + 1) // parts - load.requests * part // parts
            gateway = Gateway(triton.grpc_url, transport, load)
            counts += gateway.work(requests, lambda: triton.pid == pid and time.monotonic() < until)
            gateway.client.close()
    finally:
        done.set()
        killer.join()
    time.sleep(0.5)  # the supervisor looks ten times a second whether Triton has ended
    return counts


class Ends(logging.Handler):
    """How tritonserver ended each time that nobody had asked it to."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.ends: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.ends.append(record.getMessage())


class Gateway:
    """The gateway's client, and threads that each have their share of the requests open."""

    def __init__(self, url: str, transport: SharedMemoryMode, load: Load) -> None:
        self.load = load
        self.client = TritonClient(url, TIMEOUT, Metrics(), transport, load.outstanding)
        self.client.places = Places(load.places)
        if load.cancel:
            self._cancel_all()

    def _cancel_all(self) -> None:
        """Each time that so many more were sent, all of them that have no answer yet."""
        send, calls = self.client.grpc.async_infer, deque[Any]()

        def async_infer(*given: Any, **more: Any) -> None:
            calls.append(send(*given, **more))
            if len(calls) >= self.load.cancel:
                with suppress(IndexError):
                    while True:
                        calls.popleft().cancel()

        self.client.grpc.async_infer = async_infer

    def work(self, requests: int, goes_on: Callable[[], bool] = lambda: True) -> Counter[str]:
        shares = [requests * (n + 1) // THREADS - requests * n // THREADS for n in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(lambda share: self._thread(share, goes_on), shares), Counter())

    def _thread(self, requests: int, goes_on: Callable[[], bool]) -> Counter[str]:
        counts: Counter[str] = Counter()
        pending: deque[tuple[int, Batch]] = deque()
        for _ in range(requests):
            if not goes_on():
                break
            if len(pending) >= self.load.outstanding // THREADS:
                counts[self._receive(*pending.popleft())] += 1
            mark = random.randrange(MARKS)
            try:
                pending.append((mark, self._sent(mark)))
            except ServiceBusy:
                counts["busy"] += 1
            except LipserveError:
                counts["failed"] += 1
        for mark, batch in pending:
            if goes_on():
                counts[self._receive(mark, batch)] += 1
            else:
                batch.release()
        return counts

    def _sent(self, mark: int) -> Batch:
        batch = self.client.batch(1, random.choice(list(Priority)))
        try:
            batch.features[:], batch.latents[:] = mark, 0
            batch.send()
        except BaseException:
            batch.release()
            raise
        return batch

    def _receive(self, mark: int, batch: Batch) -> str:
        with batch:
            if random.random() < self.load.leave:
                return "left"
            try:
                faces = batch.faces()
            except ServiceBusy:
                return "busy"
            except LipserveError:
                return "failed"
            return "wrong" if self.load.marked and np.any(faces != mark) else "answered"


def kill_gateways(url: str, transport: str, load: Load, done: threading.Event, gateways: list[int]) -> None:
    """One after the other, each in the middle of its requests."""
    options = {"gateway": url, "transports": transport, "outstanding": KILLED_OUTSTANDING, "places": load.places}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in options.items())]
    for _ in range(load.kills):
        process = subprocess.Popen(command, cwd=ROOT)
        gateways.append(process.pid)
        try:
            if done.wait(2.0):  # long enough to be at work
                return
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
