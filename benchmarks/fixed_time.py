"""What the whole service makes of a model of a fixed service time, against what perf_analyzer gets from it alone.

    lipserve setup --perf-analyzer
    python benchmarks/fixed_time.py [--clients 1,8] [--transports on,off] [--preset veryfast,ultrafast] [--seconds 120]
    python benchmarks/fixed_time.py --serve     # only that Triton, for load.py, until Ctrl-C

In the ensemble's place is a model with its contract that sleeps 20 ms for a batch of 8 and costs nothing: a GPU that
makes 400 frames per second. The service is a `lipserve up` of its own, asked over HTTP for the bundled avatar. CPU
milliseconds are those of the gateway's process and of Triton's; the rate that the cores allow is their number over that
sum, and less where others use them, which is shown too.
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
from ensemble import measure
from rich.console import Console
from rich.table import Table
from service import ROOT, host_stages, machine, repeated, write_sound

from avatar_prep.prepare import checked_parameters
from export.triton_config import render
from gateway.audio import frame_count, speech
from gateway.engine import Engine
from gateway.features import Padding, Prompts
from gateway.metrics import Metrics
from gateway.triton import Batch, TritonClient
from lipserve.avatar import Avatar
from lipserve.contract import (
    AUDIO_WIDTH,
    FACE_SIZE,
    LIPSYNC,
    N_LAYERS,
    SAMPLE_RATE,
    SEGMENT_STATES,
    VAE_ENCODER,
    WEIGHTS_ID,
    Tensor,
)
from lipserve.embedded import EmbeddedTriton
from lipserve.media import Sound, read_sound
from lipserve.settings import Settings, SharedMemoryMode

TICKS = os.sysconf("SC_CLK_TCK")
Row = dict[str, float | str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milliseconds", type=float, default=20.0, help="service time of a batch")
    parser.add_argument("--batch-size", type=int, default=8, help="that is asked for, 1 to 32")
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--transports", default="on,off", help="values of LIPSERVE_SHARED_MEMORY, each measured")
    parser.add_argument("--preset", default=None, help="values of LIPSERVE_VIDEO_PRESET, each measured")
    parser.add_argument("--video", type=Path, default=ROOT / "demo/lisa.mp4")
    parser.add_argument("--audio", type=Path, default=ROOT / "demo/speech.flac")
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the sound, which is repeated")
    parser.add_argument("--frames", type=int, default=6000, help="to be rendered for one row, at least")
    parser.add_argument("--serve", action="store_true", help="only that Triton, until Ctrl-C")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (serve if args.serve else run)(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    base = Settings()
    presets = args.preset.split(",") if args.preset else [base.video_preset]
    clients = [int(count) for count in args.clients.split(",")]
    settings = base.model_copy(update={"avatars_dir": scratch / "avatars", "work_dir": scratch / "work"})
    sound = repeated(read_sound(args.audio, 3600), args.seconds)
    audio = scratch / "speech.mp4"
    write_sound(audio, sound)
    with fixed_time_triton(settings, scratch / "models", args) as (triton, avatar):
        info = avatar.info
        frames = frame_count(speech(sound).size, info.fps)
        host = {
            p: host_stages(settings.model_copy(update={"video_preset": p}), avatar, sound, scratch) for p in presets
        }
        sent = min(args.batch_size, LIPSYNC.max_batch_size)  # what the service makes of a larger one
        alone = {n: perf_analyzer(settings, triton, sent, n, scratch) for n in clients}
        transports = args.transports.split(",")
        bare = {t: transport(settings, triton, avatar, t, sent, max(clients)) for t in transports}
        rows: list[Row] = []
        for preset in presets:
            for way in transports:
                changes = {"LIPSERVE_SHARED_MEMORY": way, "LIPSERVE_VIDEO_PRESET": preset}
                with service(settings, triton.grpc_url, scratch, changes) as (pid, port):
                    for n in clients:
                        times = max(1, round(args.frames / frames / n))
                        row = ask(port, audio, args.batch_size, n, times, frames, (pid, triton.pid or 0))
                        row |= {"preset": preset, "shared_memory": way, "clients": n}
                        row["ratio"] = row["fps"] / alone[n]  # type: ignore[operator]
                        rows.append(row)
    report(args, f"{info.width}x{info.height}", host, alone, bare, rows)


@contextmanager
def fixed_time_triton(
    settings: Settings, folder: Path, args: argparse.Namespace
) -> Iterator[tuple[EmbeddedTriton, Avatar]]:
    """The embedded Triton with that model in the ensemble's place, and the avatar whose faces it gives."""
    repository = write_repository(settings.model_repository, folder, args.milliseconds / args.batch_size)
    with EmbeddedTriton(repository, settings.models_dir, settings.work_dir) as triton:
        engine = Engine(settings, triton.grpc_url)
        engine.prepare(args.video, "bench", checked_parameters({}))
        avatar = engine.avatars.get("bench")
        np.save(repository / LIPSYNC.name / "1/faces.npy", faces_of(avatar))
        engine.warm_up()
        engine.close()
        yield triton, avatar


