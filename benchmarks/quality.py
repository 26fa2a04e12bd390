"""Is the demo's mouth right, steady and sharp? The whole service, on words, voices and one person never trained on.

    python benchmarks/quality.py [--avatars lisa,lucy,mark,stranger] [--sentences 8] [--recording interview.wav]

Every avatar says held-out sentences in held-out voices, each at its own speed and pitch, through Triton and H.264; the
meter of lipsync.py reads the finished mp4s. Since all of them are drawn, the true picture of every frame is known:
PSNR around the lips is against it, and the upper face is held against the stored idle frame. The stranger is a person
from a seed that the training does not have. Silence and faint noise follow, and a human recording if one is given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from lipsync import PAUSE_LEVEL, against_loudness, against_truth, common, loudness, measure, upper_face, write_wav
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from avatar_prep.faces import FaceFinder
from avatar_prep.prepare import checked_parameters
from export.portrait.clip import write_clip
from export.portrait.controls import REST_MOUTH
from export.portrait.identity import BUNDLED, Identity
from export.portrait.motion import idle_motion
from export.portrait.portrait import Portrait
from export.speech.coarticulation import mouth_track, mouths, opening
from export.speech.espeak import Speech
from export.speech.voices import HELD_OUT_VARIANTS
from export.training.corpus import utterance
from gateway.audio import speech as as_speech
from gateway.engine import Engine, SyncRequest
from lipserve.colour import planes, planes_to_bgr
from lipserve.contract import SAMPLE_RATE
from lipserve.embedded import EmbeddedTriton
from lipserve.fetch import FACE_MODELS
from lipserve.media import VideoReader, read_sound
from lipserve.settings import Settings

U8 = NDArray[np.uint8]

SIZE, FPS, CLIP_SECONDS = 512, 25, 8.0  # of the bundled clips
STRANGER = 20_270_101  # seed
SEED = 1  # of the held-out sentences: the training's validation has 0
EVERY = 4  # frames between those whose picture is compared
QUIET_SECONDS = 5
TRUE_SENTENCES = 48  # whose true mouths are held against their loudness
FAINT = 10 ** (-60 / 20)  # root mean square of the faint noise, of full scale
FIGURES = ("correlation", "lag", "closure_recall", "silence_shut", "psnr_mouth", "upper_face_change", "psnr_still")


@dataclass(frozen=True)
class Person:
    """Someone whose every frame can be drawn."""

    avatar_id: str
    identity: Identity
    seconds: float = CLIP_SECONDS

    def clip(self, file: Path) -> Path:
        """The idle clip as a video, drawn anew."""
        portrait = Portrait(self.identity, SIZE)
        poses = idle_motion(self.identity.seed, FPS, self.seconds)
        write_clip(file, (portrait.render(pose) for pose in poses), SIZE, FPS)
        return file


def person(avatar_id: str) -> Person:
    """One of the bundled people, or the stranger."""
    if avatar_id == "stranger":
        return Person(avatar_id, Identity.random(np.random.default_rng(STRANGER)), 4.0)
    return Person(avatar_id, BUNDLED[avatar_id])


@dataclass(frozen=True)
class Studio:
    """The service with people in it."""

    engine: Engine
    finder: FaceFinder
    folder: Path

    def prepare(self, who: Person) -> None:
        """Make the avatar of the bundled clip, or of one drawn now."""
        bundled = Path(__file__).parent.parent / "demo" / f"{who.avatar_id}.mp4"
        source = bundled if bundled.is_file() else who.clip(self.folder / f"{who.avatar_id}.mp4")
        self.engine.prepare(source, who.avatar_id, checked_parameters({}), force=True)

    def say(self, who: Person, samples: NDArray[np.float32]) -> Path:
        """The mp4 of 16 kHz samples, float32 (n,)."""
        sound, video = self.folder / "said.wav", self.folder / "said.mp4"
        write_wav(sound, samples)
        self.engine.lip_sync(SyncRequest(who.avatar_id), sound, video)
        return video

    def speech(self, who: Person, speech: Speech) -> dict[str, float]:
        """All figures of one utterance."""
        video = self.say(who, speech.samples)
        seen = measure(video, self.finder)
        scores = {name: float(value) for name, value in (against_truth(seen, speech) | common(seen)).items()}
        return scores | self.pictures(who, video, speech)

    def quiet(self, who: Person, samples: NDArray[np.float32], open_gap: float) -> dict[str, float]:
        """Of a sound that is no speech: the widest gap as a share of `open_gap`, a speaking mouth's, and its unrest."""
        seen = measure(self.say(who, samples), self.finder)
        share = np.maximum(seen.gaps, 0) / open_gap
        return {
            "widest": float(np.nanmax(share)),
            "unrest": float(np.nanstd(share)),
            "flicker_lower_face": float(seen.flicker.mean()),
        }

    def pictures(self, who: Person, video: Path, speech: Speech) -> dict[str, float]:
        """Mouth against the true rendering, upper face against the stored frame."""
        avatar = self.engine.store.open(who.avatar_id)
        portrait, poses = Portrait(who.identity, SIZE), idle_motion(who.identity.seed, FPS, who.seconds)
        spoken = mouths(mouth_track(speech, FPS))
        errors: dict[str, list[float]] = {"mouth": [], "still": [], "upper": []}
        with VideoReader(video, FPS, 3600, 10**8) as reader:
            tags = reader.tags
            for number, frame in enumerate(reader):
                if number % EVERY or number >= len(spoken):
                    continue
                index = avatar.index(number, FPS)
                pose, shown = poses[index], planes_to_bgr(frame, tags.matrix)
                where = lip_rectangle(portrait, pose)
                truth = portrait.render(pose, spoken[number])
                errors["mouth"].append(mean_square(shown[where], truth[where]))
                errors["still"].append(mean_square(portrait.render(pose, REST_MOUTH)[where], truth[where]))
                faces = self.finder.detect(shown)
                mesh = self.finder.mesh(shown, faces[0]) if faces else None
                if mesh is not None:
                    luma = (planes(frame)[0].astype(int), planes(avatar.frame(index))[0].astype(int))
                    errors["upper"].append(float(np.abs(luma[0] - luma[1])[upper_face(mesh, luma[0].shape)].mean()))
        return {
            "psnr_mouth": decibels(errors["mouth"]),
            "psnr_still": decibels(errors["still"]),  # of a mouth that never moves, for comparison
            "upper_face_change": float(np.mean(errors["upper"])),
        }


