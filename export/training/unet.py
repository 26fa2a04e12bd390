"""Stage three: the UNet, from a masked face, a reference and a window of sound to the speaking face.

The data flow is MuseTalk's: latents of the face with its lower half black and of the idle face in; the prompts with
positional encoding; timestep 0, no noise; out come latents of the speaking face. First these are held against the
encoder's own latents of the true face, which is cheap and teaches what sound does to a mouth; then pictures count,
behind the decoder, which goes on learning at a lower rate. The reference is the idle face, as at serving; now and then
another spoken face of the pose, so that its mouth is not to be trusted. Where nothing is said, the idle face itself is
wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from export.modules import UNetStep
from export.training.corpus import SPLITS, Split
from export.training.faces import BUNDLED_ROWS, SPOKEN, Faces
from export.training.latents import FIRST_SPOKEN, IDLE, MASKED
from export.training.loop import device
from export.training.pixels import lip_weights, picture_loss, psnr, to_rgb
from export.training.windows import RECORDINGS
from lipserve.contract import MASKED_FROM_ROW, N_LAYERS, STATES_PER_FRAME

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]

OPEN_REFERENCE_SHARE = 0.12  # of references that are not idle
LIP_WEIGHT = 6.0
UPPER_WEIGHT = 0.25  # of the upper half, which serving does not show
LATENT_SHARE = 0.75  # of the steps, in which latents are all that counts
LATENT_WEIGHT = 0.5  # of the latents' error in the steps after
SILENT_SHARE = 0.06  # of faces that hear noise or nothing and rest
BUNDLED_SHARE = 0.25  # of training faces that are of the bundled people
WINDOW_NOISE = 0.03  # on the prompts
EDGE_SHARE = 0.06  # of windows that begin before the sound, and as many that end behind it: zeros, as at serving
VALIDATION = 64  # faces
DARK = -0.45  # RGB level, averaged, below which a pixel between the lips counts as opening

ROWS, COLUMNS = slice(14, 32), slice(3, 29)  # of the latents: the part whose picture is looked at, mouth and chin
CELL = 8  # pixels of a latent's side


class Heard(NamedTuple):
    """spoken: float16 (n, K, R, 50, 384); silent: float16 (m, 50, 384). See windows.py."""

    spoken: F16
    silent: F16

    @classmethod
    def open(cls, folder: Path, split: Split) -> Heard:
        place = folder / "faces" / split
        return cls(np.load(place / "windows.npy", mmap_mode="r"), np.load(place / "silence.npy"))


class Speaking(NamedTuple):
    """Faces to be made to speak, and how they should look.

    seen: float16 (n, 8, 32, 32), masked 4 then reference 4; wanted: float16 (n, 4, 32, 32); windows: float16
    (n, 50, 384); lips: int16 (n, 4); idle, target: uint8 (n, 256, 256, 3), BGR
    """

    seen: F16
    wanted: F16
    windows: F16
    lips: NDArray[np.int16]
    idle: U8
    target: U8


class UNetStage:
    """See loop.Stage. `steps`: of the whole run."""

    name, number = "unet", 3

    def __init__(self, unet: nn.Module, vae: AutoencoderTiny, folder: Path, batch_size: int, steps: int) -> None:
        self._net = UNetStep(unet).to(device()).train()
        self.vae, self._size = vae.to(device(), memory_format=torch.channels_last), batch_size
        self._pixels_from = round(LATENT_SHARE * steps)
        self._people = {split: People(folder, split) for split in SPLITS}

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self._net.unet, "decoder": self.vae.decoder}

    def batch(self, rng: np.random.Generator) -> Speaking:
        return self._people["train"].speaking(self._size, rng)

    def loss(self, batch: Speaking, step: int) -> tuple[Tensor, dict[str, float]]:
        inside = lip_weights(batch.lips)
        weights = torch.ones_like(inside)
        weights[:, :, :MASKED_FROM_ROW] = UPPER_WEIGHT
        weights = weights + LIP_WEIGHT * inside
        latents = self._speak(batch)
        coarse = functional.avg_pool2d(weights, CELL)
        gap = ((latents - _tensor(batch.wanted)).abs() * coarse).mean() / coarse.mean()
        numbers = {"latents": gap.item()}
        if step < self._pixels_from:
            return gap, numbers
        made = self._picture(latents[:, :, ROWS, COLUMNS])
        target, weights, inside = (_part(whole) for whole in (to_rgb(batch.target), weights, inside))
        pixels = picture_loss(made, target, weights)
        numbers |= {"pixels": pixels.item(), "psnr_lips": psnr(made.detach(), target, inside)}
        return pixels + LATENT_WEIGHT * gap, numbers

    def evaluate(self) -> dict[str, float]:
        """On people, voices and texts never trained on: lips in dB, and how the opening follows."""
        batch = self._people["val"].speaking(VALIDATION, np.random.default_rng(3), evaluation=True)
        latents = torch.cat([self._speak(part) for part in _parts(batch)])
        made = torch.cat([self._picture(part).clamp(-1, 1) for part in torch.split(latents, 8)])
        target, idle, inside = to_rgb(batch.target), to_rgb(batch.idle), lip_weights(batch.lips)
        return {
            "latents": float((latents - _tensor(batch.wanted)).abs().mean()),
            "psnr_lips": psnr(made, target, inside),
            "psnr_idle": psnr(idle, target, inside),  # of a mouth that never moves, for comparison
            "psnr": psnr(made, target, torch.ones_like(inside)),
            "dark_correlation": float(np.corrcoef(_darkness(made, inside), _darkness(target, inside))[0, 1]),
        }

    def _speak(self, batch: Speaking) -> Tensor:
        """Latents of the speaking face, float32: as export.modules.UNetStep, without its rounding to half."""
        prompts = _tensor(batch.windows) + self._net.positions
        timestep = torch.zeros((), dtype=torch.int64, device=prompts.device)
        latents: Tensor = self._net.unet(_tensor(batch.seen), timestep, encoder_hidden_states=prompts).sample
        return latents.float()

    def _picture(self, latents: Tensor) -> Tensor:
        """RGB in [-1, 1] of any part of latents."""
        scaled = (latents / self.vae.config.scaling_factor).contiguous(memory_format=torch.channels_last)
        made: Tensor = self.vae.decode(scaled).sample
        return made.float()


class People:
    """The faces of one split with all that was worked out about them."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._faces, self._heard = Faces.open(folder, split), Heard.open(folder, split)
        self._latents: F16 = np.load(folder / "faces" / split / "latents.npy", mmap_mode="r")
        self._rows = np.flatnonzero(self._faces.done)
        self._bundled = self._rows[self._rows < BUNDLED_ROWS]  # in training alone: see faces.identity

    def speaking(self, count: int, rng: np.random.Generator, evaluation: bool = False) -> Speaking:
        """Poses at random with one of their spoken faces; in evaluation the idle reference, and a bad recording."""
        rows = rng.choice(self._rows, count)
        columns = rng.integers(SPOKEN, size=count)
        recordings = rng.integers(1 if evaluation else 0, RECORDINGS, size=count)
        if not evaluation:
            rows = np.where(rng.random(count) < BUNDLED_SHARE, rng.choice(self._bundled, count), rows)
        heard = self._heard.spoken[rows, columns, recordings]
        wanted, reference = FIRST_SPOKEN + columns, np.full(count, IDLE)
        if not evaluation:
            others = FIRST_SPOKEN + (columns + rng.integers(1, SPOKEN, size=count)) % SPOKEN
            reference = np.where(rng.random(count) < OPEN_REFERENCE_SHARE, others, IDLE)
            silent = rng.random(count) < SILENT_SHARE
            wanted = np.where(silent, IDLE, wanted)
            heard[silent] = self._heard.silent[rng.integers(len(self._heard.silent), size=int(silent.sum()))]
            heard = (heard + WINDOW_NOISE * rng.standard_normal(heard.shape, np.float32)).astype(np.float16)
            _cut_off(heard, rng)
        return Speaking(
            np.concatenate((self._latents[rows, MASKED], self._latents[rows, reference]), axis=1),
            self._latents[rows, wanted],
            heard,
            self._faces.lips[rows],
            self._faces.crops[rows, 0],
            self._faces.crops[rows, wanted - IDLE],
        )


