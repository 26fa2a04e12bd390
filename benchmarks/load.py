"""The whole service under load, over HTTP: `lipserve up` as the README starts it, many clients at once.

    python benchmarks/load.py [--clients 1,2,4,8,16] [--seconds 4] [--rounds 2] [--requests 200] [--timeline FILE]
    python benchmarks/load.py --hour [--minutes 60] [--triton-url HOST:PORT]

Clients: each sends the same request `--rounds` times, one after another; latencies, frames per second, fairness (the
slowest request over the median), CPU and memory of gateway and Triton. Leaks: `--requests` short requests, with memory,
threads, open files and shared-memory regions of both before and after; 0 leaves it out.

--hour: one request of `--minutes` of sound: the gateway's memory after one minute of video and at its most from then
on, frames per second by tenths of the way, and CPU per frame against a request of ten seconds.

--triton-url: a Triton that runs already, instead of the embedded one. --url: a service that runs already; its processes
are watched if --gateway-pid and --triton-pid name them. The last line is RESULT with JSON.
"""

import argparse
import csv
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table
from service import machine, repeated

from gateway.audio import frame_count, speech
from lipserve.contract import SAMPLE_RATE
from lipserve.media import Sound, read_sound

ROOT = Path(__file__).parent.parent
AVATAR = "load-benchmark"
START_TIMEOUT = 180.0  # seconds
TICKS = os.sysconf("SC_CLK_TCK")
WARM_UP_REQUESTS = 10  # before leaks are looked for: allocators and pools have their size then
SHORT = 1.0  # seconds of sound of a request that leaks are looked for with
SAMPLE_EVERY = 0.5  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,2,4,8,16", help="how many at once, one level after another")
    parser.add_argument("--seconds", type=float, default=4.0, help="of sound in a request")
    parser.add_argument("--rounds", type=int, default=2, help="requests of each client")
    parser.add_argument("--requests", type=int, default=200, help="short ones, to look for leaks")
    parser.add_argument("--hour", action="store_true", help="one long request instead")
    parser.add_argument("--minutes", type=float, default=60.0, help="of sound, with --hour")
    parser.add_argument("--video", type=Path, default=ROOT / "demo/lisa.mp4", help="the avatar")
    parser.add_argument("--triton-url", help="gRPC address of a running Triton")
    parser.add_argument("--url", help="of a running service")
    parser.add_argument("--gateway-pid", type=int)
    parser.add_argument("--triton-pid", type=int, help="also of one that --triton-url names")
    parser.add_argument("--timeline", type=Path, help="writes every sample of CPU and memory as CSV")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the service it has started ends with it
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = stack.enter_context(started(args, scratch))
        stack.enter_context(avatar(service, args.video))
        sampler = stack.enter_context(Sampler(service))
        result: dict[str, object] = {"machine": machine()}
        result |= long_request(service, sampler, args.minutes) if args.hour else load(service, sampler, args)
        if args.timeline:
            sampler.write(args.timeline)
    print("RESULT", json.dumps(result))


# -- the service ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Service:
    url: str
    gateway: int | None  # process ids, where known
    triton: int | None
    http: httpx.Client

    def sync(self, audio: bytes) -> tuple[float, int]:
        """Seconds of one lip-sync request, and the bytes of its video, which are thrown away."""
        start, count = time.monotonic(), 0
        files = {"audio": ("speech.wav", audio)}
        with self.http.stream("POST", "/lip_sync", data={"avatar_id": AVATAR}, files=files) as answer:
            if answer.status_code != 200:
                sys.exit(f"the service answers {answer.status_code}: {answer.read().decode()}")
            for block in answer.iter_bytes():
                count += len(block)
        return time.monotonic() - start, count

    def frames(self) -> float:
        """Rendered since it was started, for anybody."""
        return metric(self.http.get("/metrics").text, "lipserve_frames_rendered_total")


