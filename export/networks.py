"""The networks of a profile, held together, and the identity of their weights.

Knows neither how they were built nor how they are exported.
"""

import hashlib
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

ID_DIGITS = 12  # hexadecimal digits of the digest kept in a weights id


@dataclass(frozen=True)
class Networks:
    """One profile's networks, all in evaluation mode, on the CPU, float32."""

    profile: str
    unet: nn.Module  # called as diffusers' UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    audio_encoder: nn.Module  # log_mel -> hidden_states, the contract's AUDIO_ENCODER
    decoder: AutoencoderTiny | None = None  # draws the faces in the place of the VAE's own
    lower: bool = False  # whether the VAE's own draws only the rows that blending uses

    @property
    def weights_id(self) -> str:
        """Identity of the weights, like `demo-1a2b3c4d5e6f`: equal if and only if every tensor is.

        What draws the faces does not count: all decoders read the same latents, so that an avatar outlives the choice.
        """
        return f"{self.profile}-{digest(unet=self.unet, vae=self.vae, audio_encoder=self.audio_encoder)[:ID_DIGITS]}"


def digest(**modules: nn.Module) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every tensor of the modules' state, in sorted order."""
    sha = hashlib.sha256()
    for part, module in sorted(modules.items()):
        for name, tensor in sorted(module.state_dict().items()):
            sha.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
