"""The demo profile's audio encoder: Whisper's input and output on convolutions that look 0.4 s to both sides.

Whisper's attention reaches over 30 s, which text needs and a mouth does not: a mouth follows its neighbours. Depthwise
convolutions over time (ConvNeXt, Liu et al. 2022, in one dimension) cost less at the same width, learn the mouth in far
fewer steps, and hear the same at every place of a segment. See docs/decisions/0008.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipserve import contract

FFN_WIDTH = 768  # Whisper-tiny has 1536
KERNEL = 11  # states, 20 ms each: four layers see 20 states to both sides


class Layer(nn.Module):
    """One residual block: (n, 384, t) -> (n, 384, t)."""

    def __init__(self) -> None:
        super().__init__()
        width = contract.AUDIO_WIDTH
        self.over_time = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, FFN_WIDTH)
        self.narrow = nn.Linear(FFN_WIDTH, width)
        nn.init.normal_(self.narrow.weight, std=0.5 * FFN_WIDTH**-0.5)

    def forward(self, states: Tensor) -> Tensor:
        heard = self.norm(self.over_time(states).transpose(1, 2))
        added: Tensor = self.narrow(functional.gelu(self.widen(heard)))
        return states + added.transpose(1, 2)


class DemoAudioEncoder(nn.Module):
    """Log-mel in Whisper's scale to five states of width 384 at 50 Hz, each of them layer-normed."""

    def __init__(self) -> None:
        super().__init__()
        width = contract.AUDIO_WIDTH
        self.conv1 = nn.Conv1d(contract.N_MELS, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1, stride=2)
        self.layers = nn.ModuleList(Layer() for _ in range(contract.N_LAYERS - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(contract.N_LAYERS))
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, log_mel: Tensor) -> Tensor:
        """Hidden states of a segment: the embedding, then each layer.

        log_mel: float32 (n, 80, 2t) -> hidden_states: float32 (n, t, 5, 384); t is 1500 at serving
        """
        states = functional.gelu(self.conv2(functional.gelu(self.conv1(log_mel))))
        found = [states]
        for layer in self.layers:
            found.append(layer(found[-1]))
        normed = [norm(state.transpose(1, 2)) for norm, state in zip(self.norms, found, strict=True)]
        return torch.stack(normed, dim=2)