def metric(exposition: str, name: str) -> float:
    return next(float(line.split()[1]) for line in exposition.splitlines() if line.startswith(f"{name} "))


@contextmanager
def started(args: argparse.Namespace, scratch: Path, **settings: object) -> Iterator[Service]:
    """`settings`: of the service, beside those of `args`."""
    limits = httpx.Limits(max_connections=None)
    if args.url:
        with httpx.Client(base_url=args.url, timeout=None, limits=limits) as http:
            yield Service(args.url, args.gateway_pid, args.triton_pid, http)
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own: dict[str, object] = {
        "AVATARS_DIR": scratch / "avatars",
        "WORK_DIR": scratch / "work",
        "STORAGE_DIR": scratch / "storage",
        "MAX_AUDIO_SECONDS": max(900, round(60 * args.minutes) + 10),
    }
    own |= settings
    if args.triton_url:
        own["TRITON_URL"] = args.triton_url
    environment = os.environ | {f"LIPSERVE_{name}": str(value) for name, value in own.items()}
    log = scratch / "service.log"
    command = [sys.executable, "-m", "lipserve", "up", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=None, limits=limits) as http:
            wait_until_ready(http, process, log)
            yield Service(url, process.pid, args.triton_pid or tritonserver(process.pid), http)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_until_ready(http: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if http.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit(f"the service did not start:\n{log.read_text()}")


@contextmanager
def avatar(service: Service, video: Path) -> Iterator[None]:
    with video.open("rb") as handle:
        fields = {"avatar_id": AVATAR, "force": "true"}
        service.http.post("/prepare_avatar", data=fields, files={"video": handle}).raise_for_status()
    try:
        yield
    finally:
        service.http.delete(f"/avatars/{AVATAR}")


def spoken(seconds: float) -> bytes:
    """A WAV of the bundled sentence, over and over: 16 kHz, one channel."""
    sound = repeated(Sound(speech(read_sound(ROOT / "demo/speech.flac", 60))[None], SAMPLE_RATE), seconds)
    with tempfile.TemporaryFile() as file:
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(SAMPLE_RATE)
            out.writeframes((sound.samples[0] * 32767).astype("<i2").tobytes())
        file.seek(0)
        return file.read()


def frames_of(audio: bytes, fps: int = 25) -> int:
    """Video frames for a WAV of `spoken`."""
    return frame_count((len(audio) - 44) // 2, fps)


# -- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """Of a process and everything below it; `regions`: its mapped shared memory in /dev/shm, by name."""

    cpu: float = 0.0  # seconds since it was started
    rss: int = 0  # bytes; what several processes share counts for each
    threads: int = 0
    files: int = 0
    regions: frozenset[str] = frozenset()

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.cpu + other.cpu,
            self.rss + other.rss,
            self.threads + other.threads,
            self.files + other.files,
            self.regions | other.regions,
        )


def usage(pid: int) -> Usage:
    """Of one process; of nothing if it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        pages = int((folder / "statm").read_text().split()[1])
        files = sum(1 for _ in (folder / "fd").iterdir())
        maps = (folder / "maps").read_text().splitlines()
    except OSError:
        return Usage()
    regions = frozenset(line[line.index("/dev/shm/") :] for line in maps if "/dev/shm/" in line)
    cpu = (int(fields[11]) + int(fields[12])) / TICKS
    return Usage(cpu, pages * os.sysconf("SC_PAGE_SIZE"), int(fields[17]), files, regions)


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def tritonserver(gateway: int) -> int | None:
    """The embedded one's process id."""
    for pid in tree(gateway)[1:]:
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "tritonserver":
                return pid
        except OSError:
            continue
    return None


@dataclass
class Sample:
    at: float  # seconds since the sampler began
    gateway: Usage
    triton: Usage


@dataclass
class Sampler:
    """What gateway and Triton use, twice a second while the block lasts."""

    service: Service
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def now(self) -> Sample:
        """The gateway alone, and Triton with its stubs."""
        gateway, triton = self.service.gateway, self.service.triton
        return Sample(
            time.monotonic() - self._began,
            usage(gateway) if gateway else Usage(),
            sum((usage(pid) for pid in tree(triton)), Usage()) if triton else Usage(),
        )

    def since(self, at: float) -> list[Sample]:
        return [sample for sample in self.samples if sample.at >= at]

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY):
            self.samples.append(self.now())

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def write(self, file: Path) -> None:
        with file.open("w", newline="") as handle:
            out = csv.writer(handle)
            out.writerow(["seconds", *(f"{who}_{what}" for who in ("gateway", "triton") for what in ("cpu", "rss_mb"))])
            for s in self.samples:
                row = (s.at, s.gateway.cpu, s.gateway.rss / 1e6, s.triton.cpu, s.triton.rss / 1e6)
                out.writerow(f"{value:.2f}" for value in row)


