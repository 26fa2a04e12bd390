"""Networks in half precision, with islands of float32 where FP16 loses.

Group norms sum squares over up to 2 million values, which FP16 cannot: a graph's group norm is decomposed, and its sums
then have the graph's type, whatever torch does inside its own. They keep float32 weights and take float32 inputs. A
layer norm is one operator, which sums in float32 by itself (`stash_type` 1, the default); everything else, softmax too,
is FP16. What was measured stands in docs/gpu.md.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class GroupNormIsland(nn.Module):
    """A group norm of FP16 values, in float32: (n, channels, ...) -> the same."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        # Buffers: diffusers asks a network's first parameter for the network's dtype.
        self.register_buffer("weight", norm.weight.detach().float())
        self.register_buffer("bias", norm.bias.detach().float())

    def forward(self, values: Tensor) -> Tensor:
        return functional.group_norm(values.float(), self.num_groups, self.weight, self.bias, self.eps).half()


def halve(network: nn.Module) -> None:
    """Turn a network into FP16 with float32 islands, in place, one tensor at a time.

    The float32 weights are gone afterwards: there is no room for both of a large network.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, GroupNormIsland(child))
    for parameter in network.parameters():
        parameter.data = parameter.data.to(torch.float16)
