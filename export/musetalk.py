"""MuseTalk's own networks, version 1 and 1.5, from their weight files; and random ones in the same files.

The architecture is what the configuration files say, so anything laid out like MuseTalk's weights can be served. Knows
which file becomes which network; how a file is read, and under which names, is known to `checkpoints`.
"""

from __future__ import annotations

import json
from math import log
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from export.checkpoints import NEW_ATTENTION, load_into, modern_attention, read_state, whisper_encoder
from export.errors import ConfigUnfit
from export.modules import WhisperStates
from export.networks import Networks
from export.profiles import LOWER, SD_VAE, TAESD, UNETS, VAE_WEIGHTS, WHISPER_WEIGHTS, Part, parts
from lipserve import contract

M = TypeVar("M", bound=nn.Module)


def load(models_dir: Path, profile: str, decoder: str = SD_VAE) -> Networks:
    """A profile's networks from its weight files, float32.

    Raises WeightsMissing, ConfigUnfit, CheckpointUnreadable and StateUnfit.
    """
    files = parts(models_dir, profile, decoder)
    return Networks(
        profile,
        unet=_unet(files.unet),
        vae=filled(AutoencoderKL, files.vae, modern_attention(read_state(files.vae.weights))),
        audio_encoder=WhisperStates(_whisper(files.whisper)).eval(),
        decoder=None
        if files.decoder is None
        else filled(AutoencoderTiny, files.decoder, read_state(files.decoder.weights)),
        lower=decoder == LOWER,
    )


def _unet(files: Part) -> UNet2DConditionModel:
    config = _config(files)
    wanted = {
        "in_channels": contract.FACE_LATENT_CHANNELS,
        "out_channels": contract.LATENT_CHANNELS,
        "cross_attention_dim": contract.AUDIO_WIDTH,
    }
    found = {name: config.get(name) for name in wanted}
    if found != wanted:
        raise ConfigUnfit(files.config, f"says {found}; the contract asks for {wanted}")
    return filled(UNet2DConditionModel, files, read_state(files.weights))


def _whisper(files: Part) -> WhisperEncoder:
    config = WhisperConfig(**_config(files))
    found = (config.d_model, config.encoder_layers + 1, config.num_mel_bins, config.max_source_positions)
    wanted = (contract.AUDIO_WIDTH, contract.N_LAYERS, contract.N_MELS, contract.SEGMENT_STATES)
    if found != wanted:
        raise ConfigUnfit(files.config, f"has width, states, mel bins and positions {found}, should have {wanted}")
    with torch.device("meta"):
        encoder = WhisperEncoder(config)
    return _fill(encoder, whisper_encoder(read_state(files.weights)), f"the network of {files.config}")


def filled(kind: type[M], files: Part, state: dict[str, Tensor]) -> M:
    """A network of diffusers' as its configuration file says, with these weights."""
    with torch.device("meta"):
        network: M = kind.from_config(_config(files))  # type: ignore[attr-defined]
    return _fill(network, state, f"the network of {files.config}")


def _fill(network: M, state: dict[str, Tensor], name: str) -> M:
    """The weights into a network that has none yet: initialising 860 million first would take longer."""
    network.to_empty(device="cpu")
    load_into(network, state, name)
    network.float().eval().requires_grad_(False)
    return network


def _config(files: Part) -> dict[str, Any]:
    try:
        found = json.loads(files.config.read_text())
    except (OSError, ValueError) as exc:
        raise ConfigUnfit(files.config, f"cannot be read: {exc}") from exc
    if not isinstance(found, dict):
        raise ConfigUnfit(files.config, "is not an object of JSON")
    return found


# -- random weights ---------------------------------------------------------------------------------------------------

POSTERIOR = 1e-3  # deviation of the VAE's latents
SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "unet": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "layers_per_block": 2},
        "vae": {"block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "layers_per_block": 2},
        "taesd": {},  # diffusers' defaults are TAESD
        "whisper": {"encoder_ffn_dim": 1536},
    },
    # As small, but that the VAE has as many norms and groups as the published one, one channel in each.
    "narrow": {"vae": {"block_out_channels": (32,) * 4, "norm_num_groups": 32, "layers_per_block": 2}},
    "small": {
        "unet": {
            "block_out_channels": (32, 64),
            "attention_head_dim": 4,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        "vae": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1},
        "taesd": {
            "encoder_block_out_channels": (16,) * 4,
            "decoder_block_out_channels": (16,) * 4,
            "num_encoder_blocks": (1, 1, 1, 1),
            "num_decoder_blocks": (1, 1, 1, 1),
        },
        "whisper": {"encoder_ffn_dim": 64},
    },
}

SIZES["narrow"] = SIZES["small"] | SIZES["narrow"]


def write_random_weights(folder: Path, seed: int, size: str = "full", profile: str = "musetalk-v15") -> None:
    """Seeded random weights in MuseTalk's files and layout, float32. size: a key of `SIZES`; full is 4 GB.

    The global random state of torch is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for write in (_write_unet, _write_vae, _write_taesd, _write_whisper):
            write(folder, SIZES[size], profile)


def write_random_vae(folder: Path, seed: int, size: str = "full") -> None:
    """The VAE's files alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_vae(folder, SIZES[size], "")


def _write_unet(folder: Path, sizes: dict[str, Any], profile: str) -> None:
    config, weights = (folder / name for name in UNETS[profile])
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=contract.FACE_LATENT_CHANNELS,
        out_channels=contract.LATENT_CHANNELS,
        cross_attention_dim=contract.AUDIO_WIDTH,
        **sizes["unet"],
    )
    _write_config(config, unet.config)
    torch.save(unet.state_dict(), weights)


def _write_vae(folder: Path, sizes: dict[str, Any], profile: str) -> None:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=contract.LATENT_CHANNELS,
        sample_size=contract.FACE_SIZE,
        **sizes["vae"],
    )
    # Narrow, as the published one's: what the scripts draw from it is nearly the mode that is served.
    vae.quant_conv.weight.data[contract.LATENT_CHANNELS :] = 0
    vae.quant_conv.bias.data[contract.LATENT_CHANNELS :] = 2 * log(POSTERIOR)
    _write_config(folder / SD_VAE / "config.json", vae.config)
    save_file({_old_name(name): tensor for name, tensor in vae.state_dict().items()}, folder / SD_VAE / VAE_WEIGHTS[0])


def _write_taesd(folder: Path, sizes: dict[str, Any], profile: str) -> None:
    taesd = AutoencoderTiny(**sizes["taesd"])
    last = taesd.decoder.layers[-1]  # as initialised it draws all faces black within two levels
    last.weight.data.mul_(20)
    last.bias.data.fill_(0.5)
    _write_config(folder / TAESD / "config.json", taesd.config)
    save_file(taesd.state_dict(), folder / TAESD / VAE_WEIGHTS[0])


def _write_whisper(folder: Path, sizes: dict[str, Any], profile: str) -> None:
    layers = contract.N_LAYERS - 1
    config = WhisperConfig(
        d_model=contract.AUDIO_WIDTH, encoder_layers=layers, encoder_attention_heads=6, **sizes["whisper"]
    )
    encoder = WhisperEncoder(config)
    _write_config(folder / "whisper" / "config.json", config.to_dict())
    state = {f"model.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_file(state, folder / "whisper" / WHISPER_WEIGHTS[0])


def _write_config(path: Path, config: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: value for name, value in config.items() if not name.startswith("_")}, indent=2))


def _old_name(name: str) -> str:
    """As the published file of Stable Diffusion's VAE has it."""
    for old, new in NEW_ATTENTION.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name
