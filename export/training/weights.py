"""The trained weights as files: FP16 safetensors, one per network, and back into the demo profile's networks.

    <folder>/unet.safetensors, vae.safetensors, audio_encoder.safetensors

The audio encoder's sinusoidal positions are not stored: they are what they are in every Whisper.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from export.networks import Networks

PARTS = ("unet", "vae", "audio_encoder")
FIXED = "embed_positions.weight"  # of the audio encoder


class WeightsMissing(Exception):
    """A file of weights is not there or does not fit the networks."""


def save(networks: Networks, folder: Path) -> int:
    """Write all three files; returns their bytes together."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        state = {
            name: tensor.detach().half().contiguous().cpu()
            for name, tensor in _module(networks, part).state_dict().items()
            if name != FIXED
        }
        draft = folder / f".{part}.part"
        save_file(state, draft)
        draft.replace(folder / f"{part}.safetensors")
    return sum((folder / f"{part}.safetensors").stat().st_size for part in PARTS)


def load(networks: Networks, folder: Path) -> None:
    """Replace the networks' weights, in place. Raises WeightsMissing."""
    for part in PARTS:
        file = folder / f"{part}.safetensors"
        if not file.is_file():
            raise WeightsMissing(f"{file} is not there; train with: python -m export.training all")
        module = _module(networks, part)
        expected = module.state_dict()
        state = {name: tensor.float() for name, tensor in load_file(file).items()}
        fixed = {FIXED: expected[FIXED]} if FIXED in expected else {}
        try:
            module.load_state_dict(state | fixed)
        except RuntimeError as exc:
            raise WeightsMissing(f"{file} does not fit the {part} of the profile {networks.profile!r}") from exc


def is_there(folder: Path) -> bool:
    """Whether the folder holds every file."""
    return all((folder / f"{part}.safetensors").is_file() for part in PARTS)


def _module(networks: Networks, part: str) -> nn.Module:
    module = getattr(networks, part)
    assert isinstance(module, nn.Module)
    return module


def count(networks: Networks) -> dict[str, int]:
    """Stored numbers per part."""
    return {
        part: sum(torch.numel(t) for name, t in _module(networks, part).state_dict().items() if name != FIXED)
        for part in PARTS
    }
