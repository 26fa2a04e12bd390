"""Stage three: the UNet, from a masked face, a reference and a window of sound to the speaking face.

The data flow is MuseTalk's: latents of the face with its lower half black and of the idle face in, through the
frozen encoder; the prompts with positional encoding; timestep 0, no noise; out come latents of the speaking face. The
loss is in pixels, behind the decoder, which goes on learning at a lower rate. The reference is the idle face, as at
serving; now and then another spoken face of the pose, so that its mouth is not to be trusted. Where nothing is said,
the idle face itself is wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from export.modules import UNetStep
from export.training.corpus import SPLITS, Split
from export.training.faces import BUNDLED_ROWS, SPOKEN, Faces
from export.training.loop import device
from export.training.pixels import lip_weights, picture_loss, psnr, to_rgb
from export.training.vae import mirrored
from export.training.windows import RECORDINGS
from lipserve.contract import MASKED_FROM_ROW

U8 = NDArray[np.uint8]

OPEN_REFERENCE_SHARE = 0.12  # of references that are not idle
LIP_WEIGHT = 6.0
UPPER_WEIGHT = 0.25  # of the upper half, which serving does not show
LATENT_WEIGHT = 0.5  # of the latents' own error, which teaches fastest in the beginning
LATENT_STEPS = 3000  # after which only pixels count
SILENT_SHARE = 0.06  # of faces that hear noise or nothing and rest
BUNDLED_SHARE = 0.2  # of training faces that are of the bundled people
WINDOW_NOISE = 0.03  # on the prompts
VALIDATION = 64  # faces
DARK = -0.45  # RGB level, averaged, below which a pixel between the lips counts as opening


class Windows(NamedTuple):
    """spoken: float16 (n, K, R, 50, 384); silent: float16 (m, 50, 384). See windows.py."""

    spoken: NDArray[np.float16]
    silent: NDArray[np.float16]

    @classmethod
    def open(cls, folder: Path, split: Split) -> Windows:
        place = folder / "faces" / split
        return cls(np.load(place / "windows.npy", mmap_mode="r"), np.load(place / "silence.npy"))


class Speaking(NamedTuple):
    """reference, target: uint8 (n, 256, 256, 3), BGR; windows: float16 (n, 50, 384); lips: int16 (n, 4)."""

    reference: U8
    target: U8
    windows: NDArray[np.float16]
    lips: NDArray[np.int16]

    def part(self, start: int, stop: int) -> Speaking:
        """Some of the faces."""
        where = slice(start, stop)
        return Speaking(self.reference[where], self.target[where], self.windows[where], self.lips[where])


class UNetStage:
    """See loop.Stage."""

    name, number = "unet", 3

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderTiny, folder: Path, batch_size: int) -> None:
        self._net = UNetStep(unet).to(device()).train()
        self.vae, self._size = vae.to(device()), batch_size
        self.vae.encoder.requires_grad_(False)
        self._train, self._val = Faces.open(folder, "train"), Faces.open(folder, "val")
        self._heard = {split: Windows.open(folder, split) for split in SPLITS}

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self._net.unet, "decoder": self.vae.decoder}

    def batch(self, rng: np.random.Generator) -> Speaking:
        return speaking(self._train, self._heard["train"], self._size, rng)

    def loss(self, batch: Speaking, step: int) -> tuple[Tensor, dict[str, float]]:
        target = to_rgb(batch.target)
        latents = self._speak(batch)
        made = self.vae.decode(latents / self._scale).sample
        inside = lip_weights(batch.lips)
        weights = torch.ones_like(inside)
        weights[:, :, :MASKED_FROM_ROW] = UPPER_WEIGHT
        pixels = picture_loss(made, target, weights + LIP_WEIGHT * inside)
        with torch.no_grad():
            numbers = {"pixels": pixels.item(), "psnr_lips": psnr(made, target, inside)}
            wanted = self._encode(target) if step < LATENT_STEPS else None
        if wanted is None:
            return pixels, numbers
        return pixels + LATENT_WEIGHT * functional.l1_loss(latents, wanted), numbers

    def evaluate(self) -> dict[str, float]:
        """On people, voices and texts never trained on: lips in dB, and how the opening follows."""
        batch = speaking(self._val, self._heard["val"], VALIDATION, np.random.default_rng(3), evaluation=True)
        made = torch.cat([self._decode(batch.part(start, start + 8)) for start in range(0, VALIDATION, 8)])
        target, idle, inside = to_rgb(batch.target), to_rgb(batch.reference), lip_weights(batch.lips)
        return {
            "psnr_lips": psnr(made, target, inside),
            "psnr_idle": psnr(idle, target, inside),  # of a mouth that never moves, for comparison
            "psnr": psnr(made, target, torch.ones_like(inside)),
            "dark_correlation": float(np.corrcoef(_darkness(made, inside), _darkness(target, inside))[0, 1]),
        }

    @property
    def _scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    def _encode(self, faces: Tensor) -> Tensor:
        latents: Tensor = self.vae.encode(faces).latents * self._scale
        return latents

    def _speak(self, batch: Speaking) -> Tensor:
        """Latents of the speaking face, float32: as export.modules.UNetStep, without its rounding to half."""
        reference = to_rgb(batch.reference)
        hidden = reference.clone()
        hidden[:, :, MASKED_FROM_ROW:] = -1
        with torch.no_grad():
            both = torch.cat((self._encode(hidden), self._encode(reference)), dim=1)
        prompts = torch.from_numpy(batch.windows).to(both.device).float() + self._net.positions
        timestep = torch.zeros((), dtype=torch.int64, device=both.device)
        latents: Tensor = self._net.unet(both, timestep, encoder_hidden_states=prompts).sample
        return latents

    def _decode(self, batch: Speaking) -> Tensor:
        made: Tensor = self.vae.decode(self._speak(batch) / self._scale).sample
        return made.clamp(-1, 1)


def speaking(
    faces: Faces, windows: Windows, count: int, rng: np.random.Generator, evaluation: bool = False
) -> Speaking:
    """Poses at random with one of their spoken faces; in evaluation the idle reference, and a bad recording."""
    rows = rng.choice(np.flatnonzero(faces.done), count)
    columns = rng.integers(SPOKEN, size=count)
    recordings = rng.integers(1 if evaluation else 0, RECORDINGS, size=count)
    if evaluation:
        reference, target = faces.crops[rows, 0], faces.crops[rows, 1 + columns]
        return Speaking(reference, target, windows.spoken[rows, columns, recordings], faces.lips[rows])
    bundled = rng.random(count) < BUNDLED_SHARE
    rows = np.where(bundled, rng.integers(min(BUNDLED_ROWS, len(faces.done)), size=count), rows)
    others = 1 + (columns + rng.integers(1, SPOKEN, size=count)) % SPOKEN
    reference = faces.crops[rows, np.where(rng.random(count) < OPEN_REFERENCE_SHARE, others, 0)]
    silent = rng.random(count) < SILENT_SHARE
    target = faces.crops[rows, np.where(silent, 0, 1 + columns)]
    heard = windows.spoken[rows, columns, recordings]
    heard[silent] = windows.silent[rng.integers(len(windows.silent), size=int(silent.sum()))]
    heard = (heard + WINDOW_NOISE * rng.standard_normal(heard.shape, np.float32)).astype(np.float16)
    lips = faces.lips[rows]
    if rng.random() < 0.5:
        (reference, _), (target, lips) = mirrored(reference, lips), mirrored(target, lips)
    return Speaking(reference, target, heard, lips)


def _darkness(faces: Tensor, inside: Tensor) -> NDArray[np.float32]:
    """The share of dark pixels around the lips: float32 (n,)."""
    dark = ((DARK - faces.mean(dim=1, keepdim=True)) * 8).sigmoid() * inside
    return np.asarray((dark.sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3))).cpu().numpy(), np.float32)
