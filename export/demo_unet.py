"""The demo profile's UNet: what sound changes in the reference face, added to that face.

MuseTalk's UNet makes the whole face anew. A small one is better used on the mouth alone: what does not change comes
from the reference, exactly. Nothing normalises the last features, since how much changes is in their size.
"""

from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from lipserve import contract

CHANNELS = (48, 64, 96)  # at 32, 16 and 8 pixels
HEADS = 4


class DemoUNet(nn.Module):
    """Called as diffusers' UNet2DConditionModel is."""

    def __init__(self) -> None:
        super().__init__()
        self.change = UNet2DConditionModel(
            sample_size=contract.LATENT_SIZE,
            in_channels=contract.FACE_LATENT_CHANNELS,
            out_channels=contract.LATENT_CHANNELS,
            block_out_channels=CHANNELS,
            # No attention at 32 pixels: 1024 x 1024 scores cost half of the network, and sound says as much at 16.
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=contract.AUDIO_WIDTH,
            attention_head_dim=HEADS,  # diffusers means their number
            norm_num_groups=16,
        )
        self.change.conv_norm_out = nn.Identity()
        nn.init.normal_(self.change.conv_out.weight, std=1e-3)  # an untrained one repeats the reference
        nn.init.zeros_(self.change.conv_out.bias)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> UNet2DConditionOutput:
        """sample: (n, 8, 32, 32), masked 4 then reference 4; encoder_hidden_states: (n, 50, 384) -> (n, 4, 32, 32)."""
        change = self.change(sample, timestep, encoder_hidden_states=encoder_hidden_states).sample
        return UNet2DConditionOutput(sample=sample[:, contract.LATENT_CHANNELS :] + change)
