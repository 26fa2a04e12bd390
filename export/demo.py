"""The demo profile: MuseTalk's inputs and outputs on networks small enough for two CPU cores in real time.

Knows a seed; weights are random until they are trained (`export.training`) or read (`export.training.weights`).
"""

import torch

from export.demo_audio import DemoAudioEncoder
from export.demo_unet import DemoUNet
from export.demo_vae import build_vae
from export.networks import Networks

PROFILE = "demo"


def build(seed: int) -> Networks:
    """The profile's three networks, randomly initialised; the same seed gives the same weights.

    The global random state of torch is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae, audio_encoder = DemoUNet(), build_vae(), DemoAudioEncoder()
    return Networks(PROFILE, unet.eval(), vae.eval(), audio_encoder.eval())
