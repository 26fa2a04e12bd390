"""MuseTalk's networks in fewer operators, computing what they did: for the graphs, in place, before anything is halved.

The UNet is called with timestep 0 only, so what its time projections add to each block is a constant: it goes into
the bias of the convolution before it, and the projections go. Attention is written as the products and the softmax that
ONNX Runtime and TensorRT look for, with its scale in the weights of the query. `simplify` holds the result to what was
there.
"""

from __future__ import annotations

from math import sqrt
from typing import cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from export.errors import GraphUnfit
from export.gate import Bounds, Check, measured
from export.networks import Networks
from lipserve import contract

UNCHANGED = Bounds(1e-4, 1e-5)  # absolute, in float32: latents have a deviation of about 1, pictures are in [-1, 1]
DECODED = contract.Tensor("decoded", "float32", (3, contract.FACE_SIZE, contract.FACE_SIZE))  # RGB, in [-1, 1]
ENCODED = contract.Tensor("encoded", "float32", contract.LATENTS.shape)
STEPPED = contract.Tensor("stepped", "float32", contract.LATENTS.shape)
SEED = 20_261_128


def simplify(networks: Networks) -> list[Check]:
    """Write UNet and VAE in fewer operators. Their weights' identity is another afterwards: ask for it before.

    Raises ExportRefused if an output moved beyond `UNCHANGED`.
    """
    before = _outputs(networks)
    if isinstance(networks.unet, UNet2DConditionModel):
        fold_timestep(networks.unet)
    for network in (networks.unet, networks.vae):
        write_attention_out(network)
    after = _outputs(networks)
    checks = [
        measured(name, tensor, before[name, tensor].numpy(), values.numpy(), UNCHANGED)
        for (name, tensor), values in after.items()
    ]
    for check in checks:
        check.require()
    return checks


def _outputs(networks: Networks) -> dict[tuple[str, contract.Tensor], Tensor]:
    """What the networks make of one seeded sample, by the model that each is exported as."""
    random = torch.Generator().manual_seed(SEED)

    def sample(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=random)

    prompts, latents = sample(*contract.AUDIO_FEATURES.shape), sample(*contract.FACE_LATENTS.shape)
    unscaled, pictures = sample(*contract.LATENTS.shape), sample(*DECODED.shape).clamp(-1, 1)
    with torch.inference_mode():
        step = networks.unet(latents, torch.zeros((), dtype=torch.int64), encoder_hidden_states=prompts).sample
        encoded = networks.vae.encode(pictures).latent_dist.mode()
        decoded = networks.vae.decode(unscaled).sample
    return {
        (contract.UNET.name, STEPPED): step,
        (contract.VAE_ENCODER.name, ENCODED): encoded,
        (contract.VAE_DECODER.name, DECODED): decoded,
    }


# -- the timestep -----------------------------------------------------------------------------------------------------


class NoEmbedding(nn.Module):
    """In the place of a UNet's embedding of the timestep, once the blocks have it in their biases."""

    def forward(self, *_: object) -> None:
        return None


@torch.no_grad()
def fold_timestep(unet: UNet2DConditionModel) -> int:
    """Put what timestep 0 adds to each block into the bias of its first convolution; returns the parameters that went.

    h = conv1(…) + W·silu(e) + b, where e, the embedding, is constant: conv1.bias += W·silu(e) + b.
    """
    had = sum(parameter.numel() for parameter in unet.parameters())
    timestep = torch.zeros(1, dtype=torch.int64)
    embedding = unet.time_embedding(unet.time_proj(timestep).to(unet.dtype)).double()
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D) and block.time_emb_proj is not None:
            if block.time_embedding_norm != "default":
                raise GraphUnfit("The UNet", f"has a block that takes its timestep as {block.time_embedding_norm}")
            projection = block.time_emb_proj
            entered = embedding if block.skip_time_act else block.nonlinearity(embedding)
            added = entered @ projection.weight.double().T + projection.bias.double()
            block.conv1.bias.copy_((block.conv1.bias.double() + added[0]).to(block.conv1.bias.dtype))
            block.time_emb_proj = None
    unet.time_proj, unet.time_embedding = nn.Identity(), NoEmbedding()
    return int(had - sum(parameter.numel() for parameter in unet.parameters()))


# -- attention --------------------------------------------------------------------------------------------------------


class PlainAttention:
    """An attention processor of diffusers': softmax(q·kᵀ)·v, the query scaled already. Of a mask and of a time
    embedding, which its callers name, there is none."""

    def __call__(
        self,
        attention: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> Tensor:
        """(n, tokens, width), or (n, width, h, w) as the VAE has it; prompts (n, m, cross width) -> the same shape."""
        pictures = hidden_states.dim() == 4
        tokens = hidden_states.flatten(2).transpose(1, 2) if pictures else hidden_states
        if attention.group_norm is not None:
            tokens = attention.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        context = tokens if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attention.to_q(tokens), attention.to_k(context), attention.to_v(context)
        if attention.heads == 1:  # the VAE's: as it is, since turning an axis of one costs a GPU as much as any
            mixed = torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
        else:
            weights = torch.softmax(_heads(query, attention) @ _heads(key, attention, 3, 1), dim=-1)
            mixed = (weights @ _heads(value, attention)).transpose(1, 2).flatten(2)
        mixed = attention.to_out[0](mixed)
        if pictures:
            mixed = mixed.transpose(1, 2).reshape(hidden_states.shape)
        if attention.residual_connection:
            mixed = mixed + hidden_states
        return cast(Tensor, mixed if attention.rescale_output_factor == 1 else mixed / attention.rescale_output_factor)


def _heads(tokens: Tensor, attention: Attention, *last: int) -> Tensor:
    """(n, tokens, heads · d) -> (n, heads, tokens, d), or with the last two axes in another order."""
    rows, columns = last or (1, 3)
    count, length, width = tokens.shape
    return tokens.reshape(count, length, attention.heads, width // attention.heads).permute(0, 2, rows, columns)


@torch.no_grad()
def write_attention_out(network: nn.Module) -> None:
    """Give every attention of the network the plain processor, and its scale, 1/√d, to the weights of the query."""
    for attention in network.modules():
        if not isinstance(attention, Attention) or isinstance(attention.processor, PlainAttention):
            continue
        unusual = (attention.norm_q, attention.norm_k, attention.spatial_norm, attention.norm_cross)
        if any(part is not None for part in unusual):
            raise GraphUnfit("An attention", "normalises its queries, keys or prompts: it is no plain product")
        scale = 1 / sqrt(attention.to_q.out_features / attention.heads)
        for parameter in attention.to_q.parameters():
            parameter.mul_(scale)
        attention.set_processor(PlainAttention())