# -- many clients -----------------------------------------------------------------------------------------------------


def load(service: Service, sampler: Sampler, args: argparse.Namespace) -> dict[str, object]:
    audio = spoken(args.seconds)
    service.sync(audio)
    rows = [level(service, sampler, audio, int(n), args.rounds) for n in args.clients.split(",")]
    work = f"{args.rounds} requests of {args.seconds:g} s per client"
    seen = Table("clients", "fps", "p50 s", "p95 s", "p99 s", "slowest/median", "of clients", title=work)
    used = Table("clients", "gateway cores", "Triton cores", "gateway MB", "Triton MB", title="CPU, and memory at most")
    for row in rows:
        clients, *values = row.values()
        seen.add_row(str(int(clients)), *(f"{value:.2f}" for value in values[:-4]))
        used.add_row(str(int(clients)), *(f"{value:.2f}" for value in values[-4:]))
    Console().print(seen, used)
    result: dict[str, object] = {"seconds": args.seconds, "rounds": args.rounds, "levels": [rounded(r) for r in rows]}
    if args.requests:
        result["leaks"] = leaks(service, sampler, args.requests)
    return result


def level(service: Service, sampler: Sampler, audio: bytes, clients: int, rounds: int) -> dict[str, float]:
    """One row: what `clients` see that all begin at the same moment."""
    begin = threading.Barrier(clients)

    def client(_: int) -> list[float]:
        begin.wait()
        return [service.sync(audio)[0] for _ in range(rounds)]

    before, start = sampler.now(), time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        latencies = list(pool.map(client, range(clients)))
    wall, after = time.monotonic() - start, sampler.now()
    during = [*sampler.since(before.at), after]
    return {
        "clients": clients,
        "fps": clients * rounds * frames_of(audio) / wall,
        **summary([seconds for one in latencies for seconds in one]),
        "slowest_client_over_median": fairness([sum(one) for one in latencies]),
        "gateway_cores": (after.gateway.cpu - before.gateway.cpu) / wall,
        "triton_cores": (after.triton.cpu - before.triton.cpu) / wall,
        "gateway_mb": max(sample.gateway.rss for sample in during) / 1e6,
        "triton_mb": max(sample.triton.rss for sample in during) / 1e6,
    }


def summary(latencies: Sequence[float]) -> dict[str, float]:
    """Of requests of equal work, in seconds."""
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "slowest_over_median": fairness(latencies)}


def fairness(seconds: Sequence[float]) -> float:
    """The slowest over the median: 1 if all are treated alike."""
    return max(seconds) / statistics.median(seconds)


def rounded(row: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in row.items()}


# -- leaks ------------------------------------------------------------------------------------------------------------