def lip_rectangle(portrait: Portrait, pose: object) -> tuple[slice, slice]:
    """Rows and columns around the lips in a picture: 1.6 mouth widths wide, 1.2 high."""
    at = portrait.geometry(pose, REST_MOUTH)  # type: ignore[arg-type]
    (left, _), (right, _), (_, lip) = at.left_corner, at.right_corner, at.upper_lip
    width = right - left
    rows = slice(round(lip - 0.4 * width), round(lip + 0.8 * width))
    return rows, slice(round(left - 0.3 * width), round(right + 0.3 * width))


def mean_square(one: U8, other: U8) -> float:
    """Of levels of 255."""
    return float(np.mean(np.square(one.astype(np.float64) - other)))


def decibels(errors: list[float]) -> float:
    """Peak signal to noise ratio of the mean of squared errors."""
    return float(10 * np.log10(255**2 / max(np.mean(errors), 1e-9)))


def sentences(count: int) -> list[tuple[str, str, Speech]]:
    """Text, voice and sound of held-out sentences, every held-out voice once before one comes again."""
    found: list[tuple[str, str, Speech]] = []
    used: list[str] = []
    index = 0
    while len(found) < count:
        text, how, speech = utterance("val", index, SEED)
        variant = how.voice.partition("+")[2]
        if used.count(variant) == len(found) // len(HELD_OUT_VARIANTS):
            used.append(variant)
            found.append((text, f"{how.voice} {how.speed}", speech))
        index += 1
    return found


