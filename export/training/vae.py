"""Stage one: pictures of faces to latents and back.

The demo VAE learns to repeat faces, whole ones and ones with a blackened lower half, which is all it ever sees. A
little noise on the latents makes the decoder forgive the UNet's errors. Lips and teeth count several times.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor, nn

from export.training.faces import Faces
from export.training.loop import device
from export.training.pixels import lip_weights, picture_loss, psnr, to_rgb
from lipserve.contract import FACE_SIZE, MASKED_FROM_ROW

U8 = NDArray[np.uint8]

MASKED_SHARE = 0.25  # of pictures with a black lower half
LATENT_NOISE = 0.05
LATENT_BOUND = 2.0  # latents beyond this are drawn back: the decoder bends at 3
LIP_WEIGHT = 4.0
VALIDATION = 48  # pictures


class Pictures(NamedTuple):
    """crops: uint8 (n, 256, 256, 3), BGR; lips: int16 (n, 4); masked: bool (n,); noise: float32 (n, 4, 32, 32)."""

    crops: U8
    lips: NDArray[np.int16]
    masked: NDArray[np.bool_]
    noise: NDArray[np.float32]


class VaeStage:
    """See loop.Stage."""

    name, number = "vae", 1

    def __init__(self, vae: AutoencoderTiny, folder: Path, batch_size: int) -> None:
        self.vae, self._size = vae.to(device()).train(), batch_size
        self._train, self._val = Faces.open(folder, "train"), Faces.open(folder, "val")

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def batch(self, rng: np.random.Generator) -> Pictures:
        return pictures(self._train, self._size, rng)

    def loss(self, batch: Pictures, step: int) -> tuple[Tensor, dict[str, float]]:
        target = masked(to_rgb(batch.crops), batch.masked)
        latents = self.vae.encode(target).latents
        noise = torch.from_numpy(batch.noise).to(latents.device)
        decoded = self.vae.decode(latents + LATENT_NOISE * noise).sample
        weights = 1 + LIP_WEIGHT * lip_weights(batch.lips)
        loss = picture_loss(decoded, target, weights)
        beyond = (latents.abs() - LATENT_BOUND).relu().square().mean()
        return loss + 0.1 * beyond, {"std": latents.std().item()}

    def evaluate(self) -> dict[str, float]:
        batch = pictures(self._val, VALIDATION, np.random.default_rng(1), flip=False)
        target, weights = to_rgb(batch.crops), lip_weights(batch.lips)
        parts = target.chunk(VALIDATION // 8)
        decoded = torch.cat([self.vae.decode(self.vae.encode(part).latents).sample for part in parts])
        everywhere = torch.ones_like(weights)
        return {"psnr": psnr(decoded, target, everywhere), "psnr_lips": psnr(decoded, target, weights)}


def pictures(faces: Faces, count: int, rng: np.random.Generator, flip: bool = True) -> Pictures:
    """Idle and speaking faces at random, half of them mirrored."""
    rows = rng.choice(np.flatnonzero(faces.done), count)
    columns = rng.integers(faces.crops.shape[1], size=count)
    crops = np.stack([faces.crops[row, column] for row, column in zip(rows, columns, strict=True)])
    lips = np.array(faces.lips[rows])
    if flip and rng.random() < 0.5:
        crops, lips = mirrored(crops, lips)
    hidden = rng.random(count) < MASKED_SHARE
    return Pictures(crops, lips, hidden, rng.standard_normal((count, 4, 32, 32), np.float32))


def mirrored(crops: U8, lips: NDArray[np.int16]) -> tuple[U8, NDArray[np.int16]]:
    """Left and right exchanged: crops uint8 (..., 256, 256, 3), lips int16 (n, 4)."""
    swapped = np.stack([FACE_SIZE - lips[:, 2], lips[:, 1], FACE_SIZE - lips[:, 0], lips[:, 3]], axis=1)
    return np.ascontiguousarray(crops[..., ::-1, :]), swapped.astype(np.int16)


def masked(faces: Tensor, which: NDArray[np.bool_]) -> Tensor:
    """RGB pictures in [-1, 1] with the lower half of some of them black, that is -1."""
    hidden = faces.clone()
    hidden[torch.from_numpy(which).to(faces.device), :, MASKED_FROM_ROW:] = -1
    return hidden
