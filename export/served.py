"""Models that a Triton serves, held to the numbers that the profile's networks gave in torch and float32.

    python -m export.served --url HOST:PORT --profile musetalk-v15

Sends the frames of models/<profile>/reference.npz to each model and to the ensemble, in a batch of every size that
serves (gate.gate_batches), and prints how far the answers are off. The same bounds as at the export, for every frame:
on a GPU this is what confirms ONNX Runtime's arithmetic, since a CPU computes FP16 graphs in float32, and what confirms
the CUDA graphs that Triton records of an engine. Exit code 1 if a bound is broken. Needs no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from export.errors import ExportError, ServerUnavailable
from export.gate import Check, Reference, bounds_of, error_table, gate_batches, measured
from export.profiles import require_profile
from export.repository import ensemble, served_models
from lipserve import contract

TIMEOUT = 600.0  # seconds one answer may take: a CPU needs minutes for the largest batch at full size


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m export.served", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="localhost:8001", help="gRPC address of the Triton")
    parser.add_argument("--profile", default="musetalk-v15")
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    args = parser.parse_args(words)
    console = Console()
    try:
        require_profile(args.profile)
        checks = hold_served(args.url, Reference.load(args.models_dir / args.profile))
        console.print(error_table(checks, f"Triton at {args.url} against torch"))
        for check in checks:
            check.require()
    except ExportError as error:
        console.print(f"[red]refused:[/red] {escape(str(error))}")
        raise SystemExit(1) from error


def hold_served(url: str, reference: Reference) -> list[Check]:
    """Every served model and the ensemble against the reference, which passed or not.

    Raises ServerUnavailable, and GraphUnfit for an answer of another shape or dtype.
    """
    names = {contract.REFERENCE_SUMS.name} if reference.norm_sums is not None else set()
    checks = []
    for model in (*served_models(names), ensemble(names)):
        for batch in gate_batches(model):
            frames = reference.repeated(batch)
            answer = ask(url, model, frames.feeds(model))
            expected = frames.output(model)
            checks.append(measured(model.name, model.outputs[0], expected, answer, bounds_of(model, expected)))
    return checks


def ask(
    url: str, model: contract.Model, feeds: Mapping[str, NDArray[np.generic]], **options: Any
) -> NDArray[np.generic]:
    """A served model's output for its inputs by name, each (n, ...). options: of tritonclient's infer.

    Raises ServerUnavailable.
    """
    inputs = []
    for tensor in model.inputs:
        values = feeds[tensor.name]
        inputs.append(grpc.InferInput(tensor.name, values.shape, tensor.triton_dtype))
        inputs[-1].set_data_from_numpy(values)
    client, answered = grpc.InferenceServerClient(url), Queue[Any]()
    try:
        # By the clock: Triton may crash of a deadline (docs/decisions/0018-triton-under-many-small-requests.md).
        client.async_infer(model.name, inputs, lambda result, error: answered.put((result, error)), **options)
        result, error = answered.get(timeout=TIMEOUT)
        if error is not None:
            raise error
    except grpc.InferenceServerException as exc:
        raise ServerUnavailable(url, f"{model.name}: {exc.message()}") from exc
    except Empty as exc:
        raise ServerUnavailable(url, f"{model.name}: no answer in {TIMEOUT:g} s") from exc
    finally:
        client.close()
    answer: NDArray[np.generic] = result.as_numpy(model.outputs[0].name)
    return answer


if __name__ == "__main__":
    main()
