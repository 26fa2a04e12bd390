"""The stages in order, each from where it was left: data, three networks, the result.

Knows what each stage needs of the ones before; everything lies in one folder, and every function may be called again
after being killed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress, track

from export import demo
from export.networks import Networks
from export.pipeline import write_graphs
from export.training import corpus, faces, weights
from export.training.corpus import SPLITS
from export.training.loop import Plan, Run

VAE = Plan(steps=3500, rate=2e-3, warm_up=100, evaluate_every=250)
AUDIO = Plan(steps=3700, rate=2e-3, warm_up=100, evaluate_every=100)
UNET = Plan(steps=2700, rate=1.2e-3, warm_up=200, evaluate_every=250, rates={"decoder": 0.3})


FURTHER_STEPS, FURTHER_RATE = 0.2, 0.5  # of a plan's, for a network that begins with trained weights


@dataclass(frozen=True)
class Sizes:
    """How much of everything. Counts are of the training split, then of validation."""

    utterances: tuple[int, int] = (10400, 240)
    identities: tuple[int, int] = (160, 24)
    vae: Plan = VAE
    vae_batch: int = 8
    audio: Plan = AUDIO
    audio_batch: int = 2
    unet: Plan = UNET
    unet_batch: int = 16


TINY = Sizes(
    utterances=(12, 4),
    identities=(2, 1),
    vae=Plan(steps=6, rate=1e-3, warm_up=2, checkpoint_every=3, evaluate_every=6),
    vae_batch=2,
    audio=Plan(steps=2, rate=3e-4, warm_up=1, checkpoint_every=1, evaluate_every=2),
    audio_batch=1,
    unet=Plan(steps=4, rate=3e-4, warm_up=2, checkpoint_every=2, evaluate_every=4),
    unet_batch=2,
)


@dataclass(frozen=True)
class Workshop:
    """One training: where it lies, its seed and its size.

    `face_models`: the folder of MediaPipe's two networks; `start`: graphs that the networks begin with, instead of
    with random weights; one whose stage is left out stays as it was
    """

    folder: Path
    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)
    face_models: Path = Path("models/faces")
    workers: int = 2
    start: Path | None = None

    def speech(self) -> None:
        """Synthesise both splits."""
        for split, total in zip(SPLITS, self.sizes.utterances, strict=True):
            done = len(list((self.folder / "speech" / split).glob("*.npz")))
            made = corpus.build(self.folder, split, total, self.seed, self.workers)
            _follow(made, f"speech {split}", max(0, total - done))

    def faces(self) -> None:
        """Render both splits."""
        for split, total in zip(reversed(SPLITS), reversed(self.sizes.identities), strict=True):
            made = faces.build(self.folder, split, total, self.seed, self.face_models, self.workers)
            _follow(made, f"faces {split}", total)

    def vae(self) -> Run[Any]:
        """The first stage, ready to train."""
        return self._vae(self._begun())

    def audio(self) -> Run[Any]:
        """The second stage, ready to train."""
        return self._audio(self._begun())

    def latents(self) -> None:
        """The encoder's latents of all faces."""
        from export.training import latents

        networks = self._begun()
        self._vae(networks).use_average()
        for split in SPLITS:
            _follow_counted(latents.build(self.folder, split, networks.vae), f"latents {split}")

    def windows(self) -> None:
        """The audio encoder's prompts for all faces."""
        from export.training import windows

        networks = self._begun()
        self._audio(networks).use_average()
        for split in SPLITS:
            made = windows.build(self.folder, split, networks.audio_encoder.eval(), self.seed)
            _follow_counted(made, f"windows {split}")

    def unet(self) -> Run[Any]:
        """The third stage, ready to train on the results of the others."""
        return self._unet(self._begun())

    def pack(self, out: Path) -> dict[str, Any]:
        """Write the graphs with the averaged weights of all stages and `training.json`; returns what that says."""
        networks = self._begun()
        runs = {"audio": self._audio(networks), "unet": self._unet(networks)}
        scores = {name: {"steps": run.step} | run.scores() for name, run in runs.items()}
        for run in runs.values():
            run.use_average()
        weights.round_to_half(_at_rest(networks))
        written = write_graphs(networks, out)
        report = {
            "weights_id": networks.weights_id,
            "seed": self.seed,
            "bytes": sum(graph.size for graph in written),
            "numbers": weights.count(networks),
            "validation": scores,
        }
        (out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
        return report

    def _begun(self) -> Networks:
        """Networks as training finds them. A checkpoint, if there is one, replaces what they hold."""
        networks = demo.build(self.seed)
        if self.start is not None:
            weights.load(networks, self.start)
        return networks

    def _vae(self, networks: Networks) -> Run[Any]:
        from export.training.vae import VaeStage

        return self._run(VaeStage(networks.vae, self.folder, self.sizes.vae_batch), self._plan(self.sizes.vae))

    def _audio(self, networks: Networks) -> Run[Any]:
        from export.training.audio import AudioStage

        return self._run(
            AudioStage(networks.audio_encoder, self.folder, self.sizes.audio_batch), self._plan(self.sizes.audio)
        )

    def _unet(self, networks: Networks) -> Run[Any]:
        from export.training.unet import UNetStage

        self._vae(networks).use_average()
        plan = self._plan(self.sizes.unet)
        return self._run(UNetStage(networks.unet, networks.vae, self.folder, self.sizes.unet_batch, plan.steps), plan)

    def _plan(self, plan: Plan) -> Plan:
        if self.start is None:
            return plan
        return replace(plan, steps=math.ceil(plan.steps * FURTHER_STEPS), rate=plan.rate * FURTHER_RATE)

    def _run(self, stage: Any, plan: Plan) -> Run[Any]:
        return Run(stage, plan, self.folder / "runs", self.seed)


def _at_rest(networks: Networks) -> Networks:
    """On the CPU and in evaluation mode, as Networks promises."""
    for module in (networks.unet, networks.vae, networks.audio_encoder):
        module.cpu().eval()
    return networks


def _follow(made: Iterator[int], words: str, total: int) -> None:
    for _ in track(made, words, total=total):
        pass


def _follow_counted(made: Iterator[tuple[int, int]], words: str) -> None:
    """A bar for work that says (done, total)."""
    with Progress() as bars:
        bar = bars.add_task(words, total=None)
        for done, total in made:
            bars.update(bar, completed=done, total=total)
