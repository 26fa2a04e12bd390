"""The demo profile's VAE: wide where pictures are small, narrow where they are large.

On a CPU a convolution costs by the pixel, so nothing is convolved at the full 256 pixels: the first and the last layer
trade 2 × 2 pixels for channels. Five times the parameters of an `AutoencoderTiny` of 16 channels at four fifths of its
time. Built of diffusers' blocks, held by its `AutoencoderTiny`.

The mean colour of each 8 × 8 pixels goes past the network: three latents begin as it, and the picture begins as those
three enlarged. A small VAE left to itself keeps light and dark and lets hues go (see docs/decisions/0008).
"""

from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn
from torch.nn import functional

from lipserve import contract

WIDTHS = (16, 32, 64)  # channels at 128, 64 and 32 pixels
BLOCKS = (2, 2, 3)  # residual blocks at each
FOLD = 2  # pixels of a picture's side that become channels
FOLDED = 3 * FOLD * FOLD  # channels of a picture folded so
CELL = contract.FACE_SIZE // contract.LATENT_SIZE  # pixels of a latent's side
COLOURS = 3  # the first latents, which begin as RGB

LATENT_REACH = 3.0  # latents beyond this add nothing, as in TAESD
RESIDUAL_GAIN = 0.5  # of the last convolution of an untrained block, so that a chain of blocks does not grow
LATENT_GAIN = 0.2  # of the last convolution of an untrained encoder, so that latents are of the order of 1
PICTURE_GAIN = 0.1  # of the last convolution of an untrained decoder: about 40 levels of noise around the colours


class Encoder(nn.Module):
    """RGB pictures in [-1, 1] to latents: float32 (n, 3, 256, 256) -> float32 (n, 4, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(FOLD), nn.Conv2d(FOLDED, WIDTHS[0], 3, padding=1)]
        for level, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            if level:
                layers.append(nn.Conv2d(WIDTHS[level - 1], width, 3, padding=1, stride=2, bias=False))
            layers += _blocks(width, blocks)
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(WIDTHS[-1], contract.LATENT_CHANNELS, 3, padding=1)
        _initialise(self)
        self.last.weight.data.mul_(LATENT_GAIN)

    def forward(self, pictures: Tensor) -> Tensor:
        """Latents of pictures, of any range."""
        colours = functional.pad(
            functional.avg_pool2d(pictures, CELL), (0, 0, 0, 0, 0, contract.LATENT_CHANNELS - COLOURS)
        )
        latents: Tensor = self.last(self.layers(pictures)) + colours
        return latents


class Decoder(nn.Module):
    """Latents to RGB pictures about [-1, 1]: float32 (n, 4, 32, 32) -> float32 (n, 3, 256, 256)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(contract.LATENT_CHANNELS, WIDTHS[-1], 3, padding=1), nn.ReLU()]
        for level in range(len(WIDTHS) - 1, -1, -1):
            layers += _blocks(WIDTHS[level], BLOCKS[level])
            if level:
                layers += [
                    nn.Upsample(scale_factor=2, mode="nearest"),
                    nn.Conv2d(WIDTHS[level], WIDTHS[level - 1], 3, padding=1, bias=False),
                ]
        self.last = nn.Conv2d(WIDTHS[0], FOLDED, 3, padding=1)
        self.layers = nn.Sequential(*layers)
        self.unfold = nn.PixelShuffle(FOLD)
        _initialise(self)
        self.last.weight.data.mul_(PICTURE_GAIN)

    def forward(self, latents: Tensor) -> Tensor:
        """Pictures of latents; zero is mid grey."""
        bounded = (latents / LATENT_REACH).tanh() * LATENT_REACH
        colours = functional.interpolate(latents[:, :COLOURS], scale_factor=float(CELL), mode="bilinear")
        pictures: Tensor = self.unfold(self.last(self.layers(bounded))) + colours
        return pictures


def build_vae() -> AutoencoderTiny:
    """The VAE, randomly initialised: (n, 3, 256, 256) <-> (n, 4, 32, 32), scaling factor 1."""
    vae = AutoencoderTiny(latent_channels=contract.LATENT_CHANNELS)
    vae.encoder, vae.decoder = Encoder(), Decoder()
    return vae


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [AutoencoderTinyBlock(width, width, "relu") for _ in range(count)]


def _initialise(module: nn.Module) -> None:
    """He et al. 2015, for layers followed by a ReLU; biases 0, residual branches damped."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, AutoencoderTinyBlock):
            part.conv[-1].weight.data.mul_(RESIDUAL_GAIN)