def quiet_sounds() -> dict[str, NDArray[np.float32]]:
    """Digital silence and faint noise, 16 kHz."""
    count = QUIET_SECONDS * SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(count) * FAINT
    return {"silence": np.zeros(count, np.float32), "faint noise": noise.astype(np.float32)}


def true_mouths(recording: NDArray[np.float32]) -> dict[str, float]:
    """How the true opening of held-out sentences follows their loudness, with as many quiet frames as the recording.

    A mouth opens by the phoneme first and by its loudness second: this is what a perfect one would have of a
    recording. 16 kHz.
    """
    quiet = float((loudness(recording, recording.size * FPS // SAMPLE_RATE, FPS) < PAUSE_LEVEL).mean())
    openings, levels = [], []
    for _, _, speech in sentences(TRUE_SENTENCES):
        shown = opening(mouth_track(speech, FPS))
        count = min(len(shown), speech.samples.size * FPS // SAMPLE_RATE)
        openings.append(shown[:count])
        levels.append(np.clip(loudness(speech.samples, count, FPS) - PAUSE_LEVEL, 0, None))
    level, shown = np.concatenate(levels), np.concatenate(openings)
    pauses = np.zeros(max(0, round((quiet - (level == 0).mean()) * level.size / (1 - quiet))))
    both = np.corrcoef(np.concatenate((level, pauses)), np.concatenate((shown, pauses)))
    return {"envelope_correlation": float(both[0, 1]), "quiet": quiet}


def run(avatars: list[str], count: int, recording: Path | None, console: Console) -> dict[str, object]:
    """Everything, in one service with folders of its own."""
    base = Settings()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = base.model_copy(update={"avatars_dir": folder / "avatars", "work_dir": folder / "work"})
        with EmbeddedTriton(settings.model_repository, settings.models_dir, folder / "triton") as triton:
            engine = Engine(settings, triton.grpc_url)
            try:
                studio = Studio(engine, FaceFinder(settings.models_dir / FACE_MODELS.folder), folder)
                for avatar_id in avatars:
                    results[avatar_id] = of_person(studio, person(avatar_id), count, recording, console)
            finally:
                engine.close()
    if recording is not None:
        results["true mouths"] = true_mouths(as_speech(read_sound(recording, 3600)))
    return results


def of_person(
    studio: Studio, who: Person, count: int, recording: Path | None, console: Console
) -> dict[str, dict[str, float]]:
    """Figures of one person: the mean over the sentences, the worst of each, the quiet sounds, the recording."""
    studio.prepare(who)
    table = Table(title=who.avatar_id)
    for column in ("voice", *FIGURES, "text"):
        table.add_column(column, overflow="fold")
    rows = []
    for text, voice, speech in sentences(count):
        rows.append(studio.speech(who, speech))
        table.add_row(voice, *(f"{rows[-1][name]:.3g}" for name in FIGURES), text)
    console.print(table)
    # What no sentence has, such as pauses, is no figure: JSON has no NaN.
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    found = {"mean": {name: float(np.nanmean(each)) for name, each in columns.items() if not np.isnan(each).all()}}
    found["worst"] = {name: float(np.nanmin(columns[name])) for name in ("correlation", "psnr_mouth")}
    for name, samples in quiet_sounds().items():
        found[name] = studio.quiet(who, samples, found["mean"]["open_gap"])
    if recording is not None:
        samples = as_speech(read_sound(recording, 3600))
        seen = measure(studio.say(who, samples), studio.finder)
        found["recording"] = {name: float(value) for name, value in against_loudness(seen, samples).items()}
    for name, figures in found.items():
        console.print(name, {key: round(value, 3) for key, value in figures.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--avatars", default="lisa,lucy,mark,stranger")
    parser.add_argument("--sentences", type=int, default=len(HELD_OUT_VARIANTS))
    parser.add_argument("--recording", type=Path, help="human speech; its mouth is not known, its loudness is")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    results = run(args.avatars.split(","), args.sentences, args.recording, Console(width=200))
    print("RESULT " + json.dumps(results, default=str, allow_nan=False))


if __name__ == "__main__":
    main()
