"""Stage two: the audio encoder, taught to know the mouth.

Whisper learned its states from text; these are learned from the mouth itself. Each layer's states have a small linear
head that tells the mouth's controls, its opening and the viseme at that instant; the heads are thrown away, and the
states keep what the heads needed, in a form that is linear and local, which makes the UNet's work easy.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from export.speech.coarticulation import CONTROLS
from export.speech.visemes import NAMES
from export.training.corpus import Corpus
from export.training.loop import device
from export.training.segments import Segment, draw
from lipserve.contract import AUDIO_WIDTH, N_LAYERS

F32 = NDArray[np.float32]

OUTPUTS = len(CONTROLS) + 1 + len(NAMES)  # controls, opening, viseme classes
CONTROL_WEIGHTS = {"open": 2.0, "jaw": 2.0, "press": 1.5}  # of a control's squared error; the others count 1
OPENING_WEIGHT = 6.0
CLASS_WEIGHT = 0.02
EARLIER_WEIGHT = 0.25  # of each layer's loss but the last one's
VALIDATION = 8  # segments
SHUT = 0.06  # predicted opening below which lips count as closed


class Heard(NamedTuple):
    """log_mel: float32 (n, 80, 3000); controls (n, 1500, 9); openings (n, 1500); classes; weights (n, 1500)."""

    log_mel: F32
    controls: F32
    openings: F32
    classes: NDArray[np.int64]
    weights: F32


class Heads(nn.Module):
    """What a layer's states say about the mouth: (n, 1500, 5, 384) -> (n, 1500, 4, OUTPUTS), without the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(N_LAYERS - 1, AUDIO_WIDTH, OUTPUTS))
        self.bias = nn.Parameter(torch.zeros(N_LAYERS - 1, OUTPUTS))

    def forward(self, states: Tensor) -> Tensor:
        normed = functional.layer_norm(states[:, :, 1:], (AUDIO_WIDTH,))
        return torch.einsum("ntlc,lco->ntlo", normed, self.weight) + self.bias


class AudioStage:
    """See loop.Stage."""

    name, number = "audio", 2

    def __init__(self, encoder: nn.Module, folder: Path, batch_size: int) -> None:
        self.encoder = encoder.to(device())
        self.heads = Heads().to(device())
        self._size = batch_size
        self._train, self._val = Corpus(folder, "train"), Corpus(folder, "val")
        self._scale = torch.tensor([CONTROL_WEIGHTS.get(name, 1.0) for name in CONTROLS], device=device())

    def modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "heads": self.heads}

    def batch(self, rng: np.random.Generator) -> Heard:
        return heard([draw(self._train, rng) for _ in range(self._size)])

    def loss(self, batch: Heard, step: int) -> tuple[Tensor, dict[str, float]]:
        told = self.heads(self.encoder(_tensor(batch.log_mel)))
        weights = _tensor(batch.weights)[..., None]
        controls, openings, classes = _tensor(batch.controls), _tensor(batch.openings), _tensor(batch.classes)
        ends = len(CONTROLS), len(CONTROLS) + 1
        error = (told[..., : ends[0]] - controls[:, :, None]).square() @ self._scale
        gap = (told[..., ends[0]] - openings[:, :, None]).square() * OPENING_WEIGHT
        logits = told[..., ends[1] :].permute(0, 3, 1, 2)
        names = functional.cross_entropy(logits, classes[:, :, None].expand(*told.shape[:3]), reduction="none")
        layers = ((error + gap + CLASS_WEIGHT * names) * weights).sum(dim=(0, 1)) / weights.sum()
        loss = layers[-1] + EARLIER_WEIGHT * layers[:-1].sum()
        return loss, {
            "last": layers[-1].item(),
            "names": (names[..., -1:] * weights).sum().item() / weights.sum().item(),
        }

    def evaluate(self) -> dict[str, float]:
        """How the last layer's opening follows the truth on held-out voices and texts, clean and recorded badly."""
        scores: dict[str, float] = {}
        for name, augment in (("clean", False), ("worse", True)):
            rng = np.random.default_rng(2)
            batch = heard([draw(self._val, rng, augment) for _ in range(VALIDATION)])
            told = torch.cat([self.heads(self.encoder(part)) for part in _tensor(batch.log_mel).chunk(VALIDATION)])
            said = told[:, :, -1, len(CONTROLS)].cpu().numpy()
            counted = batch.weights == 1
            truth, guess = batch.openings[counted], said[counted]
            names = told[:, :, -1, len(CONTROLS) + 1 :].argmax(-1).cpu().numpy()[counted]
            shut = batch.classes[counted] == NAMES.index("pbm")
            scores |= {
                f"{name}_correlation": float(np.corrcoef(truth, guess)[0, 1]),
                f"{name}_error": float(np.abs(truth - guess).mean()),
                f"{name}_visemes": float((names == batch.classes[counted]).mean()),
                f"{name}_shut": float((guess[shut & (truth < 0.01)] < SHUT).mean()),
            }
        return scores


def heard(segments: list[Segment]) -> Heard:
    """Segments side by side."""
    return Heard(
        np.stack([segment.log_mel for segment in segments]),
        np.stack([segment.controls for segment in segments]),
        np.stack([segment.openings for segment in segments]),
        np.stack([segment.classes for segment in segments]),
        np.stack([segment.weights for segment in segments]),
    )


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(values).to(device())
