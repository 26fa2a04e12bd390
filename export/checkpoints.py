"""Checkpoints as their authors publish them, into torch modules. Knows files and names of tensors, no network.

MuseTalk's `unet.pth` and `pytorch_model.bin` are bare state dicts of diffusers' UNet2DConditionModel. The VAE's files
are of AutoencoderKL, from before diffusers renamed its attention: `modern_attention`. Whisper's hold encoder and
decoder, with or without `model.` before their names: `whisper_encoder`.

A pickle is never run: only tensors and plain containers are built (`weights_only`), anything else is refused.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from export.errors import CheckpointUnreadable, StateUnfit
from lipserve.weights.pickles import NotACheckpoint, imports, is_zip

State = dict[str, Tensor]

NAMED = 5  # names spelled out in an error; the rest is counted
OLD_ATTENTION = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
WHISPER_ENCODER = ("model.encoder.", "encoder.")  # the longer first: it says more


def read_state(path: Path) -> State:
    """Every tensor of a `.safetensors` file or of a torch checkpoint, on the CPU, as stored.

    Tensors of a zip checkpoint are mapped, not read, until they are used. Raises CheckpointUnreadable.
    """
    if not path.is_file():
        raise CheckpointUnreadable(path, "is not there; what is missing is shown by: lipserve models status")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as exc:
            raise CheckpointUnreadable(path, f"is no whole safetensors file ({exc})") from exc
    return _bare_state(path, _load_pickle(path))


def load_into(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Put the state into the module, whose dtypes stay; all names and shapes must agree. Raises StateUnfit.

    The module is left as it was unless everything fits. `name`: what the module is, for the message.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or unexpected or misshapen:
        problems = (("missing", missing), ("not expected", unexpected), ("of another shape", misshapen))
        raise StateUnfit(name, "; ".join(f"{_some(keys)} {word}" for word, keys in problems if keys))
    module.load_state_dict(state)


def modern_attention(state: Mapping[str, Tensor]) -> State:
    """A VAE's state under the names of today's diffusers; one that has them already comes back unchanged.

    query, key, value, proj_attn become to_q, to_k, to_v, to_out.0. Weights stored as 1x1 convolutions,
    (width, width, 1, 1), become (width, width).
    """
    renamed: State = {}
    for key, value in state.items():
        match = OLD_ATTENTION.fullmatch(key)
        if match is None:
            renamed[key] = value
            continue
        block, old, kind = match.groups()
        flat = value.flatten(1) if value.dim() == 4 and value.shape[2:] == (1, 1) else value
        renamed[f"{block}.{NEW_ATTENTION[old]}.{kind}"] = flat
    return renamed


def whisper_encoder(state: Mapping[str, Tensor]) -> State:
    """The encoder's part of a Whisper state, under the names of transformers' WhisperEncoder. Raises StateUnfit."""
    for prefix in WHISPER_ENCODER:
        encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if encoder:
            return encoder
    raise StateUnfit("Whisper's encoder", f"no tensor begins with {' or '.join(WHISPER_ENCODER)}")


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except pickle.UnpicklingError as exc:
        raise CheckpointUnreadable(path, _why_not(path)) from exc
    except (MemoryError, OSError):
        raise
    except Exception as exc:  # a damaged file makes torch's reader fail with whatever comes first
        raise CheckpointUnreadable(path, "is cut off or no torch checkpoint at all") from exc


def _why_not(path: Path) -> str:
    try:
        wanted = sorted(imports(path))
    except NotACheckpoint as exc:
        return f"is no torch checkpoint: {exc}"
    if not wanted:
        return "is cut off or no torch checkpoint at all"
    return f"is a pickle that wants more than tensors ({_some(wanted)}); it was not run"


def _bare_state(path: Path, content: Any) -> State:
    if not isinstance(content, Mapping):
        raise CheckpointUnreadable(path, f"holds no state dict but a {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others or not content:
        raise CheckpointUnreadable(path, f"holds no bare state dict: {_some(others) or 'nothing'} in it is no tensor")
    return dict(content)


def _some(names: Sequence[str]) -> str:
    """The first names, and how many there are in all if that is not all of them."""
    if not names:
        return ""
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} … ({len(names)} in all)"
