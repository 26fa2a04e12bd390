"""What the host pays per frame, what the ensemble gives, and what of it arrives in finished videos.

    python benchmarks/service.py [--video FILE] [--audio FILE] [--seconds 20] [--batch-size 8]

Each host stage is run alone (wall and CPU milliseconds per frame, all threads); then the ensemble alone, two batches in
flight, as the bound; then whole requests, one client and four. Everything in one run, on the same avatar and sound.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from avatar_prep.prepare import checked_parameters
from gateway.audio import frame_count, speech
from gateway.blend import blend
from gateway.engine import Engine, SyncRequest, video_encoding
from gateway.features import AudioEncoder, Padding, Prompts
from gateway.triton import Batch
from lipserve.avatar import Avatar
from lipserve.colour import planes
from lipserve.contract import FACES, SAMPLE_RATE
from lipserve.embedded import EmbeddedTriton
from lipserve.media import Mp4Writer, Sound, read_sound
from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent
CLIENTS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=ROOT / "demo/lisa.mp4")
    parser.add_argument("--audio", type=Path, default=ROOT / "demo/speech.flac")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the sound, which is repeated")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    base = Settings()
    settings = base.model_copy(update={"avatars_dir": scratch / "avatars", "work_dir": scratch / "work"})
    sound = repeated(read_sound(args.audio, 3600), args.seconds)
    audio = scratch / "speech.mp4"
    result: dict[str, object] = {"machine": machine(), "batch_size": args.batch_size}
    with EmbeddedTriton(settings.model_repository, settings.models_dir, settings.work_dir) as triton:
        engine = Engine(settings, triton.grpc_url)
        engine.warm_up()
        info = engine.prepare(args.video, "bench", checked_parameters({}))
        avatar = engine.avatars.get("bench")
        write_sound(audio, sound)
        result |= {"size": f"{info.width}x{info.height}", "frames": frame_count(speech(sound).size, info.fps)}
        stages = host_stages(settings, avatar, sound, scratch)
        ensemble = ensemble_fps(engine, avatar, args.batch_size)
        one = service_fps(engine, audio, scratch, args.batch_size, clients=1)
        many = service_fps(engine, audio, scratch, args.batch_size, clients=CLIENTS)
        engine.close()
    report(result, stages, ensemble, one, many, info.fps)


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores"


def repeated(sound: Sound, seconds: float) -> Sound:
    count = round(seconds * sound.rate)
    times = -(-count // sound.samples.shape[1])
    return Sound(np.tile(sound.samples, (1, times))[:, :count], sound.rate)


def write_sound(file: Path, sound: Sound) -> None:
    """An mp4 of a grey square with the sound; its own stream is what requests read."""
    grey = np.full((96, 64), 128, np.uint8)
    with Mp4Writer(file, (64, 64), 1, sound) as video:
        for _ in range(int(np.ceil(sound.seconds))):
            video.write(grey)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of this process, all threads."""
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - cpu


def host_stages(settings: Settings, avatar: Avatar, sound: Sound, scratch: Path) -> dict[str, tuple[float, float]]:
    """Wall and CPU milliseconds per output frame of each host stage, alone, without Triton at work."""
    fps = avatar.info.fps
    waveform = speech(sound)
    frames = frame_count(waveform.size, fps)
    encoder = AudioEncoder(settings.models_dir / settings.profile / "audio_encoder.onnx", settings.audio_threads)
    encoder.warm_up()
    face = np.random.default_rng(0).integers(0, 256, FACES.shape, np.uint8)
    indices = [avatar.index(i, fps) for i in range(frames)]
    pictures = np.empty((min(frames, 100), *avatar.frame(0).shape), np.uint8)
    for picture, index in zip(pictures, indices, strict=False):
        blend(avatar, index, face, planes(picture))

    target = planes(np.empty_like(pictures[0]))

    def features() -> None:
        heard = Prompts(Sound(waveform[None], SAMPLE_RATE), fps, Padding(), encoder.hidden_states)
        for start in range(0, frames, 8):
            heard.batch(start, min(start + 8, frames))

    def blending() -> None:
        for index in indices:
            blend(avatar, index, face, target)

    def encoding() -> None:
        size = (avatar.info.width, avatar.info.height)
        with Mp4Writer(scratch / "encode.mp4", size, fps, sound, avatar.info.tags, video_encoding(settings)) as video:
            for i in range(frames):
                video.write(pictures[i % len(pictures)])

    jobs = {"features": features, "blend": blending, "encode": encoding}
    measured = {}
    for name, work in jobs.items():
        wall, cpu = timed(work)
        measured[name] = (1000 * wall / frames, 1000 * cpu / frames)
    return measured


def ensemble_fps(engine: Engine, avatar: Avatar, batch_size: int, batches: int = 30) -> float:
    pending: deque[Batch] = deque()

    def receive() -> None:
        with pending.popleft() as batch:
            batch.faces()

    def work() -> None:
        for _ in range(batches):
            batch = engine.triton.batch(batch_size)
            batch.features[:] = 0
            avatar.read_latents([0] * batch_size, batch.latents)
            batch.send()
            pending.append(batch)
            if len(pending) == 2:
                receive()
        while pending:
            receive()

    return batch_size * batches / timed(work)[0]


def service_fps(engine: Engine, audio: Path, scratch: Path, batch_size: int, clients: int) -> float:
    request = SyncRequest("bench", batch_size=batch_size)

    def sync(client: int) -> int:
        return engine.lip_sync(request, audio, scratch / f"out{client}.mp4").frames

    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        frames = sum(pool.map(sync, range(clients)))
    return frames / (time.monotonic() - start)


def report(
    result: dict[str, object],
    stages: dict[str, tuple[float, float]],
    ensemble: float,
    one: float,
    many: float,
    fps: int,
) -> None:
    console = Console()
    host = Table("stage", "wall ms/frame", "CPU ms/frame", title=f"host, each stage alone, {result['size']}")
    for name, (wall, cpu) in stages.items():
        host.add_row(name, f"{wall:.2f}", f"{cpu:.2f}")
        result |= {f"{name}_ms": round(wall, 3), f"{name}_cpu_ms": round(cpu, 3)}
    console.print(host)
    rates = Table("what", "fps", "of the ensemble alone", "of real time", title="frames per second")
    for name, rate in (("ensemble", ensemble), ("service_1", one), (f"service_{CLIENTS}", many)):
        rates.add_row(name, f"{rate:.1f}", f"{rate / ensemble:.2f}", f"{rate / fps:.2f}")
        result |= {f"{name}_fps": round(rate, 2), f"{name}_ratio": round(rate / ensemble, 3)}
    console.print(rates)
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
