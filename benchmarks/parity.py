"""Parity with MuseTalk's own scripts: their weights, avatar and sound through this service, compared hop by hop.

    python benchmarks/parity.py --reference DIR [--case small] [--clip yongen] [--precision fp16]

DIR is what the reference code read and wrote somewhere:

    weights/                       in MuseTalk's files and folders
    data/audio/CLIP.wav            the sound; data/video/…: the clip that avator_info.json names
    audio/CLIP.npz.xz              wave16k (s,), mel (1, 80, 3000), hidden (t, 5, 384), chunks_fps25 (n, 50, 384)
    CASE/                          the avatar as its script left it, but for full_imgs: those are the clip's frames
    CASE/index.json                sizes; the hash of every frame, so that what is put together here is what was written
    CASE/CLIP.patch.mkv            of every written frame the rectangle that changes, lossless
    CASE/CLIP.internals.npz        of a few frames: unet_in, unet_ctx, unet_out, decoded

The weights are exported and served by the embedded Triton, the avatar is imported, and the engine makes the video, with
the frames taken just before they would be encoded. Prints a table, and RESULT with JSON as the last line; the exit code
is 1 if a bound is broken. Bounds in latents are of the precision in use; frames must be within 2 grey levels
everywhere, plane by plane in the encoder's own 4:2:0.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from export import musetalk, pipeline
from export.bundle import graph_file
from export.gate import LATENT_BOUNDS, LEVEL_BOUNDS
from export.modules import FaceDecoder, sinusoidal_positions
from export.networks import Networks
from export.profiles import FP16, FP32
from export.repository import CPU, SERVED, write_repository
from export.served import ask
from export.verify import FLOAT_BOUND, HALF_ROUNDING, LEVEL_BOUND
from gateway.audio import frame_count, speech
from gateway.engine import Engine, SyncRequest
from gateway.features import Padding, Prompts, log_mel
from gateway.timing import Stopwatch
from gateway.triton import Batch
from lipserve import contract
from lipserve.avatar import Avatar
from lipserve.colour import U8, Planes, bgr_to_i420, planes, planes_to_bgr
from lipserve.embedded import EmbeddedTriton
from lipserve.fetch import FACE_MODELS
from lipserve.media import Samples, Sound, read_sound
from lipserve.settings import Settings

FPS = 25  # of every case
SEGMENT = contract.SEGMENT_SAMPLES
PROMPT_BOUND = 1e-4
FACE_LEVELS = 2.0  # float32 graphs between float16 tensors
FRAME_LEVELS = 2.0
PROFILES = {"v15": "musetalk-v15", "v1": "musetalk-v1"}  # by the version in avator_info.json; v1's script writes none


class ReferenceUnfit(Exception):
    """The reference folder is not what it should be."""


@dataclass(frozen=True)
class Row:
    """One comparison, in the output's own units. `bound`: of the largest error; None: for information."""

    hop: str
    compared: int  # frames, segments of 30 s, states, or 1
    maximum: float
    mean: float
    bound: float | None

    @property
    def passed(self) -> bool:
        return self.bound is None or self.maximum <= self.bound  # not a number is not


