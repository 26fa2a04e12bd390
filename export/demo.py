"""The demo profile: MuseTalk's inputs and outputs on networks small enough for two CPU cores in real time.

Knows shapes and a seed. Its weights are random: the faces it makes are noise, at the right place and at the right time.
"""

import torch
from diffusers import UNet2DConditionModel
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from export.demo_vae import build_vae
from export.networks import Networks
from lipserve import contract

PROFILE = "demo"

UNET_CHANNELS = (32, 64, 64, 64)  # at 32, 16, 8 and 4 pixels
FFN_WIDTH = 768  # Whisper-tiny has 1536


def build(seed: int) -> Networks:
    """The profile's three networks, randomly initialised; the same seed gives the same weights.

    The global random state of torch is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae, audio_encoder = build_unet(), build_vae(), build_audio_encoder()
    return Networks(PROFILE, unet.eval(), vae.eval(), audio_encoder.eval())


def build_unet() -> UNet2DConditionModel:
    """The UNet: (n, 8, 32, 32) and prompts (n, 50, 384) -> (n, 4, 32, 32)."""
    return UNet2DConditionModel(
        sample_size=contract.LATENT_SIZE,
        in_channels=contract.FACE_LATENT_CHANNELS,
        out_channels=contract.LATENT_CHANNELS,
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        cross_attention_dim=contract.AUDIO_WIDTH,
        attention_head_dim=1,  # diffusers means the number of heads: one costs a third of eight
        norm_num_groups=16,
    )


def build_audio_encoder() -> WhisperEncoder:
    """Whisper-tiny's encoder with a narrower feed-forward: (n, 80, 3000) -> (n, 1500, 384)."""
    config = WhisperConfig(
        num_mel_bins=contract.N_MELS,
        d_model=contract.AUDIO_WIDTH,
        encoder_layers=contract.N_LAYERS - 1,
        encoder_attention_heads=6,
        encoder_ffn_dim=FFN_WIDTH,
        max_source_positions=contract.SEGMENT_STATES,
    )
    return WhisperEncoder(config)
