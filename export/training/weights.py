"""The trained weights as files, the graphs themselves, and back into the demo profile's networks.

Every weight stands in its graph under the name that it has in torch, as FP16 (see export.halves), so that one set of
files serves Triton, and is a start for training on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from export.bundle import graph_file
from export.halves import stored_weights
from export.networks import Networks
from lipserve import contract

# which part of the networks a graph's weights belong to, and what their names begin with there
PARTS = (
    (contract.UNET, "unet", "unet."),
    (contract.VAE_ENCODER, "vae", "vae."),
    (contract.VAE_DECODER, "vae", "vae."),
    (contract.AUDIO_ENCODER, "audio_encoder", ""),
)


class WeightsUnfit(Exception):
    """The graphs lack weights that the networks have."""


@torch.no_grad()
def round_to_half(networks: Networks) -> None:
    """Make every weight one that FP16 can say exactly, in place."""
    for part in ("unet", "vae", "audio_encoder"):
        for parameter in _module(networks, part).parameters():
            parameter.copy_(parameter.half().float())


def load(networks: Networks, folder: Path) -> None:
    """Replace the networks' weights by those of the graphs in the folder, in place. Raises WeightsUnfit."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    for model, part, prefix in PARTS:
        found = stored_weights(graph_file(folder, model))
        state = states.setdefault(part, {})
        state |= {name.removeprefix(prefix): torch.from_numpy(value) for name, value in found.items()}
    for part, state in states.items():
        module = _module(networks, part)
        expected = module.state_dict()
        unfit = [name for name, value in expected.items() if name not in state or state[name].shape != value.shape]
        if unfit:
            raise WeightsUnfit(f"{folder}: of the {part}, {len(unfit)} weights are not there: {', '.join(unfit[:5])}")
        module.load_state_dict({name: state[name] for name in expected})


def count(networks: Networks) -> dict[str, int]:
    """Numbers per part."""
    return {
        part: sum(torch.numel(value) for value in _module(networks, part).state_dict().values())
        for part in ("unet", "vae", "audio_encoder")
    }


def _module(networks: Networks, part: str) -> nn.Module:
    module = getattr(networks, part)
    assert isinstance(module, nn.Module)
    return module
