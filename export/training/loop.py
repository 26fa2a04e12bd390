"""A training run that can be killed at any time and resumed to the very same weights.

A step depends on the seed and its own number, never on what ran before it but the weights: batches are drawn by a
generator made of both. So a checkpoint is the weights, the optimiser's state and the step, and resuming is exact on the
same device. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

Batch = TypeVar("Batch")

EMA_DECAY = 0.998
LOG_EVERY = 20  # steps
CLIP_NORM = 1.0


class Stage(Protocol, Generic[Batch]):
    """What is trained, and on what."""

    name: str
    number: int  # makes its batches differ from other stages'

    def modules(self) -> Mapping[str, nn.Module]:
        """Everything that learns."""

    def batch(self, rng: np.random.Generator) -> Batch:
        """One batch, drawn with this generator alone. Called from another thread."""

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        """What to minimise, and numbers for people."""

    def evaluate(self) -> dict[str, float]:
        """Scores on the validation split."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast: the rate rises over `warm_up` steps, then falls as a cosine to a hundredth."""

    steps: int
    rate: float
    warm_up: int = 100
    weight_decay: float = 1e-4
    checkpoint_every: int = 100
    evaluate_every: int = 500
    rates: Mapping[str, float] | None = None  # factors of single modules

    def factor(self, step: int) -> float:
        """Of the rate at a step."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        share = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision() -> torch.autocast:
    """Convolutions and products in bfloat16 where the hardware has it, twice as fast; weights and sums stay float32."""
    kind = device().type
    able = torch.cuda.is_bf16_supported() if kind == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(kind, torch.bfloat16, enabled=able)


class Run(Generic[Batch]):
    """One stage's training in a folder: `<name>.pt`, the checkpoint, and `<name>.jsonl`, the log."""

    def __init__(self, stage: Stage[Batch], plan: Plan, folder: Path, seed: int) -> None:
        self.stage, self.plan, self.seed = stage, plan, seed
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.log = folder / f"{stage.name}.pt", folder / f"{stage.name}.jsonl"
        self.step = 0
        rates = plan.rates or {}
        groups = [
            {"params": [p for p in module.parameters() if p.requires_grad], "lr": plan.rate * rates.get(name, 1.0)}
            for name, module in stage.modules().items()
        ]
        self._base = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=plan.weight_decay, betas=(0.9, 0.98))
        self._average = {name: _copied(module) for name, module in stage.modules().items()}
        if self.file.is_file():
            self._load()

    @property
    def is_done(self) -> bool:
        return self.step >= self.plan.steps

    def train(self, until: int | None = None) -> None:
        """Go on to the plan's end, or to step `until`; the last step is always saved."""
        last = min(self.plan.steps, until if until is not None else self.plan.steps)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[words]}"), refresh_per_second=0.5) as bars:
            bar = bars.add_task(self.stage.name, total=self.plan.steps, completed=self.step, words="")
            for batch, waited in self._batches(last):
                started = time.monotonic()
                numbers = self._step(batch)
                numbers |= {"seconds": time.monotonic() - started, "waited": waited}
                words = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
                bars.update(bar, completed=self.step, words=words)
                if self.step % LOG_EVERY == 0:
                    self._write_log(numbers)
                if self.step % self.plan.evaluate_every == 0 or self.step == self.plan.steps:
                    self._write_log(self.scores())
                if self.step % self.plan.checkpoint_every == 0 or self.step == last:
                    self.save()

    def scores(self) -> dict[str, float]:
        """The averaged weights' scores on the validation split; the weights being trained are left as they are."""
        modules = self.stage.modules()
        trained = {name: _copied(module) for name, module in modules.items()}
        self.use_average()
        try:
            with torch.inference_mode():
                return self.stage.evaluate()
        finally:
            for name, module in modules.items():
                module.load_state_dict(trained[name])

    def use_average(self) -> None:
        """Put the averaged weights, which are the result, into the modules."""
        for name, module in self.stage.modules().items():
            module.load_state_dict(self._average[name])

    def save(self) -> None:
        """The checkpoint, whole or not at all."""
        state = {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.stage.modules().items()},
            "average": self._average,
            "optimiser": self._optimiser.state_dict(),
        }
        draft = self.file.with_suffix(".part")
        torch.save(state, draft)
        draft.replace(self.file)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.file, map_location=device(), weights_only=True)
        self.step = state["step"]
        for name, module in self.stage.modules().items():
            module.load_state_dict(state["modules"][name])
        self._average = state["average"]
        self._optimiser.load_state_dict(state["optimiser"])

    def _batches(self, last: int) -> Iterator[tuple[Batch, float]]:
        """The batches of the steps to come, each drawn while the one before is worked on, and the seconds waited."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._draw, self.step)
            for step in range(self.step, last):
                started = time.monotonic()
                batch = coming.result()
                waited = time.monotonic() - started
                if step + 1 < last:
                    coming = pool.submit(self._draw, step + 1)
                yield batch, waited

    def _draw(self, step: int) -> Batch:
        return self.stage.batch(np.random.default_rng([self.seed, self.stage.number, step]))

    def _step(self, batch: Batch) -> dict[str, float]:
        for group, base in zip(self._optimiser.param_groups, self._base, strict=True):
            group["lr"] = base * self.plan.factor(self.step)
        self._optimiser.zero_grad(set_to_none=True)
        with half_precision():
            loss, numbers = self.stage.loss(batch, self.step)
        if not torch.isfinite(loss):
            raise RuntimeError(f"{self.stage.name}: the loss at step {self.step} is {loss.item()}")
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for module in self.stage.modules().values() for p in module.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        self._optimiser.step()
        self.step += 1
        self._follow()
        return {"loss": loss.item()} | numbers

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights, faster in the beginning."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for name, module in self.stage.modules().items():
            for key, value in module.state_dict().items():
                average = self._average[name][key]
                if value.is_floating_point():
                    average.lerp_(value, 1 - decay)
                else:
                    average.copy_(value)

    def _write_log(self, numbers: dict[str, float]) -> None:
        rounded = {name: float(f"{value:.5g}") for name, value in numbers.items()}
        with self.log.open("a") as file:
            file.write(json.dumps({"step": self.step} | rounded) + "\n")


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
