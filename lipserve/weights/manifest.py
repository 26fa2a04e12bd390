"""Every weight file that serving MuseTalk needs or can use: where it comes from, where it lies, under which licence.

The places below the models folder are those of MuseTalk's own `download_weights.sh`, so a folder filled by it works as
it is. A size or checksum that could not be established is None: then it is not checked. Revisions are pinned, so a
file that its authors replace is noticed rather than taken.

A Python module and not a data file: the entries are checked by the type checker and by `__post_init__`, they share
licences and sources by name, and nobody but this project edits them.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["json", "safetensors", "torch", "onnx"]


@dataclass(frozen=True)
class Licence:
    """`restriction`: what stands against commercial use of the weights; empty if nothing does."""

    name: str
    restriction: str = ""


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository, at a pinned revision."""

    repo: str
    file: str
    revision: str

    @property
    def origin(self) -> str:
        return f"Hugging Face, {self.repo}"

    def __str__(self) -> str:
        return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{self.file}"


@dataclass(frozen=True)
class WebFile:
    """A file at an https address."""

    url: str

    def __post_init__(self) -> None:
        if not self.url.startswith("https://"):
            raise ValueError(f"{self.url} is not https")

    @property
    def origin(self) -> str:
        return urlsplit(self.url).netloc

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class WeightFile:
    """One file. `place`: below the models folder; `size` in bytes; `sha256` of the whole file, lower case."""

    place: str
    kind: Kind
    source: HubFile | WebFile
    size: int | None
    sha256: str | None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.place)
        if path.is_absolute() or ".." in path.parts or len(path.parts) != 2:
            raise ValueError(f"{self.place} is not a folder and a file")
        if self.sha256 is not None and (len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef")):
            raise ValueError(f"the sha256 of {self.place} is none")


@dataclass(frozen=True)
class Part:
    """What a model cannot do without: any one of `files` will do. The first is the one that is fetched."""

    files: tuple[WeightFile, ...]


@dataclass(frozen=True)
class Model:
    """Weights that belong together. `extras`: read by MuseTalk's own scripts only, never by this project."""

    name: str
    purpose: str
    licence: Licence
    parts: tuple[Part, ...]
    extras: tuple[WeightFile, ...] = ()

    @cached_property
    def files(self) -> tuple[WeightFile, ...]:
        return tuple(file for part in self.parts for file in part.files) + self.extras


@dataclass(frozen=True)
class Profile:
    """What one way of serving is made of."""

    name: str
    required: tuple[Model, ...]
    optional: tuple[Model, ...]


MUSETALK_REPO = "TMElyralab/MuseTalk"
MUSETALK_REVISION = "2bcb936e2fddb4d86db4c62fd45b387d0c061571"
VAE_REPO = "stabilityai/sd-vae-ft-mse"
VAE_REVISION = "31f26fdeee1355a5c34592e401dd41e45d25a493"
TAESD_REPO = "madebyollin/taesd"
TAESD_REVISION = "614f76814bbe30edbe2e627ace1c2234c81a2c0e"
WHISPER_REPO = "openai/whisper-tiny"
WHISPER_REVISION = "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"
DWPOSE_REPO = "yzd-v/DWPose"
DWPOSE_REVISION = "1a7144101628d69ee7a3768d1ee3a094070dc388"
FACE_PARSING_REPO = "ManyOtherFunctions/face-parse-bisent"  # the authors' own copy is on Google Drive only; same sha256
FACE_PARSING_REVISION = "0073b233a5a3c4b1377d4dbf49245017938a72b5"

MIT = Licence("MIT")
APACHE = Licence("Apache-2.0")
# Its authors say two things in two places; the second also allows commercial use, and forbids harmful ones.
MUSETALK_LICENCE = Licence(
    "any purpose, also commercial (README of github.com/TMElyralab/MuseTalk); "
    "creativeml-openrail-m (model card of huggingface.co/TMElyralab/MuseTalk)"
)
# The code of the three below is free; the weights or what they were trained on may not be.
FACE_PARSING_LICENCE = Licence("MIT", "trained on CelebAMask-HQ, which is for non-commercial research only")
S3FD_LICENCE = Licence("BSD-3-Clause", "trained on WIDER FACE, which was published for research")
GFPGAN_LICENCE = Licence(
    "Apache-2.0 except for third-party parts", "its licence lists parts under non-commercial terms (StyleGAN2, DFDNet)"
)

MUSETALK_CONFIG_SHA256 = "5b6923aee04d71692e0e9846c471e0a4ea07a4f686d39545e472bd4ba17e1b47"  # the same file in both


def _musetalk(folder: str, weights: str, size: int, sha256: str | None) -> tuple[Part, ...]:
    """A UNet and its configuration. The repository's paths are the places."""
    config = f"{folder}/musetalk.json"
    return (
        Part((WeightFile(config, "json", _musetalk_file(config), 748, MUSETALK_CONFIG_SHA256),)),
        Part((WeightFile(f"{folder}/{weights}", "torch", _musetalk_file(f"{folder}/{weights}"), size, sha256),)),
    )


def _musetalk_file(path: str) -> HubFile:
    return HubFile(MUSETALK_REPO, path, MUSETALK_REVISION)


UNET_V15 = Model(
    "unet-v15",
    "MuseTalk v1.5: the UNet that draws the mouth",
    MUSETALK_LICENCE,
    _musetalk(
        "musetalkV15",
        "unet.pth",
        3_400_074_924,
        "7ebf6c98c181e20838e4c0054e96e944ac60d5d692cc01db42839fe11b787007",
    ),
)
UNET_V1 = Model(
    "unet-v1",
    "MuseTalk v1: the UNet that draws the mouth",
    MUSETALK_LICENCE,
    _musetalk("musetalk", "pytorch_model.bin", 3_400_076_549, None),
)
SD_VAE = Model(
    "sd-vae",
    "the VAE: faces to latents and back (reference decoder)",
    MIT,
    (
        Part(
            (
                WeightFile(
                    "sd-vae/config.json",
                    "json",
                    HubFile(VAE_REPO, "config.json", VAE_REVISION),
                    547,
                    "92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e",
                ),
            )
        ),
        Part(
            (
                WeightFile(
                    "sd-vae/diffusion_pytorch_model.safetensors",
                    "safetensors",
                    HubFile(VAE_REPO, "diffusion_pytorch_model.safetensors", VAE_REVISION),
                    334_643_276,
                    "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
                ),
                WeightFile(
                    "sd-vae/diffusion_pytorch_model.bin",
                    "torch",
                    HubFile(VAE_REPO, "diffusion_pytorch_model.bin", VAE_REVISION),
                    334_707_217,
                    "1b4889b6b1d4ce7ae320a02dedaeff1780ad77d415ea0d744b476155c6377ddc",
                ),
            )
        ),
    ),
)
WHISPER = Model(
    "whisper",
    "Whisper-tiny: its encoder turns speech into prompts",
    APACHE,
    (
        Part(
            (
                WeightFile(
                    "whisper/config.json",
                    "json",
                    HubFile(WHISPER_REPO, "config.json", WHISPER_REVISION),
                    1_983,
                    "ffdccec4f3211f4c63310f2b7098f309fe70f3952cedc5e4d11e43f5b2379b98",
                ),
            )
        ),
        Part(
            (
                WeightFile(
                    "whisper/model.safetensors",
                    "safetensors",
                    HubFile(WHISPER_REPO, "model.safetensors", WHISPER_REVISION),
                    151_061_672,
                    "7ebd0e69e78190ffe1438491fa05cc1f5c1aa3a4c4db3bc1723adbb551ea2395",
                ),
                WeightFile(
                    "whisper/pytorch_model.bin",
                    "torch",
                    HubFile(WHISPER_REPO, "pytorch_model.bin", WHISPER_REVISION),
                    151_095_027,
                    "9607f98a2b22d9e229ae43c52ecea79dcede9e0c5cfae67e8da6eda86d8aac1d",
                ),
            )
        ),
    ),
    extras=(
        WeightFile(
            "whisper/preprocessor_config.json",
            "json",
            HubFile(WHISPER_REPO, "preprocessor_config.json", WHISPER_REVISION),
            184_990,
            "9b5cd03a36fbb8a627c64d98a5b5b126ead95a77720723944487311f0110b666",
        ),
    ),
)
TAESD = Model(
    "taesd",
    "a VAE some 40 times smaller: the fast decoder",
    MIT,
    (
        Part(
            (WeightFile("taesd/config.json", "json", HubFile(TAESD_REPO, "config.json", TAESD_REVISION), None, None),)
        ),
        Part(
            (
                WeightFile(
                    "taesd/diffusion_pytorch_model.safetensors",
                    "safetensors",
                    HubFile(TAESD_REPO, "diffusion_pytorch_model.safetensors", TAESD_REVISION),
                    9_793_292,
                    "db169d69145ec4ff064e49d99c95fa05d3eb04ee453de35824a6d0f325513549",
                ),
            )
        ),
    ),
)
DWPOSE = Model(
    "dwpose",
    "MuseTalk's own face landmarks, through ONNX Runtime",
    APACHE,
    (
        Part(
            (
                WeightFile(
                    "dwpose/dw-ll_ucoco_384.onnx",
                    "onnx",
                    HubFile(DWPOSE_REPO, "dw-ll_ucoco_384.onnx", DWPOSE_REVISION),
                    134_399_116,
                    "724f4ff2439ed61afb86fb8a1951ec39c6220682803b4a8bd4f598cd913b1843",
                ),
            )
        ),
    ),
    extras=(
        WeightFile(
            "dwpose/dw-ll_ucoco_384.pth",
            "torch",
            HubFile(DWPOSE_REPO, "dw-ll_ucoco_384.pth", DWPOSE_REVISION),
            406_878_486,
            "0d9408b13cd863c4e95a149dd31232f88f2a12aa6cf8964ed74d7d97748c7a07",
        ),
    ),
)
FACE_PARSING = Model(
    "face-parsing",
    "BiSeNet: the blend mask from what is skin, lips, hair",
    FACE_PARSING_LICENCE,
    (
        Part(
            (
                WeightFile(
                    "face-parse-bisent/79999_iter.pth",
                    "torch",
                    HubFile(FACE_PARSING_REPO, "79999_iter.pth", FACE_PARSING_REVISION),
                    53_289_463,
                    "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
                ),
            )
        ),
    ),
    extras=(  # BiSeNet's backbone before its training; all of it is in 79999_iter.pth, too
        WeightFile(
            "face-parse-bisent/resnet18-5c106cde.pth",
            "torch",
            WebFile("https://download.pytorch.org/models/resnet18-5c106cde.pth"),
            46_827_520,
            "5c106cde386e87d4033832f2996f5493238eda96ccf559d1d62760c4de0613f8",
        ),
    ),
)
S3FD = Model(
    "s3fd",
    "the reference's face detector",
    S3FD_LICENCE,
    (
        Part(
            (
                WeightFile(
                    "s3fd/s3fd-619a316812.pth",
                    "torch",
                    WebFile("https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth"),
                    89_843_225,
                    "619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
                ),
            )
        ),
    ),
)
GFPGAN = Model(
    "gfpgan",
    "GFPGAN v1.4: restores a generated face",
    GFPGAN_LICENCE,
    (
        Part(
            (
                WeightFile(
                    "gfpgan/GFPGANv1.4.pth",
                    "torch",
                    WebFile("https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth"),
                    348_632_874,
                    "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
                ),
            )
        ),
    ),
)

MODELS = (UNET_V15, UNET_V1, SD_VAE, WHISPER, TAESD, DWPOSE, FACE_PARSING, S3FD, GFPGAN)
OPTIONAL = (TAESD, DWPOSE, FACE_PARSING, S3FD, GFPGAN)
PROFILES = (
    Profile("musetalk-v15", (UNET_V15, SD_VAE, WHISPER), OPTIONAL),
    Profile("musetalk-v1", (UNET_V1, SD_VAE, WHISPER), OPTIONAL),
)
