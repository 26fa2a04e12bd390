"""The torch modules that *are* the exported graphs: the contract's tensors at the edges, the networks' dtype inside.

They know the numerics around the networks (positions, scaling, half mask, channel order, rounding), which they do in
float32, and nothing of ONNX, Triton or where the weights came from. Any diffusers VAE of the right shape fits,
`AutoencoderKL` or `AutoencoderTiny`.
"""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lipserve import contract

POSITION_BASE = 10_000.0


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Sinusoidal positional encoding: float32 (length, width), in [-1, 1].

    "Attention Is All You Need", section 3.5: sin(p / 10000^(2i / width)) on channel 2i, its cosine on channel 2i + 1.
    """
    positions = torch.arange(length, dtype=torch.float64)[:, None]
    wavelengths = POSITION_BASE ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = positions / wavelengths
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()


class UNetStep(nn.Module):
    """The single step from a masked face to the latents of the speaking one."""

    positions: Tensor

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        positions = sinusoidal_positions(contract.FEATURES_PER_FRAME, contract.AUDIO_WIDTH)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, audio_features: Tensor, face_latents: Tensor) -> Tensor:
        """Latents of the face that says what is heard; the timestep is 0 and there is no noise.

        audio_features: float16 (n, 50, 384); face_latents: float16 (n, 8, 32, 32), masked 4 then reference 4
        -> latents: float16 (n, 4, 32, 32), VAE latents times the scaling factor
        """
        dtype = network_dtype(self.unet)
        prompts = (audio_features.float() + self.positions).to(dtype)
        timestep = torch.zeros((), dtype=torch.int64, device=face_latents.device)
        latents: Tensor = self.unet(face_latents.to(dtype), timestep, encoder_hidden_states=prompts).sample
        return latents.half()


class FaceDecoder(nn.Module):
    """The VAE's decoder, up to finished pictures."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor: float = vae.config.scaling_factor

    def forward(self, latents: Tensor) -> Tensor:
        """Pictures of latents.

        latents: float16 (n, 4, 32, 32), VAE latents times the scaling factor
        -> faces: uint8 (n, 256, 256, 3), BGR, rounded to the nearest level
        """
        unscaled = (latents.float() / self.scaling_factor).to(network_dtype(self.vae))
        decoded: Tensor = self.vae.decode(unscaled).sample.float()
        levels = (decoded / 2 + 0.5).clamp(0, 1) * 255
        return levels.flip(1).permute(0, 2, 3, 1).round().to(torch.uint8)


class FaceEncoder(nn.Module):
    """The VAE's encoder on both pictures the UNet sees: the face with its lower half blackened, and the whole face."""

    upper_half: Tensor

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor: float = vae.config.scaling_factor
        rows = torch.arange(contract.FACE_SIZE)[:, None]
        self.register_buffer("upper_half", (rows < contract.MASKED_FROM_ROW).float(), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        """Latents of the masked face, then of the whole face; of a distribution, its mode.

        crops: uint8 (n, 256, 256, 3), BGR -> face_latents: float16 (n, 8, 32, 32), masked 4 then reference 4
        """
        # TensorRT does nothing with uint8 but cast it, hence the order.
        whole = crops.float().permute(0, 3, 1, 2).flip(1) / 255  # (n, 3, 256, 256), RGB, [0, 1]
        # One after the other: at 256 pixels two pictures at once would double the largest tensors of the whole service.
        encoded = [self._encode(pictures * 2 - 1) for pictures in (whole * self.upper_half, whole)]
        return (torch.cat(encoded, dim=1) * self.scaling_factor).half()

    def _encode(self, pictures: Tensor) -> Tensor:
        """RGB pictures in [-1, 1] to unscaled latents: float32 (n, 3, 256, 256) -> float32 (n, 4, 32, 32)."""
        encoded = self.vae.encode(pictures)
        latents: Tensor = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()
        return latents


class WhisperStates(nn.Module):
    """Whisper's encoder, all of its hidden states."""

    def __init__(self, encoder: WhisperEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, log_mel: Tensor) -> Tensor:
        """Hidden states of 30 s segments: the embedding, then each layer, the last after the final layer norm.

        log_mel: float32 (n, 80, 3000), Whisper's log-mel scale -> hidden_states: float32 (n, 1500, 5, 384)
        """
        states: tuple[Tensor, ...] = self.encoder(log_mel, output_hidden_states=True).hidden_states
        return torch.stack(states, dim=2)


def network_dtype(network: nn.Module) -> torch.dtype:
    """What a network computes in; some tests' networks have no weights."""
    return next((parameter.dtype for parameter in network.parameters()), torch.float32)