def _cut_off(windows: F16, rng: np.random.Generator) -> None:
    """Zeros in the first states of some windows, and in the last of others, in place; never in the middle two."""
    fate, lost = rng.random(len(windows)), N_LAYERS * rng.integers(1, STATES_PER_FRAME // 2, size=len(windows))
    for window, share, count in zip(windows, fate, lost.tolist(), strict=True):
        if share < EDGE_SHARE:
            window[:count] = 0
        elif share > 1 - EDGE_SHARE:
            window[-count:] = 0


def _tensor(values: F16) -> Tensor:
    return torch.from_numpy(values).to(device()).float()


def _part(pictures: Tensor) -> Tensor:
    """The pixels of ROWS and COLUMNS: (n, c, 144, 208) of (n, c, 256, 256)."""
    rows, columns = (slice(where.start * CELL, where.stop * CELL) for where in (ROWS, COLUMNS))
    return pictures[:, :, rows, columns]


def _parts(batch: Speaking, size: int = 8) -> list[Speaking]:
    starts = range(0, len(batch.seen), size)
    fields = [tuple(field[start : start + size] for field in batch) for start in starts]
    return [Speaking(*field) for field in fields]  # type: ignore[arg-type]


def _darkness(faces: Tensor, inside: Tensor) -> NDArray[np.float32]:
    """The share of dark pixels around the lips: float32 (n,)."""
    dark = ((DARK - faces.mean(dim=1, keepdim=True)) * 8).sigmoid() * inside
    return np.asarray((dark.sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3))).cpu().numpy(), np.float32)