def serve(args: argparse.Namespace, scratch: Path) -> None:
    settings = Settings().model_copy(update={"avatars_dir": scratch / "avatars", "work_dir": scratch / "work"})
    with fixed_time_triton(settings, scratch / "models", args) as (triton, _), suppress(KeyboardInterrupt):
        print(f"--triton-url {triton.grpc_url} --triton-pid {triton.pid}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        threading.Event().wait()


def write_repository(models: Path, folder: Path, milliseconds_per_frame: float) -> Path:
    """The fixed-time model under the ensemble's name, and the real VAE encoder, which prepares the avatar."""
    shutil.copytree(models / VAE_ENCODER.name, folder / VAE_ENCODER.name)
    configuration = (models / VAE_ENCODER.name / "config.pbtxt").read_text()
    weights_id = configuration.split(f'"{WEIGHTS_ID}"')[1].split('string_value: "')[1].split('"')[0]
    version = folder / LIPSYNC.name / "1"
    version.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("fixed_time_model.py"), version / "model.py")
    parameters = {WEIGHTS_ID: weights_id, "seconds_per_frame": str(milliseconds_per_frame / 1000)}

    def tensors(of: tuple[Tensor, ...]) -> str:
        return ", ".join(f'{{ name: "{t.name}", data_type: TYPE_{t.triton_dtype}, dims: {list(t.shape)} }}' for t in of)

    (version.parent / "config.pbtxt").write_text(
        render({"name": LIPSYNC.name, "backend": "python", "max_batch_size": LIPSYNC.max_batch_size})
        + f"input [ {tensors(LIPSYNC.inputs)} ]\noutput [ {tensors(LIPSYNC.outputs)} ]\n"
        + "instance_group { kind: KIND_CPU, count: 1 }\n"
        + render({"parameters": [{"key": k, "value": {"string_value": v}} for k, v in parameters.items()]})
    )
    return folder


def faces_of(avatar: Avatar) -> np.ndarray:
    """uint8 (16, 256, 256, 3) BGR: the avatar's own, so that the encoder has what it usually has."""
    faces = []
    for index in np.flatnonzero(avatar.regions["has_face"])[: LIPSYNC.max_batch_size]:
        x1, y1, x2, y2 = avatar.regions[index]["face"]
        picture = cv2.cvtColor(avatar.frames[index], cv2.COLOR_YUV2BGR_I420)
        faces.append(cv2.resize(picture[y1:y2, x1:x2], (FACE_SIZE, FACE_SIZE)))
    return np.resize(np.stack(faces), (LIPSYNC.max_batch_size, FACE_SIZE, FACE_SIZE, 3))


def perf_analyzer(settings: Settings, triton: EmbeddedTriton, batch_size: int, clients: int, scratch: Path) -> float:
    """Frames per second with as many batches in flight as that many requests of the service have."""
    concurrency = clients * settings.batches_in_flight
    row = measure(settings, triton.grpc_url, triton.metrics_url, batch_size, concurrency, 3.0, scratch)
    return row["fps"]


def transport(
    settings: Settings, triton: EmbeddedTriton, avatar: Avatar, mode: SharedMemoryMode, batch_size: int, clients: int
) -> Row:
    """Batches to Triton and back, and nothing else: no sound, no blending, no encoding, no HTTP."""
    metrics, in_flight = Metrics(), settings.batches_in_flight
    client = TritonClient(triton.grpc_url, settings.triton_timeout, metrics, mode, clients * (in_flight + 1))
    indices = list(range(batch_size))
    states = np.ones((SEGMENT_STATES, N_LAYERS, AUDIO_WIDTH), np.float16)
    heard = Prompts(Sound(np.zeros((1, SAMPLE_RATE), np.float32), SAMPLE_RATE), 25, Padding(), lambda _: states)
    pending: deque[Batch] = deque()
    server = family(triton.pid or 0)

    def receive() -> None:
        with pending.popleft() as batch:
            batch.faces().max()  # looked at once, as blending does

    def work(batches: int) -> None:
        for _ in range(batches):
            batch = client.batch(batch_size)
            pending.append(batch)
            heard.batch(0, batch_size, batch.features)
            np.take(avatar.latents, indices, axis=0, out=batch.latents, mode="clip")
            batch.send()
            if len(pending) > in_flight:
                receive()
        while pending:
            receive()

    work(10)
    before, batches = (time.process_time(), cpu_seconds(server)), 100
    work(batches)
    after = time.process_time(), cpu_seconds(server)
    client.close()
    ours, theirs = (1000 * (b - a) / batches / batch_size for a, b in zip(before, after, strict=True))
    return {"gateway_cpu_ms": ours, "triton_cpu_ms": theirs}


