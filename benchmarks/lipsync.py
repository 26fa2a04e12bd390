"""Does the mouth say what is heard? Measured on a finished mp4, by landmarks, against speech whose mouth is known.

    python benchmarks/lipsync.py --avatar lisa --text "Papa bought five maps." --voice en-gb --speed 150
    python benchmarks/lipsync.py --avatar lisa --audio interview.wav
    python benchmarks/lipsync.py --video talk.mp4 --text "Papa bought five maps."

The first renders eSpeak's speech through the service (in this process, or the one at --url) and compares; the second
does so with a human voice, whose mouth is not known: the opening is held against the loudness, and pauses must be shut.
The third measures a video that exists, rendered from the same words.

What is measured is the gap between the inner lips, points 13 and 14 of MediaPipe's mesh, over the height of the face
(points 10 to 152), in every decoded frame. The mesh answers a growing gap by growing steps: the power EXPONENT makes it
linear. On frames straight from the renderer this correlates with the drawn gap by 0.96 to 0.985, 0.974 in the mean of
six people and voices: more is not to be had. A closure is a p, b or m in the phonemes, seen if within a frame of it the
gap falls below SHUT of what is usual for an open mouth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.request
import uuid
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from avatar_prep.faces import FaceFinder
from avatar_prep.masks import OUTER_LIPS, OVAL
from avatar_prep.track import follow_largest
from export.speech.coarticulation import closures, frame_times, mouth_track, opening
from export.speech.espeak import Speech, speak
from gateway.audio import speech as as_speech
from lipserve.colour import planes, planes_to_bgr
from lipserve.contract import SAMPLE_RATE
from lipserve.fetch import FACE_MODELS
from lipserve.media import VideoReader, read_sound
from lipserve.settings import Settings

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

UPPER_LIP, LOWER_LIP, FOREHEAD, CHIN = 13, 14, 10, 152  # mesh points
EXPONENT = 0.7
SHUT = 0.30  # of an open mouth's gap: below it lips count as closed
OPEN_PERCENTILE = 90  # of all frames: the gap of an open mouth
WIDE = 0.40  # true opening, share of the widest, from which a mouth must not look shut
MAX_LAG = 5  # frames
PAUSE_LEVEL = -35.0  # dB below the loudest, where speech pauses
SETTLED = 0.20  # seconds after which a pause must be shut and still


@dataclass(frozen=True)
class Measured:
    """What a video shows, per frame. NaN where no face was found.

    gaps: float64 (n,), inner lips' gap over the face's height; flicker: float64 (n − 2,), and upper_flicker: grey
    levels by which skin around the mouth, and the upper face, differ from the mean of the frames before and after
    """

    fps: int
    gaps: F64
    flicker: F64
    upper_flicker: F64

    @property
    def openings(self) -> F64:
        """The gaps, linear in the drawn opening: float64 (n,), no unit."""
        return np.maximum(self.gaps, 0) ** EXPONENT

    @property
    def shut_below(self) -> float:
        """The gap below which lips count as closed."""
        return float(SHUT * np.nanpercentile(self.gaps, OPEN_PERCENTILE))


def measure(video: Path, finder: FaceFinder) -> Measured:
    """Decode a video and look at the face in every frame."""
    fps = round(cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FPS))
    with VideoReader(video, fps, 3600, 10**8) as reader:
        tags = reader.tags
        frames = list(reader)
    faces = follow_largest([finder.detect(planes_to_bgr(frame, tags.matrix)) for frame in frames])
    meshes = [
        None if face is None else finder.mesh(planes_to_bgr(frame, tags.matrix), face)
        for frame, face in zip(frames, faces, strict=True)
    ]
    gaps = np.array([np.nan if mesh is None else _gap(mesh) for mesh in meshes])
    lower, upper = [], []
    for index in range(1, len(frames) - 1):
        mesh = meshes[index]
        if mesh is not None:
            before, now, after = (planes(frames[index + step])[0].astype(np.float64) for step in (-1, 0, 1))
            unrest = np.abs(now - (before + after) / 2)
            lower.append(float(unrest[around_mouth(mesh, now.shape)].mean()))
            upper.append(float(unrest[upper_face(mesh, now.shape)].mean()))
    return Measured(fps, gaps, np.array(lower), np.array(upper))


def _gap(mesh: F64) -> float:
    return float((mesh[LOWER_LIP, 1] - mesh[UPPER_LIP, 1]) / np.linalg.norm(mesh[CHIN] - mesh[FOREHEAD]))


def around_mouth(mesh: F64, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Skin of the lower face without the lips and their surroundings: (h, w)."""
    lips = np.zeros(shape, np.uint8)
    middle = mesh[list(OUTER_LIPS)].mean(axis=0)
    grown = middle + 1.6 * (mesh[list(OUTER_LIPS)] - middle)
    cv2.fillPoly(lips, [np.round(grown).astype(np.int32)], 1)
    return _face(mesh, shape) & (np.arange(shape[0])[:, None] > mesh[2, 1]) & (lips == 0)


