"""Stage one: pictures of faces to latents and back.

The demo VAE learns to repeat faces, whole ones and ones with a blackened lower half, which is all it ever sees. A
little noise on the latents makes the decoder forgive the UNet's errors. Lips and teeth count several times. Both halves
are convolutions, so they are trained on squares of the faces, most of them around the mouth.
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
from export.training.pixels import colour_error, lip_weights, picture_loss, psnr, to_rgb
from lipserve.contract import FACE_SIZE, MASKED_FROM_ROW

U8 = NDArray[np.uint8]

MASKED_SHARE = 0.25  # of pictures with a black lower half
LATENT_NOISE = 0.05
LATENT_BOUND = 2.0  # latents beyond this are drawn back: the decoder bends at 3
LIP_WEIGHT = 4.0
SQUARE = 160  # pixels of a side, of the 256
MOUTH_SHARE = 0.6  # of batches whose square lies around a mouth
VALIDATION = 48  # pictures


class Pictures(NamedTuple):
    """Faces, and where to look at them.

    crops: uint8 (n, 256, 256, 3), BGR; lips: int16 (n, 4); masked: bool (n,); noise: float32 (n, 4, side / 8,
    side / 8); left, top, side: of the square, pixels, multiples of 8
    """

    crops: U8
    lips: NDArray[np.int16]
    masked: NDArray[np.bool_]
    noise: NDArray[np.float32]
    left: int
    top: int
    side: int

    def square(self, faces: Tensor) -> Tensor:
        """That part of pictures (n, c, 256, 256)."""
        part = faces[:, :, self.top : self.top + self.side, self.left : self.left + self.side]
        return part.contiguous(memory_format=torch.channels_last)


class VaeStage:
    """See loop.Stage."""

    name, number = "vae", 1

    def __init__(self, vae: AutoencoderTiny, folder: Path, batch_size: int) -> None:
        self.vae, self._size = vae.to(device(), memory_format=torch.channels_last).train(), batch_size
        self._train, self._val = Faces.open(folder, "train"), Faces.open(folder, "val")

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def batch(self, rng: np.random.Generator) -> Pictures:
        return pictures(self._train, self._size, rng)

    def loss(self, batch: Pictures, step: int) -> tuple[Tensor, dict[str, float]]:
        target = batch.square(masked(to_rgb(batch.crops), batch.masked))
        latents = self.vae.encode(target).latents.float()
        noise = torch.from_numpy(batch.noise).to(latents.device)
        decoded = self.vae.decode(latents + LATENT_NOISE * noise).sample.float()
        weights = 1 + LIP_WEIGHT * batch.square(lip_weights(batch.lips))
        loss = picture_loss(decoded, target, weights)
        beyond = (latents.abs() - LATENT_BOUND).relu().square().mean()
        return loss + 0.1 * beyond, {"std": latents.std().item()}

    def evaluate(self) -> dict[str, float]:
        batch = pictures(self._val, VALIDATION, np.random.default_rng(1), evaluation=True)
        target, weights = to_rgb(batch.crops), lip_weights(batch.lips)
        parts = target.chunk(VALIDATION // 8)
        decoded = torch.cat([self.vae.decode(self.vae.encode(part).latents).sample for part in parts])
        everywhere = torch.ones_like(weights)
        return {
            "psnr": psnr(decoded, target, everywhere),
            "psnr_lips": psnr(decoded, target, weights),
            "colour": colour_error(decoded, target),
        }


def pictures(faces: Faces, count: int, rng: np.random.Generator, evaluation: bool = False) -> Pictures:
    """Idle and speaking faces at random, half of them mirrored, a square of them; in evaluation whole, as they are."""
    rows = rng.choice(np.flatnonzero(faces.done), count)
    columns = rng.integers(faces.crops.shape[1], size=count)
    crops = np.stack([faces.crops[row, column] for row, column in zip(rows, columns, strict=True)])
    lips = np.array(faces.lips[rows])
    if not evaluation and rng.random() < 0.5:
        crops, lips = mirrored(crops, lips)
    hidden = rng.random(count) < MASKED_SHARE
    left, top, side = (0, 0, FACE_SIZE) if evaluation else _square(lips[0], rng)
    noise = rng.standard_normal((count, 4, side // 8, side // 8), np.float32)
    return Pictures(crops, lips, hidden, noise, left, top, side)


def _square(lips: NDArray[np.int16], rng: np.random.Generator) -> tuple[int, int, int]:
    """Left, top, side: anywhere, or with all of the lips in it."""
    low, high = np.zeros(2), np.full(2, FACE_SIZE - SQUARE)
    if rng.random() < MOUTH_SHARE:
        low = np.clip(lips[2:] - SQUARE, 0, FACE_SIZE - SQUARE)
        high = np.clip(lips[:2], low, FACE_SIZE - SQUARE)
    left, top = (np.round(rng.uniform(low, high) / 8) * 8).astype(int).tolist()
    return left, top, SQUARE


def mirrored(crops: U8, lips: NDArray[np.int16]) -> tuple[U8, NDArray[np.int16]]:
    """Left and right exchanged: crops uint8 (..., 256, 256, 3), lips int16 (n, 4)."""
    swapped = np.stack([FACE_SIZE - lips[:, 2], lips[:, 1], FACE_SIZE - lips[:, 0], lips[:, 3]], axis=1)
    return np.ascontiguousarray(crops[..., ::-1, :]), swapped.astype(np.int16)


def masked(faces: Tensor, which: NDArray[np.bool_]) -> Tensor:
    """RGB pictures in [-1, 1] with the lower half of some of them black, that is -1."""
    hidden = faces.clone()
    hidden[torch.from_numpy(which).to(faces.device), :, MASKED_FROM_ROW:] = -1
    return hidden
