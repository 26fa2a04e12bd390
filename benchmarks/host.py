"""A frame's way from the generated face to the finished mp4: the reference's against ours, and the encoder alone.

    python benchmarks/host.py [--video FILE | --avatar FOLDER] [--size 704x1216] [--seconds 8] [--repeat 3]
    python benchmarks/host.py --backgrounds

The reference's way is that of MuseTalk's realtime script: Pillow blends the face into the whole BGR picture, OpenCV
writes a PNG per frame, ffmpeg makes H.264 (CRF 18) of them, and a second ffmpeg adds the sound and encodes once more.
Ours is the gateway's own code. Both get the same avatar, the same faces and the same sound; neither decodes the avatar.
The bound is libx264 with our settings on frames that are ready in memory: no blend, no sound, no file. CPU is that of
all threads and child processes. Needs no Triton: faces are seeded noise on the avatar's own; and Debian's `ffmpeg`.

--backgrounds: the encoder alone where only the face moves, where the person does, and where all slides.

Without a video the bundled clip is scaled to cover 704×1216, the size of MuseTalk's own example. The last line is
RESULT with JSON.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from service import machine, repeated

from avatar_prep.boxes import crop_box
from avatar_prep.faces import FaceFinder
from avatar_prep.prepare import checked_parameters, prepare
from avatar_prep.source import Limits
from gateway.blend import blend
from gateway.engine import video_encoding
from lipserve.avatar import Avatar
from lipserve.colour import U8, bgr_to_planes, planes, planes_to_bgr
from lipserve.contract import FACE_LATENTS, FACE_SIZE
from lipserve.fetch import FACE_MODELS
from lipserve.media import Mp4Writer, Sound, VideoEncoding, VideoReader, read_sound
from lipserve.media.encoder import Preset
from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent
THEIR_SIZE = (704, 1216)
THEIR_PRESET: Preset = "medium"  # ffmpeg's default, which the scripts leave as it is
BACKGROUNDS = ("face", "person", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--video", type=Path, help="prepared as an avatar; the bundled lisa if not given")
    source.add_argument("--avatar", type=Path, help="a prepared avatar's folder")
    parser.add_argument("--size", type=size, help="WIDTHxHEIGHT the video is scaled and cut to")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeat", type=int, default=3, help="runs of ours and of the bound in turn; the least counts")
    parser.add_argument("--backgrounds", action="store_true", help="only how the encoder's cost depends on what moves")
    args = parser.parse_args()
    if args.avatar and args.size:
        parser.error("--size scales a video; a prepared avatar is taken as it is")
    if not args.backgrounds and shutil.which("ffmpeg") is None:
        parser.error("the reference's way needs the program ffmpeg: apt-get install ffmpeg")
    with tempfile.TemporaryDirectory() as scratch:
        case = make_case(args, Path(scratch))
        result = {"machine": machine(), "size": f"{case.size[0]}x{case.size[1]}", "frames": len(case.faces)}
        result |= backgrounds(case) if args.backgrounds else compare(case, Path(scratch), args.repeat)
    print("RESULT", json.dumps(result))


def size(text: str) -> tuple[int, int]:
    width, height = (int(part) // 2 * 2 for part in text.split("x"))
    return width, height


# -- the avatar, its faces and the sound ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """`faces`: uint8 (n, 256, 256, 3) BGR, one per output frame; `indices`: the stored frame each belongs to."""

    avatar: Avatar
    faces: U8
    indices: list[int]
    sound: Sound
    encoding: VideoEncoding

    @property
    def size(self) -> tuple[int, int]:
        return self.avatar.info.width, self.avatar.info.height

    @property
    def fps(self) -> int:
        return self.avatar.info.fps

    def pictures(self, indices: Sequence[int] | None = None) -> U8:
        """uint8 (n, h·3/2, w): every frame, blended."""
        out = np.empty((len(self.faces), *self.avatar.frame(0).shape), np.uint8)
        for picture, index, face in zip(out, indices or self.indices, self.faces, strict=True):
            blend(self.avatar, index, face, planes(picture))
        return out


def make_case(args: argparse.Namespace, scratch: Path) -> Case:
    settings = Settings()
    video = args.video or ROOT / "demo/lisa.mp4"
    scaled = args.size or (THEIR_SIZE if args.video is None else None)
    if args.avatar is None and scaled:
        video = cover(video, scaled, scratch / "scaled.mp4")
    avatar = Avatar(args.avatar or prepared(video, scratch, settings.models_dir / FACE_MODELS.folder))
    indices = [avatar.index(i, avatar.info.fps) for i in range(round(args.seconds * avatar.info.fps))]
    sound = repeated(read_sound(ROOT / "demo/speech.flac", 60), args.seconds)
    return Case(avatar, noisy_faces(avatar, indices), indices, sound, video_encoding(settings))


def cover(video: Path, size: tuple[int, int], file: Path) -> Path:
    """The video scaled until it covers the size, and cut to it around its middle."""
    with (
        VideoReader(video, 25, 120, 10**7) as source,
        Mp4Writer(file, size, 25, None, source.tags, VideoEncoding(crf=10)) as out,
    ):
        factor = max(size[0] / source.width, size[1] / source.height)
        for picture in source:
            for target, plane in zip(out.picture(), planes(picture), strict=True):
                large = cv2.resize(plane, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
                top, left = ((a - b) // 2 for a, b in zip(large.shape, target.shape, strict=True))
                np.copyto(target, large[top : top + target.shape[0], left : left + target.shape[1]])
            out.append()
    return file


def prepared(video: Path, scratch: Path, face_models: Path) -> Path:
    """An avatar's folder, as the service makes it but for the latents, which nothing here reads."""
    folder = scratch / "avatar"
    folder.mkdir()

    def encode(crops: U8) -> NDArray[np.float16]:
        return np.zeros((len(crops), *FACE_LATENTS.shape), np.float16)

    limits = Limits(120, 10**8)
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    prepare(video, folder, "host", checked_parameters({}), FaceFinder(face_models), encode, "", limits, nothing)
    return folder


