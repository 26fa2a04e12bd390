"""`config.pbtxt` of every model, rendered from the contract.

Plain text in protobuf's text format with a stable layout, so that a change shows as a small diff. Knows Triton's
configuration language and no file system.
"""

import json
from collections.abc import Mapping, Sequence

from lipserve import contract
from lipserve.contract import Priority

CPU, ONNX, TENSORRT = "cpu", "onnx", "tensorrt"
TARGETS = (CPU, ONNX, TENSORRT)

PREFERRED_BATCH_SIZES = (8, 16)  # frames, of a model as far as it takes them: a batch of these waits no longer
MAX_QUEUE_DELAY = 5_000  # microseconds a small batch waits for company
CPU_THREADS = 2  # per model
INSTANCES = 1  # of each model per GPU: a second one takes its memory again, and the card is busy with one

QUEUE_SIZE = 64  # requests of one level, more are refused at once: eight gateways of four requests, two batches each
BATCH_TIMEOUT = 60_000_000  # microseconds in the queue; the gateway has given up by then
LIVE_TIMEOUT = 2_000_000  # microseconds; a frame that late is of no use to anyone

GRAPHED_BATCH_SIZES = (1, 2, 4, 8, 16)  # recorded as CUDA graphs, as far as a model takes them: others run without one
CUDA_GRAPHS_SHARE = 0.1  # of a context's memory that its recorded graphs add: assumed
# TensorRT optimisation profiles, (smallest, optimal, largest) batch; Triton takes the one whose optimum is nearest, and
# looks at the first for the largest batch. Each profile is an execution context with memory for the largest batch of
# all. The UNet, small and launched often, has three: for a few live frames, one request's 8, and what the batcher makes
# of several. The VAE has one: its decoder fills a card at batch 8, and its encoder is sent 8 by who prepares a video.
BATCH_PROFILES: dict[str, tuple[tuple[int, int, int], ...]] = {
    contract.UNET.name: (
        (1, 8, contract.UNET.max_batch_size),
        (1, 1, 4),
        (1, contract.UNET.max_batch_size, contract.UNET.max_batch_size),
    ),
    contract.VAE_DECODER.name: ((1, 8, contract.VAE_DECODER.max_batch_size),),
    contract.VAE_ENCODER.name: ((1, 8, contract.VAE_ENCODER.max_batch_size),),
    contract.REFERENCE_SUMS.name: ((1, 8, contract.REFERENCE_SUMS.max_batch_size),),
}

# Options of ONNX Runtime's CUDA provider. Exhaustive search for a convolution would run anew for every batch size,
# seconds each; an arena that doubles would take twice what the largest batch needs.
CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "1",  # heuristic
    "arena_extend_strategy": "1",  # same as requested
    "do_copy_in_default_stream": "1",
}
# A memory pattern is one more block of the arena for every batch size that comes, never given back; Triton 24.10's
# backend does hand this on. The run's option memory.enable_memory_arena_shrinkage, which it knows as well, is left off:
# it frees the arena after each run, the next allocates it anew, and each cudaFree makes the whole card wait.
SESSION_OPTIONS = {"enable_mem_pattern": "0"}
CUDA_PROVIDER = {"cudnn_conv_use_max_workspace": "1", "use_ep_level_unified_stream": "1"}

Value = str | int | bool | Mapping[str, "Value"] | Sequence["Value"]


class Word(str):
    """A value of an enumeration, which the text format writes without quotes."""


def model_config(model: contract.Model, weights_id: str, target: str = CPU) -> str:
    """Configuration of a model on a target of `TARGETS`."""
    run = {CPU: _python_on_cpu, ONNX: _onnxruntime_on_gpu, TENSORRT: _tensorrt_on_gpu}[target]
    return render({**_head(model), **_batching(model), **run(model, weights_id)})


def warm_batch_sizes(model: contract.Model) -> tuple[int, ...]:
    """Batch sizes that run before the server calls itself ready, so that no request waits for a kernel to be chosen.

    The largest first: what ONNX Runtime's arena holds for it serves the others, while growing with each takes both.
    """
    sizes = {model.max_batch_size, *_as_taken(PREFERRED_BATCH_SIZES, model), 1}
    return tuple(sorted(sizes, reverse=True))


