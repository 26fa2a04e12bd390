"""Stable Diffusion's decoder, from 64×64 up drawing only the rows that blending uses: `--decoder sd-vae-lower`.

With the defaults blending reads no row of a generated face above 109 of 256 (benchmarks/mask_rows.py), and a
convolution needs one row more at each of its sides, its halo. So the rows that are drawn are exactly the whole
decoder's, but for the group norms, whose mean and variance are of all rows. What the upper rows add to them is taken
from a decode of the avatar frame's own reference latents, which the generated face shares its upper half with:
`NormSums`, once per avatar frame. What the lower rows add is computed from what is there.

    mean = upper(reference) + lower(generated);  variance = the same of the squares, less mean²
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log10
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from export.errors import GraphUnfit, LowerDecoderOff
from export.gate import PSNR
from export.modules import FaceDecoder, FaceEncoder, network_dtype
from lipserve import contract

UPSAMPLED = 3  # how often the decoder doubles its rows: from 32 to 256

Normalise = Callable[[nn.GroupNorm, Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """Rows of one resolution: all there are, the first that is computed, the first that is right to the stage's end."""

    rows: int
    present: int
    valid: int

    @property
    def upper(self) -> float:
        """The share of the rows that is above those that count."""
        return self.valid / self.rows


def stages(first_row: int, layers: int) -> tuple[Stage, ...]:
    """The stages after the first doubling, so that faces are right from `first_row` on; `layers`: blocks of two
    convolutions in each, after one that follows the doubling. Each takes one row at the upper edge."""
    found: list[Stage] = []
    needed = first_row - 1  # by the last convolution
    for doubled in range(UPSAMPLED, 0, -1):
        present = max(0, (needed - 2 * layers - 1) // 2 * 2)
        found.insert(0, Stage(contract.LATENT_SIZE << doubled, present, needed))
        needed = present // 2
    return tuple(found)


class _Rows(nn.Module):
    """What both modules share: the way through the decoder, with norms as they like."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor: float = vae.config.scaling_factor
        layers = {len(block.resnets) for block in vae.decoder.up_blocks[1:]}
        self.stages = stages(contract.LOWER_FROM_ROW, layers.pop())
        norms = 2 * sum(len(block.resnets) for block in vae.decoder.up_blocks[1:]) + 1
        shape = (norms, vae.decoder.conv_norm_out.num_groups, 2)
        if layers or len(vae.decoder.up_blocks) != UPSAMPLED + 1 or shape != contract.NORM_SUMS.shape:
            raise GraphUnfit("The VAE", f"has norms of {shape} from 64×64 up; {contract.NORM_SUMS.shape} are served")

    def _enter(self, latents: Tensor) -> Tensor:
        """Latents times the scaling factor to what the first doubling takes: all rows, since they are few."""
        decoder = self.vae.decoder
        unscaled = (latents.float() / self.scaling_factor).to(network_dtype(self.vae))
        values = decoder.mid_block(decoder.conv_in(self.vae.post_quant_conv(unscaled)))
        for block in decoder.up_blocks[0].resnets:
            values = block(values, None)
        return cast(Tensor, values)

    def _climb(self, values: Tensor, cut: bool, normalise: Callable[[int, Stage], Normalise]) -> Tensor:
        """Through the stages, only their `present` rows if `cut`, to the last norm's output."""
        decoder, index, above = self.vae.decoder, 0, 0
        for stage, before, block in zip(self.stages, decoder.up_blocks, decoder.up_blocks[1:], strict=False):
            start = stage.present // 2 - above if cut else 0
            values = before.upsamplers[0](values[:, :, start:])
            above = stage.present if cut else 0
            for resnet in block.resnets:
                first, second = normalise(index, stage), normalise(index + 1, stage)
                values = _resnet(resnet, values, first, second)
                index += 2
        return functional.silu(normalise(index, self.stages[-1])(decoder.conv_norm_out, values))


class LowerDecoder(_Rows):
    """Latents to the lower rows of faces."""

    def forward(self, latents: Tensor, norm_sums: Tensor) -> Tensor:
        """Pictures of latents, black above LOWER_FROM_ROW.

        latents: float16 (n, 4, 32, 32), VAE latents times the scaling factor; norm_sums: float32 (n, 19, 32, 2), of the
        avatar frame -> faces: uint8 (n, 256, 256, 3), BGR, rounded to the nearest level
        """

        def normalise(index: int, stage: Stage) -> Normalise:
            def norm(layer: nn.GroupNorm, values: Tensor) -> Tensor:
                lower = _sums(layer, values[:, :, stage.valid - stage.present :], 1 - stage.upper)
                return _normalised(layer, values, norm_sums[:, index] + lower)

            return norm

        values = self._climb(self._enter(latents), True, normalise)
        drawn = self.vae.decoder.conv_out(values)[:, :, contract.LOWER_FROM_ROW - self.stages[-1].present :].float()
        levels = ((drawn / 2 + 0.5).clamp(0, 1) * 255).round()
        whole = functional.pad(levels.flip(1), (0, 0, contract.LOWER_FROM_ROW, 0))
        return whole.permute(0, 2, 3, 1).to(torch.uint8)


class NormSums(_Rows):
    """What the upper rows of an avatar frame add to the norms of its lower ones."""

    def forward(self, reference_latents: Tensor) -> Tensor:
        """For each norm and group the sum over its upper rows, and of their squares, over the number of all elements.

        reference_latents: float16 (n, 4, 32, 32), of the frame as it is, times the scaling factor -> norm_sums: float32
        (n, 19, 32, 2)
        """
        found: list[Tensor] = []

        def normalise(index: int, stage: Stage) -> Normalise:
            def norm(layer: nn.GroupNorm, values: Tensor) -> Tensor:
                upper = _sums(layer, values[:, :, : stage.valid], stage.upper)
                found.append(upper)
                return _normalised(layer, values, upper + _sums(layer, values[:, :, stage.valid :], 1 - stage.upper))

            return norm

        self._climb(self._enter(reference_latents), False, normalise)
        return torch.stack(found, dim=1)


def _resnet(block: Any, values: Tensor, first: Normalise, second: Normalise) -> Tensor:
    """A ResnetBlock2D of the VAE, which has no time embedding, with its norms computed by `first` and `second`."""
    inside = block.conv1(functional.silu(first(block.norm1, values)))
    inside = block.conv2(functional.silu(second(block.norm2, inside)))
    outside = values if block.conv_shortcut is None else block.conv_shortcut(values)
    scale = block.output_scale_factor
    return cast(Tensor, outside + inside if scale == 1 else (outside + inside) / scale)


def _sums(layer: nn.GroupNorm, rows: Tensor, share: float) -> Tensor:
    """Mean of some rows, and of their squares, times the rows' share of all: (n, channels, h, w) -> float32 (n, groups,
    2)."""
    groups = rows.float().reshape(rows.shape[0], layer.num_groups, -1)  # len() would fix the batch
    length = torch.linalg.vector_norm(groups, dim=2)
    return torch.stack((groups.mean(2), length * length / groups.shape[2]), dim=2) * share


def _normalised(layer: nn.GroupNorm, values: Tensor, sums: Tensor) -> Tensor:
    """A group norm by a mean and a mean square that are known: float32 (n, groups, 2)."""
    mean, square = sums[:, :, :1], sums[:, :, 1:]
    scale = (square - mean * mean).clamp(min=0).add(layer.eps).rsqrt()
    weight, bias = (p.float().reshape(layer.num_groups, -1) for p in (layer.weight, layer.bias))
    factor = scale * weight  # (n, groups, channels of a group)
    summand = bias - mean * factor
    by_channel = [part.flatten(1)[:, :, None, None] for part in (factor, summand)]
    return (values.float() * by_channel[0] + by_channel[1]).to(values.dtype)


def hold_to_whole(vae: AutoencoderKL, shut: NDArray[np.uint8], spoken: NDArray[np.uint8], least: float = PSNR) -> float:
    """PSNR, in dB, of the lower decoder against the whole one in the lower rows of the worst face: of people who speak,
    with the norm sums of the same people while their mouths are shut; both uint8 (n, 256, 256, 3), BGR.

    Raises LowerDecoderOff if it is under `least`."""
    encode, whole, lower, sums = FaceEncoder(vae), FaceDecoder(vae), LowerDecoder(vae), NormSums(vae)
    squares = []
    with torch.inference_mode():
        for before, after in zip(torch.from_numpy(shut), torch.from_numpy(spoken), strict=True):
            still, moved = (encode(crop[None])[:, contract.LATENT_CHANNELS :] for crop in (before, after))
            drawn = lower(moved, sums(still))[:, contract.LOWER_FROM_ROW :].float()
            wanted = whole(moved)[:, contract.LOWER_FROM_ROW :].float()
            squares.append(float((drawn - wanted).square().mean()))
    worst = max(squares)
    decibels = 10 * log10(255**2 / worst) if worst else inf
    if not decibels >= least:
        raise LowerDecoderOff(decibels, least)
    return decibels