def noisy_faces(avatar: Avatar, indices: Sequence[int]) -> U8:
    """The avatar's own faces with a texture that changes from frame to frame, seeded."""
    rng = np.random.default_rng(0)
    out = np.empty((len(indices), FACE_SIZE, FACE_SIZE, 3), np.uint8)
    for face, index in zip(out, indices, strict=True):
        x1, y1, x2, y2 = avatar.regions[index]["face"]
        picture = planes_to_bgr(avatar.frame(index), avatar.info.tags.matrix)
        own = cv2.resize(picture[y1:y2, x1:x2], (FACE_SIZE, FACE_SIZE)) if x2 > x1 else np.zeros_like(face)
        texture = cv2.GaussianBlur(rng.normal(0, 200, face.shape).astype(np.float32), (0, 0), 5)
        face[:] = np.clip(own + texture, 0, 255)
    return out


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """Seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


def now() -> Cost:
    """CPU of all threads of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(time.monotonic(), time.process_time() + children.ru_utime + children.ru_stime)


@contextmanager
def measured(costs: dict[str, Cost], stage: str) -> Iterator[None]:
    start = now()
    yield
    costs[stage] = costs.get(stage, Cost()) + (now() - start)


def total(costs: dict[str, Cost]) -> Cost:
    return sum(costs.values(), Cost())


# -- the reference's way ----------------------------------------------------------------------------------------------


def reference_way(case: Case, folder: Path, out: Path) -> dict[str, Cost]:
    """What the script holds in memory between requests (the cycle's pictures, boxes, masks) is made unmeasured."""
    cycle = {index: Stored.of(case.avatar, index) for index in set(case.indices)}
    folder.mkdir()
    costs: dict[str, Cost] = {}
    for number, (index, face) in enumerate(zip(case.indices, case.faces, strict=True)):
        with measured(costs, "blend"):
            picture = pillow_blend(cycle[index], face)
        with measured(costs, "png"):
            cv2.imwrite(str(folder / f"{number:08d}.png"), picture)
    wav, silent = folder / "sound.wav", folder / "silent.mp4"
    write_wav(wav, case.sound)
    rate = ["-r", str(case.fps), "-f", "image2"]
    with measured(costs, "encode"):
        h264 = ["-vcodec", "libx264", "-vf", "format=yuv420p", "-crf", "18"]
        ffmpeg(*rate, "-i", folder / "%08d.png", *h264, silent)
    with measured(costs, "mux"):
        ffmpeg("-i", wav, "-i", silent, out)
    return costs


@dataclass(frozen=True)
class Stored:
    """A frame as the reference keeps it: whole picture in BGR, face box, and the mask of a crop box around it."""

    picture: U8
    box: tuple[int, int, int, int]
    crop: tuple[int, int, int, int]
    mask: U8

    @classmethod
    def of(cls, avatar: Avatar, index: int) -> "Stored":
        x1, y1, x2, y2 = (int(v) for v in avatar.regions[index]["face"])
        left, top, right, bottom = (int(v) for v in avatar.regions[index]["region"])
        crop = crop_box((x1, y1, x2, y2))
        mask = np.zeros((crop[3] - crop[1], crop[2] - crop[0]), np.uint8)
        if avatar.regions[index]["has_face"]:
            mask[top - crop[1] : bottom - crop[1], left - crop[0] : right - crop[0]] = avatar.mask(index)
        return cls(planes_to_bgr(avatar.frame(index), avatar.info.tags.matrix), (x1, y1, x2, y2), crop, mask)


