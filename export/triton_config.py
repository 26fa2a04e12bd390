"""`config.pbtxt` of every model, rendered from the contract.

Plain text in protobuf's text format with a stable layout, so that a change shows as a small diff. Knows Triton's
configuration language and no file system.
"""

import json
from collections.abc import Mapping, Sequence

from lipserve import contract

PREFERRED_BATCH_SIZES = (8, 16)  # frames
MAX_QUEUE_DELAY = 5_000  # microseconds a small batch waits for company
CPU_THREADS = 2  # per model

Value = str | int | bool | Mapping[str, "Value"] | Sequence["Value"]


class Word(str):
    """A value of an enumeration, which the text format writes without quotes."""


def model_config(model: contract.Model, weights_id: str) -> str:
    """Configuration of a model that the Python backend runs on the CPU."""
    fields: dict[str, Value] = {
        **_head(model),
        "backend": "python",
        "dynamic_batching": {
            "preferred_batch_size": list(PREFERRED_BATCH_SIZES),
            "max_queue_delay_microseconds": MAX_QUEUE_DELAY,
        },
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
        **_parameters(intra_op_threads=str(CPU_THREADS), **{contract.WEIGHTS_ID: weights_id}),
    }
    return render(fields)


def ensemble_config(weights_id: str) -> str:
    """Configuration of `lipsync`: the UNet, then the decoder; the latents never leave the server."""
    steps = (contract.UNET, contract.VAE_DECODER)
    fields: dict[str, Value] = {
        **_head(contract.LIPSYNC),
        "platform": "ensemble",
        "ensemble_scheduling": {"step": [_step(model) for model in steps]},
        **_parameters(**{contract.WEIGHTS_ID: weights_id}),
    }
    return render(fields)


def _head(model: contract.Model) -> dict[str, Value]:
    return {
        "name": model.name,
        "max_batch_size": contract.MAX_BATCH_SIZE,
        "input": [_tensor(tensor) for tensor in model.inputs],
        "output": [_tensor(tensor) for tensor in model.outputs],
    }


def _tensor(tensor: contract.Tensor) -> dict[str, Value]:
    return {"name": tensor.name, "data_type": Word(f"TYPE_{tensor.triton_dtype}"), "dims": list(tensor.shape)}


def _step(model: contract.Model) -> dict[str, Value]:
    return {
        "model_name": model.name,
        "model_version": -1,
        "input_map": [{"key": tensor.name, "value": tensor.name} for tensor in model.inputs],
        "output_map": [{"key": tensor.name, "value": tensor.name} for tensor in model.outputs],
    }


def _parameters(**values: str) -> dict[str, Value]:
    return {"parameters": [{"key": key, "value": {"string_value": value}} for key, value in values.items()]}


def render(fields: Mapping[str, Value], indent: str = "") -> str:
    """Fields in protobuf's text format, one per line; a list of messages repeats its field."""
    lines = []
    for name, value in fields.items():
        messages = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if all(isinstance(message, Mapping) for message in messages):
            for message in messages:
                assert isinstance(message, Mapping)
                lines.append(f"{indent}{name} {{\n{render(message, indent + '  ')}{indent}}}\n")
        else:
            lines.append(f"{indent}{name}: {_literal(value)}\n")
    return "".join(lines)


def _literal(value: Value) -> str:
    if isinstance(value, Word):
        return value
    if isinstance(value, (str, bool, int)):
        return json.dumps(value)
    assert not isinstance(value, Mapping)
    return f"[{', '.join(map(_literal, value))}]"