def upper_face(mesh: F64, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The face above the nose's tip: (h, w)."""
    return _face(mesh, shape) & (np.arange(shape[0])[:, None] < mesh[4, 1])


def _face(mesh: F64, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    oval = np.zeros(shape, np.uint8)
    cv2.fillPoly(oval, [np.round(mesh[list(OVAL)]).astype(np.int32)], 1)
    return cv2.erode(oval, np.ones((9, 9), np.uint8)) > 0


# -- comparisons ------------------------------------------------------------------------------------------------------


def against_truth(seen: Measured, speech: Speech) -> dict[str, float | int]:
    """Scores of a video against the mouth that eSpeak's phonemes ask for."""
    truth = opening(mouth_track(speech, seen.fps)).astype(np.float64)
    count = min(len(truth), len(seen.gaps))
    truth, shown, gaps = truth[:count], seen.openings[:count], seen.gaps[:count]
    correlation, lag, best = correlations(truth, shown)
    shut = gaps < seen.shut_below
    frames = frame_times(count, seen.fps)
    asked = [close for close in closures(speech) if close[1] < frames[-1]]
    hits = [bool(shut[(frames > start - 1 / seen.fps) & (frames < end + 1 / seen.fps)].any()) for start, end in asked]
    rest = truth == 0
    quiet = rest & _everywhere(rest, round(SETTLED * seen.fps))
    wide = truth > WIDE
    return {
        "frames": len(seen.gaps),
        "expected_frames": len(opening(mouth_track(speech, seen.fps))),
        "correlation": correlation,
        "lag": lag,
        "correlation_at_lag": best,
        "closures": len(asked),
        "closure_recall": float(np.mean(hits)) if hits else float("nan"),
        "open_seen_shut": float(shut[wide].mean()) if wide.any() else float("nan"),
        "silent_frames": int(quiet.sum()),
        "silence_shut": float(shut[quiet].mean()) if quiet.any() else float("nan"),
    }


def against_loudness(seen: Measured, samples: NDArray[np.float32]) -> dict[str, float | int]:
    """Scores of a video against a recording whose mouth is not known. samples: float32 (n,), 16 kHz."""
    count = min(len(seen.gaps), samples.size * seen.fps // SAMPLE_RATE)
    level = loudness(samples, count, seen.fps)
    shown, gaps = seen.openings[:count], seen.gaps[:count]
    envelope = np.clip(level - PAUSE_LEVEL, 0, None)
    correlation, lag, best = correlations(envelope, shown)
    quiet = _everywhere(level < PAUSE_LEVEL, round(SETTLED * seen.fps))
    return {
        "frames": len(seen.gaps),
        "expected_frames": int(samples.size * seen.fps // SAMPLE_RATE),
        "envelope_correlation": correlation,
        "lag": lag,
        "correlation_at_lag": best,
        "silent_frames": int(quiet.sum()),
        "silence_shut": float((gaps < seen.shut_below)[quiet].mean()) if quiet.any() else float("nan"),
    }


def common(seen: Measured) -> dict[str, float | int]:
    """What needs no sound: faces found, steadiness outside the mouth (grey levels, mean over frames)."""
    return {
        "frames_without_face": int(np.isnan(seen.gaps).sum()),
        "open_gap": float(np.nanpercentile(seen.gaps, OPEN_PERCENTILE)),
        "flicker_lower_face": float(seen.flicker.mean()) if seen.flicker.size else float("nan"),
        "flicker_upper_face": float(seen.upper_flicker.mean()) if seen.upper_flicker.size else float("nan"),
    }


def correlations(truth: F64, shown: F64) -> tuple[float, int, float]:
    """Pearson's correlation as it is, the lag in frames that makes it largest (positive: the video is late), that."""

    def at(lag: int) -> float:
        first = truth[max(0, -lag) : len(truth) - max(0, lag)]
        second = shown[max(0, lag) : len(shown) - max(0, -lag)]
        known = ~np.isnan(second)
        if known.sum() < 3 or first[known].std() < 1e-9 or second[known].std() < 1e-9:
            return float("nan")
        return float(np.corrcoef(first[known], second[known])[0, 1])

    found = {lag: at(lag) for lag in range(-MAX_LAG, MAX_LAG + 1) if abs(lag) < len(truth) // 2}
    known = {lag: value for lag, value in found.items() if not np.isnan(value)}
    if not known:
        return float("nan"), 0, float("nan")
    lag = max(known, key=lambda key: (known[key], -abs(key)))
    return found[0], lag, known[lag]


def loudness(samples: NDArray[np.float32], count: int, fps: int) -> F64:
    """dB below the loudest frame, over 80 ms around the middle of each: float64 (count,), −80 … 0."""
    power = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    middles = (frame_times(count, fps) * SAMPLE_RATE).astype(int)
    low, high = np.clip(middles - 640, 0, samples.size), np.clip(middles + 640, 0, samples.size)
    mean = (power[high] - power[low]) / np.maximum(high - low, 1)
    return np.asarray(10 * np.log10(np.maximum(mean / max(mean.max(), 1e-12), 1e-8)))


def _everywhere(flags: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """True where the flag holds for `reach` frames to both sides."""
    padded = np.pad(flags, reach, mode="edge")
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).all(axis=1))


# -- the service ------------------------------------------------------------------------------------------------------

Render = Callable[[Path, Path], None]  # sound file in, mp4 out


@contextmanager
def service(avatar: str, url: str | None) -> Iterator[Render]:
    """Renders through the gateway at `url`, or through the engine and an embedded Triton in this process."""
    if url is not None:
        yield lambda sound, out: _post(url, avatar, sound, out)
        return
    from gateway.engine import Engine, SyncRequest
    from lipserve.embedded import EmbeddedTriton

    settings = Settings()
    with EmbeddedTriton(settings.model_repository, settings.models_dir, settings.work_dir) as triton:
        engine = Engine(settings, triton.grpc_url)
        try:
            engine.warm_up()
            yield lambda sound, out: void(engine.lip_sync(SyncRequest(avatar), sound, out))
        finally:
            engine.close()


def void(_: object) -> None:
    """Drop a result."""


def _post(url: str, avatar: str, sound: Path, out: Path) -> None:
    """POST /lip_sync as a browser's form would."""
    boundary = uuid.uuid4().hex
    name = f'form-data; name="audio"; filename="{sound.name}"'
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="avatar_id"\r\n\r\n{avatar}\r\n--{boundary}\r\n'
    head += f"Content-Disposition: {name}\r\nContent-Type: application/octet-stream\r\n\r\n"
    body = head.encode() + sound.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(f"{url.rstrip('/')}/lip_sync", body, method="POST")
    request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    with urllib.request.urlopen(request) as response:
        out.write_bytes(response.read())


def write_wav(file: Path, samples: NDArray[np.float32]) -> None:
    """float32 (n,), 16 kHz, as 16-bit WAV."""
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes())


# -- command line -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What was asked."""

    avatar: str
    text: str | None
    audio: str | None
    video: str | None
    voice: str
    speed: int
    pitch: int


def run(task: Task, url: str | None, keep: Path | None) -> dict[str, float | int]:
    """Make the video unless there is one, and measure it."""
    finder = FaceFinder(Settings().models_dir / FACE_MODELS.folder)
    speech = speak(task.text, task.voice, task.speed, task.pitch) if task.text else None
    with tempfile.TemporaryDirectory() as scratch:
        sound = Path(task.audio) if task.audio else Path(scratch) / "speech.wav"
        if speech is not None:
            write_wav(sound, speech.samples)
        video = Path(task.video) if task.video else keep or Path(scratch) / "out.mp4"
        numbers: dict[str, float | int] = {}
        if not task.video:
            video.parent.mkdir(parents=True, exist_ok=True)
            with service(task.avatar, url) as render:
                started = time.monotonic()
                render(sound, video)
                numbers["render_seconds"] = time.monotonic() - started
        seen = measure(video, finder)
        if speech is not None:
            numbers |= against_truth(seen, speech)
        elif sound.is_file():
            numbers |= against_loudness(seen, as_speech(read_sound(sound, 3600)))
        return numbers | common(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--avatar", default="lisa", help="id of a prepared avatar")
    parser.add_argument("--text", help="said by eSpeak NG")
    parser.add_argument("--audio", help="a recording, instead of a text")
    parser.add_argument("--video", help="measure this, render nothing")
    parser.add_argument("--voice", default="en-gb", help="a language, with a variant if wanted: de+f3")
    parser.add_argument("--speed", type=int, default=150, help="words a minute")
    parser.add_argument("--pitch", type=int, default=50, help="0 to 100")
    parser.add_argument("--url", help="a running gateway; else one is started in this process")
    parser.add_argument("--keep", type=Path, help="where the video stays")
    args = parser.parse_args()
    if (args.text is None) == (args.audio is None):
        parser.error("give either --text or --audio")
    task = Task(args.avatar, args.text, args.audio, args.video, args.voice, args.speed, args.pitch)
    numbers = run(task, args.url, args.keep)
    table = Table(title=f"lip-sync of {args.video or args.avatar}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
    plain = {name: None if np.isnan(value) else round(value, 4) for name, value in numbers.items()}
    print("RESULT " + json.dumps(asdict(task) | plain, ensure_ascii=False))


if __name__ == "__main__":
    main()
