"""The profiles: whose weights there are, in which files they lie, and what can be chosen. Knows no network.

    models/musetalkV15/musetalk.json, unet.pth             MuseTalk 1.5's UNet
    models/musetalk/musetalk.json, pytorch_model.bin       MuseTalk 1's
    models/sd-vae/config.json, diffusion_pytorch_model.*   Stable Diffusion's VAE: encoder always, decoder by choice
    models/taesd/config.json, diffusion_pytorch_model.*    the small decoder
    models/whisper/config.json, model.safetensors          Whisper-tiny, or pytorch_model.bin

The demo's weights are the graphs in models/demo: `python -m export.training` writes them, and nothing here builds them.
"""

from dataclasses import dataclass
from pathlib import Path

from export.errors import UnknownProfile, WeightsMissing

DEMO = "demo"
UNETS = {
    "musetalk-v15": ("musetalkV15/musetalk.json", "musetalkV15/unet.pth"),
    "musetalk-v1": ("musetalk/musetalk.json", "musetalk/pytorch_model.bin"),
}
PROFILES = (DEMO, *UNETS)

SD_VAE, LOWER, TAESD = "sd-vae", "sd-vae-lower", "taesd"  # LOWER: the rows that blending uses, of sd-vae
DECODERS = (SD_VAE, LOWER, TAESD)

VAE_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # the first that is there
WHISPER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# What UNet and decoder compute in. A CPU gains nothing from FP16, and the demo's graphs are what they are.
FP32, FP16 = "fp32", "fp16"


@dataclass(frozen=True)
class Part:
    """The files of one network."""

    config: Path
    weights: Path


@dataclass(frozen=True)
class Parts:
    """The files of a profile. `decoder`: None where the faces are drawn by the VAE's own."""

    unet: Part
    vae: Part
    whisper: Part
    decoder: Part | None


def require_profile(profile: str) -> None:
    """Refuse a profile that does not exist."""
    if profile not in PROFILES:
        raise UnknownProfile(profile, PROFILES)


def precision(profile: str, target: str) -> str:
    """What a profile's UNet and decoder compute in on a target."""
    return FP32 if profile == DEMO or target == "cpu" else FP16


def parts(models_dir: Path, profile: str, decoder: str = SD_VAE) -> Parts:
    """The weight files of a MuseTalk profile, all of them there. Raises UnknownProfile and WeightsMissing."""
    if profile not in UNETS:
        raise UnknownProfile(profile, UNETS)
    config, weights = (models_dir / name for name in UNETS[profile])
    found = Parts(
        unet=Part(config, weights),
        vae=_part(models_dir / SD_VAE, VAE_WEIGHTS),
        whisper=_part(models_dir / "whisper", WHISPER_WEIGHTS),
        decoder=_part(models_dir / TAESD, VAE_WEIGHTS) if decoder == TAESD else None,
    )
    wanted = [part for part in (found.unet, found.vae, found.whisper, found.decoder) if part is not None]
    missing = [file for part in wanted for file in (part.config, part.weights) if not file.is_file()]
    if missing:
        raise WeightsMissing(profile, missing)
    return found


def _part(folder: Path, names: tuple[str, ...]) -> Part:
    there = [folder / name for name in names if (folder / name).is_file()]
    return Part(folder / "config.json", there[0] if there else folder / names[0])