def leaks(service: Service, sampler: Sampler, requests: int) -> dict[str, object]:
    """What is left after many requests, by four clients."""
    audio = spoken(SHORT)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: service.sync(audio), range(WARM_UP_REQUESTS)))
        before = settled(sampler)
        list(pool.map(lambda _: service.sync(audio), range(requests)))
        after = settled(sampler)
    table = Table("process", "what", "before", "after", title=f"{requests} requests of {SHORT:g} s")
    result: dict[str, object] = {"requests": requests}
    for who in ("gateway", "triton"):
        for what, scale in (("rss", 1e6), ("threads", 1), ("files", 1)):
            pair = [getattr(getattr(sample, who), what) / scale for sample in (before, after)]
            result[f"{who}_{what}"] = [round(value, 1) for value in pair]
            table.add_row(who, "memory, MB" if what == "rss" else what, *(f"{value:.0f}" for value in pair))
        regions = [len(getattr(sample, who).regions) for sample in (before, after)]
        result[f"{who}_regions"] = regions
        table.add_row(who, "shared-memory regions", *map(str, regions))
    Console().print(table)
    return result


def settled(sampler: Sampler) -> Sample:
    """After kept-alive connections and finished jobs had time to go."""
    time.sleep(6.0)
    return sampler.now()


# -- one long request -------------------------------------------------------------------------------------------------


def long_request(service: Service, sampler: Sampler, minutes: float) -> dict[str, object]:
    short, long = spoken(10.0), spoken(60.0 * minutes)
    service.sync(short)
    short_cost = min(
        (cost_per_frame(service, sampler, short) for _ in range(3)), key=lambda cost: cost["gateway_cpu_ms"]
    )
    progress: list[tuple[float, float]] = []  # (seconds, frames rendered)
    first = service.frames()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(cost_per_frame, service, sampler, long)
        while not job.done():
            progress.append((sampler.now().at, service.frames() - first))
            time.sleep(SAMPLE_EVERY)
        long_cost = job.result()
    after_a_minute = next((at for at, frames in progress if frames >= min(60 * 25, frames_of(long) / 2)), 0.0)
    later = [sample.gateway.rss / 1e6 for sample in sampler.since(after_a_minute)]
    result: dict[str, object] = {
        "minutes": minutes,
        "gateway_mb_after_a_minute": round(later[0], 1),
        "gateway_mb_most": round(max(later), 1),
        "gateway_mb_grown": round(max(later) - later[0], 1),
        "short": rounded(short_cost),
        "long": rounded(long_cost),
        "gateway_cpu_ratio": round(long_cost["gateway_cpu_ms"] / short_cost["gateway_cpu_ms"], 3),
        "fps_by_tenths": [round(rate, 1) for rate in rates(progress, 10)],
    }
    table = Table("what", "10 s", f"{minutes:g} min", title="ms per frame")
    for name in short_cost:
        table.add_row(name, f"{short_cost[name]:.2f}", f"{long_cost[name]:.2f}")
    Console().print(table)
    Console().print(
        f"gateway: {later[0]:.0f} MB after a minute of video, {max(later):.0f} MB at most\n"
        f"frames per second, by tenths: {result['fps_by_tenths']}"
    )
    return result


def cost_per_frame(service: Service, sampler: Sampler, audio: bytes) -> dict[str, float]:
    """Milliseconds: wall, and CPU of both."""
    before, frames = sampler.now(), frames_of(audio)
    seconds, _ = service.sync(audio)
    after = sampler.now()
    return {
        "wall_ms": 1000 * seconds / frames,
        "gateway_cpu_ms": 1000 * (after.gateway.cpu - before.gateway.cpu) / frames,
        "triton_cpu_ms": 1000 * (after.triton.cpu - before.triton.cpu) / frames,
    }


def rates(progress: Sequence[tuple[float, float]], parts: int) -> list[float]:
    """Frames per second in each part of the way from the first frame to the last."""
    moving = [(at, frames) for at, frames in progress if frames > 0]
    if len(moving) < 2:
        return []
    times, frames = np.array(moving).T
    marks = np.interp(np.linspace(frames[0], frames[-1], parts + 1), frames, times)
    return [float(rate) for rate in (frames[-1] - frames[0]) / parts / np.maximum(np.diff(marks), 1e-9)]


if __name__ == "__main__":
    main()