def _as_taken(sizes: Sequence[int], model: contract.Model) -> list[int]:
    """Those that are not over the model's largest."""
    return [size for size in sizes if size <= model.max_batch_size]


def _python_on_cpu(model: contract.Model, weights_id: str) -> dict[str, Value]:
    """Triton's Python backend; the model warms itself up."""
    return {
        "backend": "python",
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
        **_parameters(intra_op_threads=str(CPU_THREADS), **{contract.WEIGHTS_ID: weights_id}),
    }


def _onnxruntime_on_gpu(model: contract.Model, weights_id: str) -> dict[str, Value]:
    """Triton's onnxruntime backend with the CUDA provider."""
    provider: dict[str, Value] = {
        "name": "cuda",
        "parameters": [{"key": key, "value": value} for key, value in CUDA_PROVIDER.items()],
    }
    return {
        "backend": "onnxruntime",
        "instance_group": [{"kind": Word("KIND_GPU"), "count": INSTANCES}],
        "optimization": {"execution_accelerators": {"gpu_execution_accelerator": [provider]}},
        "model_warmup": _warm_up(model),
        **_parameters(**CUDA_OPTIONS, **SESSION_OPTIONS, **{contract.WEIGHTS_ID: weights_id}),
    }


def _tensorrt_on_gpu(model: contract.Model, weights_id: str) -> dict[str, Value]:
    """Triton's TensorRT backend: all optimisation profiles, CUDA graphs of the batch sizes that are usual."""
    graphs: list[Value] = [
        {
            "batch_size": size,
            "input": [{"key": t.name, "value": {"dim": list(t.shape)}} for t in model.inputs],
        }
        for size in _as_taken(GRAPHED_BATCH_SIZES, model)
    ]
    profiles: list[Value] = [str(index) for index in range(len(BATCH_PROFILES[model.name]))]
    return {
        "backend": "tensorrt",
        "default_model_filename": "model.plan",
        "instance_group": [{"kind": Word("KIND_GPU"), "count": INSTANCES, "profile": profiles}],
        "optimization": {"cuda": {"graphs": True, "output_copy_stream": True, "graph_spec": graphs}},
        "model_warmup": _warm_up(model),
        **_parameters(**{contract.WEIGHTS_ID: weights_id}),
    }


def _batching(model: contract.Model) -> dict[str, Value]:
    """Small requests wait a little for company; live ones go first, and no queue grows without end."""
    batching: dict[str, Value] = {
        "preferred_batch_size": _as_taken(PREFERRED_BATCH_SIZES, model),
        "max_queue_delay_microseconds": MAX_QUEUE_DELAY,
        "priority_levels": len(Priority),
        "default_priority_level": int(Priority.BATCH),
        "default_queue_policy": _queue(BATCH_TIMEOUT),
        "priority_queue_policy": [{"key": int(Priority.LIVE), "value": _queue(LIVE_TIMEOUT)}],
    }
    return {"dynamic_batching": batching}


def _queue(timeout: int) -> dict[str, Value]:
    return {
        "timeout_action": Word("REJECT"),
        "default_timeout_microseconds": timeout,
        "allow_timeout_override": True,
        "max_queue_size": QUEUE_SIZE,
    }


def _warm_up(model: contract.Model) -> list[Value]:
    return [
        {
            "name": f"batch_{size}",
            "batch_size": size,
            "inputs": [
                {
                    "key": tensor.name,
                    "value": {
                        "data_type": Word(f"TYPE_{tensor.triton_dtype}"),
                        "dims": list(tensor.shape),
                        "zero_data": True,
                    },
                }
                for tensor in model.inputs
            ],
        }
        for size in warm_batch_sizes(model)
    ]


def ensemble_config(weights_id: str, model: contract.Model = contract.LIPSYNC) -> str:
    """Configuration of `lipsync`: the UNet, then the decoder; the latents never leave the server."""
    steps = (contract.UNET, contract.VAE_DECODER if model is contract.LIPSYNC else contract.LOWER_DECODER)
    fields: dict[str, Value] = {
        **_head(model),
        "platform": "ensemble",
        "ensemble_scheduling": {"step": [_step(model) for model in steps]},
        **_parameters(**{contract.WEIGHTS_ID: weights_id}),
    }
    return render(fields)


def _head(model: contract.Model) -> dict[str, Value]:
    return {
        "name": model.name,
        "max_batch_size": model.max_batch_size,
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
