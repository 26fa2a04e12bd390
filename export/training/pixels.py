"""Pictures as tensors, and how far apart two of them are. RGB in [-1, 1], float32 (n, 3, 256, 256)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from export.training.loop import device
from lipserve.contract import FACE_SIZE

EDGE_WEIGHT = 1.0  # of differences between neighbouring pixels, which keep edges sharp
SOFT_EDGE = 9  # pixels over which the rectangle around the lips fades


def to_rgb(crops: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, 256, 256, 3) BGR to RGB in [-1, 1]."""
    channels_first = np.ascontiguousarray(crops[..., ::-1].transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first).to(device()).float() / 127.5 - 1


def lip_weights(lips: NDArray[np.int16]) -> Tensor:
    """1 in the rectangles (n, 4) of x1, y1, x2, y2, 0 outside, soft between: float32 (n, 1, 256, 256)."""
    edges = torch.from_numpy(lips.astype(np.float32)).to(device())[:, :, None]
    line = torch.arange(FACE_SIZE, device=edges.device, dtype=torch.float32)[None] + 0.5
    across = ((torch.minimum(line - edges[:, 0], edges[:, 2] - line)) / SOFT_EDGE + 0.5).clamp(0, 1)
    down = ((torch.minimum(line - edges[:, 1], edges[:, 3] - line)) / SOFT_EDGE + 0.5).clamp(0, 1)
    return (down[:, :, None] * across[:, None, :])[:, None]


def picture_loss(made: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted absolute difference of pixels, and of their steps to the right and down. weights: (n, 1, 256, 256)."""
    error = made - target
    share = weights / weights.mean()
    right = (error[..., :, 1:] - error[..., :, :-1]).abs() * share[..., :, 1:]
    down = (error[..., 1:, :] - error[..., :-1, :]).abs() * share[..., 1:, :]
    coarse = functional.avg_pool2d(error * share.sqrt(), 8).abs().mean()
    return (error.abs() * share).mean() + coarse + EDGE_WEIGHT * (right.mean() + down.mean())


def psnr(made: Tensor, target: Tensor, weights: Tensor) -> float:
    """Peak signal to noise ratio in dB of [0, 255] pictures, where the weights (n, 1, 256, 256) say."""
    error = (made.clamp(-1, 1) - target).square().mean(dim=1, keepdim=True)
    mean = (error * weights).sum() / weights.sum()
    return float(10 * torch.log10(4 / mean))


def colour_error(made: Tensor, target: Tensor) -> float:
    """Mean absolute difference of the means of 32 × 32 pixels, grey levels: how far off larger parts' colours are."""
    means = functional.avg_pool2d(made.clamp(-1, 1) - target, 32)
    return float(means.abs().mean() * 127.5)