@contextmanager
def service(settings: Settings, triton: str, scratch: Path, changes: dict[str, str]) -> Iterator[tuple[int, int]]:
    """A gateway of its own: pid and port."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    own = {
        "LIPSERVE_TRITON_URL": triton,
        "LIPSERVE_AVATARS_DIR": str(settings.avatars_dir),
        "LIPSERVE_WORK_DIR": str(scratch / "gateway"),
        **changes,
    }
    with (scratch / "gateway.log").open("ab") as log:
        command = [sys.executable, "-m", "lipserve", "up", "--port", str(port)]
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log)
    try:
        for _ in range(3000):
            if process.poll() is not None:
                break
            if get(port, "/health/ready") == 200:
                yield process.pid, port
                return
            time.sleep(0.1)
        raise SystemExit(f"the gateway did not start:\n{(scratch / 'gateway.log').read_text()}")
    finally:
        process.terminate()
        process.wait(30)


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def post(port: int, audio: Path, batch_size: int) -> int:
    """One request; the bytes of the video."""
    edge = "edge-of-a-part"
    fields = {"avatar_id": "bench", "batch_size": str(batch_size)}
    parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="audio"; filename="a.mp4"\r\n\r\n')
    body = "".join(parts).encode() + audio.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/lip_sync", body, {"content-type": f"multipart/form-data; boundary={edge}"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {content[:500]!r}")
    return len(content)


def ask(port: int, audio: Path, batch_size: int, clients: int, times: int, frames: int, pids: tuple[int, int]) -> Row:
    """`clients` at once, each `times` times in a row."""
    post(port, audio, batch_size)  # caches, threads and memory are as they will be
    gateway, triton = (family(pid) for pid in pids)
    before = cpu_seconds(gateway), cpu_seconds(triton), busy_seconds()
    start = time.monotonic()

    def client(_: int) -> None:
        for _ in range(times):
            post(port, audio, batch_size)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    wall = time.monotonic() - start
    ours = [b - a for a, b in zip(before, (cpu_seconds(gateway), cpu_seconds(triton), busy_seconds()), strict=True)]
    rendered = frames * clients * times
    return {
        "fps": rendered / wall,
        "gateway_cpu_ms": 1000 * ours[0] / rendered,
        "triton_cpu_ms": 1000 * ours[1] / rendered,
        "cores_used": (ours[0] + ours[1]) / wall,
        "cores_of_others": max(0.0, ours[2] - ours[0] - ours[1]) / wall,
    }


def family(pid: int) -> list[int]:
    """The process and those it has started, now."""
    found = [pid]
    for member in found:
        for task in Path(f"/proc/{member}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of all their threads."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def busy_seconds() -> float:
    """Of all processes on all cores, those of the host that took them away included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def report(
    args: argparse.Namespace,
    size: str,
    host: dict[str, dict[str, tuple[float, float]]],
    alone: dict[int, float],
    bare: dict[str, Row],
    rows: list[Row],
) -> None:
    console, cores = Console(width=140), os.cpu_count() or 1
    table = Table("preset", "stage, alone", "wall ms/frame", "CPU ms/frame", title=f"host, {size}")
    for preset, stages in host.items():
        for name, (wall, cpu) in stages.items():
            table.add_row(preset, name, f"{wall:.2f}", f"{cpu:.2f}")
    console.print(table)
    table = Table(
        "shared memory", "client CPU ms/frame", "Triton CPU ms/frame", title="batches there and back, no more"
    )
    for way, row in bare.items():
        table.add_row(way, *(f"{float(value):.3f}" for value in row.values()))
    console.print(table)
    headers = ("preset", "shared memory", "clients", "fps", "of perf_analyzer", "gateway CPU ms/frame")
    title = (
        f"a model of {args.milliseconds:g} ms per {args.batch_size}: {1000 / args.milliseconds * args.batch_size:g} fps"
    )
    table = Table(*headers, "Triton CPU ms/frame", f"{cores} cores allow", "used by others", title=title)
    for n, fps in alone.items():
        table.add_row("perf_analyzer", "", str(n), f"{fps:.1f}", "1.00")
    for row in rows:
        cpu = float(row["gateway_cpu_ms"]) + float(row["triton_cpu_ms"])
        row["cores_allow_fps"] = 1000 * cores / cpu
        numbers = [f"{float(row[k]):.2f}" for k in ("ratio", "gateway_cpu_ms", "triton_cpu_ms")]
        more = [f"{row['cores_allow_fps']:.0f} fps", f"{row['cores_of_others']:.2f} cores"]
        names = [str(row[k]) for k in ("preset", "shared_memory", "clients")]
        table.add_row(*names, f"{float(row['fps']):.1f}", *numbers, *more)
    console.print(table)
    result = {
        "machine": machine(),
        "size": size,
        "batch_size": args.batch_size,
        "host_ms": {p: {k: [round(x, 3) for x in v] for k, v in stages.items()} for p, stages in host.items()},
        "transport": {way: {k: round(float(v), 4) for k, v in row.items()} for way, row in bare.items()},
        "perf_analyzer_fps": {n: round(fps, 1) for n, fps in alone.items()},
        "rows": [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
    }
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