def pillow_blend(stored: Stored, face: U8) -> U8:
    """uint8 (h, w, 3) BGR: the face pasted into the crop, the crop through the mask into a copy of the picture."""
    x1, y1, x2, y2 = stored.box
    left, top = stored.crop[:2]
    if x1 == x2:
        return np.array(stored.picture)
    resized = cv2.resize(face, (x2 - x1, y2 - y1))
    whole = Image.fromarray(stored.picture.copy()[:, :, ::-1])
    cut = whole.crop(stored.crop)
    cut.paste(Image.fromarray(resized[:, :, ::-1]), (x1 - left, y1 - top))
    whole.paste(cut, (left, top), Image.fromarray(stored.mask))
    return np.asarray(np.array(whole)[:, :, ::-1], np.uint8)


def ffmpeg(*arguments: str | Path) -> None:
    done = subprocess.run(["ffmpeg", "-y", "-v", "warning", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ffmpeg failed: {done.stderr}")


def write_wav(file: Path, sound: Sound) -> None:
    with wave.open(str(file), "wb") as out:
        out.setnchannels(sound.samples.shape[0])
        out.setsampwidth(2)
        out.setframerate(sound.rate)
        out.writeframes((sound.samples.T * 32767).astype("<i2").tobytes())


# -- ours, and the bound ----------------------------------------------------------------------------------------------


def our_way(case: Case, out: Path, encoding: VideoEncoding) -> dict[str, Cost]:
    """The encoder's threads work while this one blends: the blend is this thread's CPU, the rest is the encoder's."""
    start = now()
    blending = Cost()
    with Mp4Writer(out, case.size, case.fps, case.sound, case.avatar.info.tags, encoding) as video:
        for index, face in zip(case.indices, case.faces, strict=True):
            begun = Cost(time.monotonic(), time.thread_time())
            blend(case.avatar, index, face, video.picture())
            blending += Cost(time.monotonic(), time.thread_time()) - begun
            video.append()
    return {"blend": blending, "encode and mux": now() - start - blending}


def encoder_alone(frames: Sequence[av.VideoFrame], fps: int, encoding: VideoEncoding) -> tuple[Cost, int]:
    """And bytes of video."""
    codec = av.CodecContext.create(encoding.encoder, "w")
    codec.width, codec.height, codec.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
    codec.time_base, codec.framerate = Fraction(1, fps), Fraction(fps)
    encoding.configure(codec)
    count, start = 0, now()
    for number, frame in enumerate(frames):
        frame.pts = number
        count += sum(packet.size for packet in codec.encode(frame))
    count += sum(packet.size for packet in codec.encode(None))
    return now() - start, count


def ready(pictures: U8) -> list[av.VideoFrame]:
    return [av.VideoFrame.from_ndarray(picture, format="yuv420p") for picture in pictures]


# -- the comparison ---------------------------------------------------------------------------------------------------


def compare(case: Case, scratch: Path, repeat: int) -> dict[str, object]:
    theirs, ours = scratch / "theirs.mp4", scratch / "ours.mp4"
    pictures = case.pictures()
    costs = {"reference": reference_way(case, scratch / "png", theirs)}
    slower = VideoEncoding("libx264", THEIR_PRESET, case.encoding.crf, case.encoding.threads)
    same_preset = our_way(case, scratch / "same.mp4", slower)
    frames = ready(pictures)
    runs = [
        (our_way(case, ours, case.encoding), encoder_alone(frames, case.fps, case.encoding)[0]) for _ in range(repeat)
    ]
    costs["ours"] = min((run for run, _ in runs), key=lambda run: total(run).cpu)
    costs["encoder alone"] = {"encode": min((bound for _, bound in runs), key=lambda bound: bound.cpu)}
    costs[f"ours, {THEIR_PRESET}"] = same_preset
    del frames
    seen = {
        "reference": (theirs.stat().st_size, psnr(theirs, pictures)),
        "ours": (ours.stat().st_size, psnr(ours, pictures)),
        f"ours, {THEIR_PRESET}": ((scratch / "same.mp4").stat().st_size, psnr(scratch / "same.mp4", pictures)),
    }
    return report(case, costs, seen, picture_difference(case))


def psnr(file: Path, pictures: U8) -> float:
    """Of the luma, in dB, over all frames."""
    height = pictures.shape[1] * 2 // 3
    squares = []
    with VideoReader(file, 25, 3600, 10**8) as video:
        for shown, picture in zip(islice(video, len(pictures)), pictures, strict=True):
            difference = cv2.absdiff(shown[:height], picture[:height]).astype(np.float32)
            squares.append(float(np.mean(difference**2)))
    return float(10 * np.log10(255**2 / np.mean(squares)))


def picture_difference(case: Case) -> tuple[int, int]:
    """Largest, in grey levels of luma and of chroma, between Pillow's picture and ours within the region, unencoded.

    Theirs clips colours that BGR does not have, and blends chroma before it is halved, ours after: of noisy footage a
    few pixels in ten thousand differ by more than one level."""
    luma, chroma = 0, 0
    target = planes(np.empty_like(case.avatar.frame(0)))
    for index, face in list(zip(case.indices, case.faces, strict=True))[::10]:
        theirs = bgr_to_planes(pillow_blend(Stored.of(case.avatar, index), face), case.avatar.info.tags.matrix)
        blend(case.avatar, index, face, target)
        left, top, right, bottom = case.avatar.regions[index]["region"]
        levels = []
        for ours, other, step in zip(target, theirs, (1, 2, 2), strict=True):
            here = np.s_[top // step : bottom // step, left // step : right // step]
            levels.append(int(cv2.absdiff(ours[here], other[here]).max(initial=0)))
        luma, chroma = max(luma, levels[0]), max(chroma, *levels[1:])
    return luma, chroma


def report(
    case: Case, costs: dict[str, dict[str, Cost]], seen: dict[str, tuple[int, float]], levels: tuple[int, int]
) -> dict[str, object]:
    n = len(case.faces)
    title = f"{case.size[0]}×{case.size[1]}, {n} frames, {case.encoding.encoder} {case.encoding.preset}, ms per frame"
    table = Table("way", "stage", "wall", "CPU", title=title)
    result: dict[str, object] = {}
    for way, stages in costs.items():
        for stage, cost in {**stages, "total": total(stages)}.items():
            table.add_row(way, stage, f"{1000 * cost.wall / n:.2f}", f"{1000 * cost.cpu / n:.2f}")
            result[f"{way}: {stage}"] = [round(1000 * cost.wall / n, 3), round(1000 * cost.cpu / n, 3)]
        table.add_section()
    Console().print(table)
    sums = {way: total(stages) for way, stages in costs.items()}
    ratios = {
        "reference_over_ours_cpu": sums["reference"].cpu / sums["ours"].cpu,
        "reference_over_ours_same_preset_cpu": sums["reference"].cpu / sums[f"ours, {THEIR_PRESET}"].cpu,
        "ours_over_encoder_cpu": sums["ours"].cpu / sums["encoder alone"].cpu,
        "ours_over_encoder_wall": sums["ours"].wall / sums["encoder alone"].wall,
    }
    videos = Table("video", "kB per second", "PSNR of the luma, dB", title="what was written")
    for way, (size_, quality) in seen.items():
        videos.add_row(way, f"{size_ * case.fps / n / 1000:.0f}", f"{quality:.1f}")
        result[f"{way}: bytes, psnr"] = [size_, round(quality, 2)]
    Console().print(videos)
    for name, ratio in ratios.items():
        Console().print(f"{name.replace('_', ' ')}: {ratio:.2f}")
    Console().print("largest difference before encoding: {} levels of luma, {} of chroma".format(*levels))
    return result | {name: round(ratio, 3) for name, ratio in ratios.items()} | {"levels": levels}


# -- what moves -------------------------------------------------------------------------------------------------------


def backgrounds(case: Case) -> dict[str, object]:
    """The encoder alone where only the face moves, where the person does, and where the whole picture slides."""
    table = Table("what moves", "preset", "CPU ms", "bytes", title=f"the encoder alone, per frame, {case.size}")
    result: dict[str, object] = {}
    for what in BACKGROUNDS:
        frames = ready(sliding(case.pictures()) if what == "all" else case.pictures(still(case, what)))
        for preset in ("ultrafast", "superfast", "veryfast", "faster", "medium"):
            encoding = VideoEncoding("libx264", preset, case.encoding.crf, case.encoding.threads)
            cost, count = encoder_alone(frames, case.fps, encoding)
            row = (1000 * cost.cpu / len(frames), count / len(frames))
            table.add_row(what, preset, f"{row[0]:.2f}", f"{row[1]:.0f}")
            result[f"{what}: {preset}"] = [round(row[0], 3), round(row[1])]
    Console().print(table)
    return result


def still(case: Case, what: str) -> list[int]:
    return [case.indices[0]] * len(case.indices) if what == "face" else case.indices


def sliding(pictures: U8) -> U8:
    """As a camera would see it that turns: 4 pixels per frame, around."""
    for number, picture in enumerate(pictures):
        for plane, step in zip(planes(picture), (4, 2, 2), strict=True):
            plane[:] = np.roll(plane, number * step, axis=1)
    return pictures


if __name__ == "__main__":
    main()