@dataclass
class Errors:
    """The largest and the mean error over arrays that come one by one."""

    compared: int = 0
    maximum: float = 0.0
    total: float = 0.0
    elements: int = 0

    def add(self, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        if ours.shape != theirs.shape:
            raise ReferenceUnfit(f"ours has the shape {ours.shape}, the reference {theirs.shape}")
        errors = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        self.compared += 1
        self.maximum = float(np.maximum(self.maximum, errors.max()))  # keeps what is not a number
        self.total += float(errors.sum())
        self.elements += errors.size

    def row(self, hop: str, bound: float | None) -> Row:
        return Row(hop, self.compared, self.maximum, self.total / max(self.elements, 1), bound)


def compare(hop: str, ours: NDArray[Any], theirs: NDArray[Any], bound: float) -> Row:
    """Both of the same first axis: what is compared."""
    errors = Errors()
    errors.add(ours, theirs)
    return replace(errors.row(hop, bound), compared=len(ours))


# -- the reference ----------------------------------------------------------------------------------------------------


class Case:
    """One avatar and one sound of the reference folder."""

    def __init__(self, reference: Path, case: str, clip: str) -> None:
        self.folder, self.clip = reference / case, clip
        self.index = json.loads(self._file(self.folder / "index.json").read_text())
        info = json.loads(self._file(self.folder / "avator_info.json").read_text())
        self.profile = PROFILES[info.get("version", "v1")]
        self.half = "16" in self.index["latent"][0]  # the reference computed in FP16
        self.weights = reference / "weights"
        self.sound = self._file(reference / f"data/audio/{clip}.wav")
        self.video = self._file(reference / info["video_path"])
        self.audio = np.load(io.BytesIO(lzma.decompress(self._file(reference / f"audio/{clip}.npz.xz").read_bytes())))
        self.internals = np.load(self._file(self.folder / f"{clip}.internals.npz"))
        self.frames: list[int] = self.internals["frames"].tolist()
        self.hashes: list[str] = self.index["clips"][clip]["frame_sha256_of_BGR_bytes"]

    @staticmethod
    def _file(path: Path) -> Path:
        if not path.is_file():
            raise ReferenceUnfit(f"{path} is not there")
        return path

    def pictures(self) -> list[U8]:
        """The clip as the reference saw it: uint8 (h, w, 3), BGR, forward only."""
        found = list(decoded(self.video))
        if list(map(sha256, found)) != self.index["full_imgs_sha256_of_BGR_bytes"]:
            raise ReferenceUnfit(f"OpenCV {cv2.__version__} decodes {self.video.name} to other pixels")
        return found

    def written(self, pictures: list[U8]) -> Iterator[U8]:
        """Every frame that the reference wrote, before it was encoded: uint8 (h, w, 3), BGR."""
        left, top, right, bottom = self.index["patch_rect_xyxy"]
        cycle = [*pictures, *reversed(pictures)]
        patches = decoded(self._file(self.folder / f"{self.clip}.patch.mkv"))
        for number, (patch, wanted) in enumerate(zip(patches, self.hashes, strict=True)):
            frame = cycle[number % len(cycle)].copy()
            frame[top:bottom, left:right] = patch
            if sha256(frame) != wanted:
                raise ReferenceUnfit(f"frame {number} of {self.clip} is not what was written")
            yield frame

    def avatar_folder(self, destination: Path, pictures: list[U8]) -> Path:
        """The avatar as its script left it, full_imgs among it."""
        shutil.copytree(self.folder, destination, ignore=shutil.ignore_patterns("*.mkv", "*.mp4", "*.npz"))
        (destination / "full_imgs").mkdir(exist_ok=True)
        for number, picture in enumerate(pictures):
            cv2.imwrite(str(destination / f"full_imgs/{number:08d}.png"), picture)
        return destination


def decoded(file: Path) -> Iterator[U8]:
    """A video's frames by OpenCV, as MuseTalk's scripts read theirs: uint8 (h, w, 3), BGR."""
    video = cv2.VideoCapture(str(file))
    while True:
        more, frame = video.read()
        if not more:
            return
        yield frame  # type: ignore[misc]


def sha256(picture: U8) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


# -- ours -------------------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """In the mp4 writer's place: what would have been encoded, I420, uint8 (h·3/2, w) each."""

    file: Path
    size: tuple[int, int]
    pictures: list[U8] = field(default_factory=list)

    @property
    def frames(self) -> int:
        return len(self.pictures)

    def __post_init__(self) -> None:
        self._next = np.empty((0, 0), np.uint8)

    def picture(self) -> Planes:
        self._next = np.empty((self.size[1] * 3 // 2, self.size[0]), np.uint8)
        return planes(self._next)

    def append(self) -> None:
        self.pictures.append(self._next)

    def finish(self) -> None:
        self.file.touch()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None: ...


class RecordingEngine(Engine):
    """The engine, with its frames, and what it sends to Triton and gets back, kept."""

    def __init__(self, settings: Settings, triton_url: str) -> None:
        super().__init__(settings, triton_url)
        self.features: list[NDArray[np.float16]] = []  # (50, 384) of each frame
        self.latents: list[NDArray[np.float16]] = []  # (8, 32, 32)
        self.faces: list[U8] = []  # (256, 256, 3)
        self.recorder = Recorder(Path(), (0, 0))
        empty = self.triton.batch

        def watched(*given: Any, **named: Any) -> Batch:
            batch = empty(*given, **named)
            send = batch.send

            def keep_and_send(cancelled: Event | None = None) -> None:
                self.features.extend(batch.features.copy())
                self.latents.extend(batch.latents.copy())
                send(cancelled)

            batch.send = keep_and_send  # type: ignore[method-assign]
            return batch

        self.triton.batch = watched  # type: ignore[method-assign]

    def states(self, segment: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states before float16 rounds them."""
        return self._encoder.exact_states(segment)

    def _writer(self, file: Path, avatar: Avatar, fps: int, sound: Samples) -> Any:
        self.recorder = Recorder(file, (avatar.info.width, avatar.info.height))
        return self.recorder

    def _faces(self, *given: Any) -> Generator[tuple[int, U8]]:
        for index, face in super()._faces(*given):
            self.faces.append(face.copy())
            yield index, face


@contextmanager
def served(networks: Networks, precision: str, scratch: Path, console: Console) -> Iterator[RecordingEngine]:
    """An engine in front of the embedded Triton that serves these networks, on the CPU; graphs are written once."""
    base = Settings()
    settings = base.model_copy(
        update={
            "models_dir": scratch / "models",
            "profile": networks.profile,
            "avatars_dir": scratch / "avatars",
            "work_dir": scratch / "work",
        }
    )
    graphs, weights_id = settings.models_dir / networks.profile, networks.weights_id  # FP16 uses the weights up
    if not graph_file(graphs, contract.UNET, precision).is_file():
        pipeline.write_graphs(networks, graphs, lambda words: console.log(words), precision)
    faces = settings.models_dir / FACE_MODELS.folder
    if not faces.exists():
        faces.symlink_to((base.models_dir / FACE_MODELS.folder).resolve())
    files = {model.name: graph_file(graphs, model, precision) for model in SERVED}
    repository = write_repository(scratch / "repository", CPU, files, weights_id)
    with EmbeddedTriton(repository, base.models_dir, settings.work_dir) as triton:
        engine = RecordingEngine(settings, triton.grpc_url)
        try:
            engine.warm_up()
            engine.features.clear(), engine.latents.clear()
            yield engine
        finally:
            engine.close()


def blended_in_bgr(avatar: Avatar, index: int, picture: U8, face: U8) -> U8:
    """The frame with the avatar's box, region and mask, but in BGR as MuseTalk does it: uint8 (h, w, 3)."""
    out = picture.copy()
    record = avatar.regions[index]
    if not record["has_face"]:
        return out
    x1, y1, x2, y2 = (int(v) for v in record["face"])
    left, top, right, bottom = (int(v) for v in record["region"])
    pasted = picture.copy()
    pasted[y1:y2, x1:x2] = cv2.resize(face, (x2 - x1, y2 - y1))
    part = np.s_[top:bottom, left:right]
    mask = avatar.mask(index)[:, :, None].astype(np.uint16)
    mixed = picture[part] * (255 - mask) + pasted[part] * mask + 128
    out[part] = ((mixed >> 8) + mixed) >> 8
    return out


# -- hop by hop -------------------------------------------------------------------------------------------------------


def run(
    reference: Path, case_name: str, clip: str, scratch: Path, precision: str = FP32, console: Console | None = None
) -> tuple[list[Row], dict[str, Any]]:
    """All comparisons, and facts for the result. `scratch`: may have the graphs of an earlier run of these weights."""
    console = console or Console(quiet=True)
    case = Case(reference, case_name, clip)
    pictures = case.pictures()
    networks = musetalk.load(case.weights, case.profile)
    rows = network_rows(case, networks)
    with served(networks, precision, scratch, console) as engine:
        theirs = case.avatar_folder(scratch / f"theirs-{case_name}", pictures)
        info = engine.import_avatar(theirs, case_name, FPS, force=True)
        shutil.rmtree(theirs)
        result = engine.lip_sync(SyncRequest(case_name), case.sound, scratch / "said.mp4", watch=Stopwatch())
        rows = audio_rows(case, engine) + rows + tensor_rows(case, engine, precision)
        rows += frame_rows(case, engine, pictures)
    facts = {
        "case": case_name,
        "clip": clip,
        "profile": case.profile,
        "precision": precision,
        "size": f"{info.width}x{info.height}",
        "frames": result.frames,
        "reference_frames": len(case.hashes),
    }
    return rows, facts


def audio_rows(case: Case, engine: RecordingEngine) -> list[Row]:
    """Sound to prompts, float32."""
    theirs = case.audio
    waveform = speech(read_sound(case.sound, 3600))
    segments = np.split(waveform, range(SEGMENT, waveform.size, SEGMENT))
    mels = [log_mel(segment) for segment in segments]
    states = np.concatenate([engine.states(segment) for segment in segments])
    sound = Sound(waveform[None], contract.SAMPLE_RATE)
    frames = frame_count(waveform.size, FPS)
    windows = np.empty((frames, *contract.AUDIO_FEATURES.shape), np.float32)
    Prompts(sound, FPS, Padding(), engine.states).windows(0, frames, windows)
    return [
        compare("16 kHz waveform", waveform[None], theirs["wave16k"][None], PROMPT_BOUND),
        compare("log-mel", np.stack(mels), theirs["mel"], PROMPT_BOUND),
        compare("hidden states", states[: len(theirs["hidden"])], theirs["hidden"], PROMPT_BOUND),
        compare("prompts", windows, theirs[f"chunks_fps{FPS}"], PROMPT_BOUND),
    ]


def network_rows(case: Case, networks: Networks) -> list[Row]:
    """The networks in torch and float32, each given what the reference's was given."""
    inner = case.internals
    latents, context, wanted = (torch.from_numpy(inner[n]).float() for n in ("unet_in", "unet_ctx", "unet_out"))
    with torch.inference_mode():
        answer = networks.unet(latents, torch.tensor(0), encoder_hidden_states=context).sample
        faces = FaceDecoder(networks.vae)(wanted)
    bounds = (LATENT_BOUNDS.maximum, LEVEL_BOUNDS.maximum) if case.half else (FLOAT_BOUND, LEVEL_BOUND)
    return [
        compare("UNet, their inputs", answer.numpy(), wanted.numpy(), bounds[0]),
        compare("decoder, their latents", faces.numpy(), inner["decoded"], bounds[1]),
    ]


def tensor_rows(case: Case, engine: RecordingEngine, precision: str) -> list[Row]:
    """What the engine sent to Triton and got back. The contract's tensors are float16, so bounds grow by rounding."""
    inner, ours = case.internals, case.frames
    features, latents, faces = (
        np.stack([kept[i] for i in ours]) for kept in (engine.features, engine.latents, engine.faces)
    )
    context = features.astype(np.float32) + sinusoidal_positions(*contract.AUDIO_FEATURES.shape).numpy()
    feeds = {contract.AUDIO_FEATURES.name: features, contract.FACE_LATENTS.name: latents}
    answer = ask(engine.triton.url, contract.UNET, feeds)
    if case.half or precision == FP16:
        latent_bound, level_bound = LATENT_BOUNDS.maximum, LEVEL_BOUNDS.maximum
    else:
        latent_bound, level_bound = FLOAT_BOUND + HALF_ROUNDING * float(np.abs(inner["unet_out"]).max()), FACE_LEVELS
    rounding = [HALF_ROUNDING / 2 * float(np.abs(inner[name]).max()) for name in ("unet_ctx", "unet_in")]
    return [
        compare("context sent", context, inner["unet_ctx"], PROMPT_BOUND + rounding[0]),
        compare("face latents sent", latents, inner["unet_in"], rounding[1]),
        compare("latents from Triton", answer, inner["unet_out"], latent_bound),
        compare("faces from Triton", faces, inner["decoded"], level_bound),
    ]


def frame_rows(case: Case, engine: RecordingEngine, pictures: list[U8]) -> list[Row]:
    """Every frame that the reference wrote, against the same one here, just before encoding."""
    avatar = engine.avatars.get(case.folder.name)
    matrix = avatar.info.tags.matrix
    errors = {name: Errors() for name in ("Y", "U", "V", "blended in BGR", "as BGR", "theirs through 4:2:0")}
    for number, theirs in enumerate(case.written(pictures)):
        ours, index = engine.recorder.pictures[number], avatar.index(number, FPS)
        wanted, _ = bgr_to_i420(theirs)
        for name, a, b in zip("YUV", planes(ours), planes(wanted), strict=True):
            errors[name].add(a, b)
        errors["blended in BGR"].add(blended_in_bgr(avatar, index, pictures[index], engine.faces[number]), theirs)
        errors["as BGR"].add(planes_to_bgr(ours, matrix), theirs)
        errors["theirs through 4:2:0"].add(planes_to_bgr(wanted, matrix), theirs)
    bounded = ("Y", "U", "V", "blended in BGR")
    return [found.row(f"frames, {name}", FRAME_LEVELS if name in bounded else None) for name, found in errors.items()]


# -- words ------------------------------------------------------------------------------------------------------------


def table(rows: list[Row], facts: dict[str, Any]) -> Table:
    made = Table(title=f"{facts['case']}, {facts['clip']}: {facts['profile']}, {facts['precision']}, {facts['size']}")
    for column in ("hop", "compared", "max error", "bound", "mean error", ""):
        made.add_column(column, justify="left" if column in ("hop", "") else "right")
    for row in rows:
        bound, word = (
            ("", "") if row.bound is None else (f"{row.bound:.3g}", "ok" if row.passed else "[red]BROKEN[/red]")
        )
        made.add_row(row.hop, str(row.compared), f"{row.maximum:.3g}", bound, f"{row.mean:.3g}", word)
    return made


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR")
    parser.add_argument("--case", default="small")
    parser.add_argument("--clip", default="yongen")
    parser.add_argument("--precision", choices=(FP32, FP16), default=FP32, help="of UNet and decoder")
    parser.add_argument(
        "--folder", type=Path, help="keeps what is made, graphs are used again; otherwise it is removed"
    )
    args = parser.parse_args(words)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lipserve-parity-") as name:
        try:
            rows, facts = run(args.reference, args.case, args.clip, args.folder or Path(name), args.precision, console)
        except ReferenceUnfit as error:
            sys.exit(f"{args.reference}: {error}.")
    console.print(table(rows, facts))
    passed = all(row.passed for row in rows)
    print("RESULT", json.dumps(facts | {"passed": passed, "hops": {row.hop: asdict(row) for row in rows}}))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
