"""Published checkpoints into torch modules: old names, foreign parts, and files that are not what they claim."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from export.checkpoints import load_into, modern_attention, read_state, whisper_encoder
from export.errors import CheckpointUnreadable, ExportError, StateUnfit
from export.modules import UNetStep

NEW_TO_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def small_vae(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                         up_block_types=("UpDecoderBlock2D",) * 2).eval()  # fmt: skip


def as_before_renaming(state: dict[str, Tensor]) -> dict[str, Tensor]:
    old = {}
    for key, value in state.items():
        for new, name in NEW_TO_OLD.items():
            key = key.replace(f".{new}.", f".{name}.") if ".attentions." in key else key
        old[key] = value
    return old


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3).half()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one
    )


@pytest.mark.parametrize("name", ["a.safetensors", "new.pth", "old.bin"])
def test_every_kind_of_file_is_read(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name.startswith("new"))
    assert same(read_state(path), state)


@pytest.mark.parametrize("name", ["a.safetensors", "new.pth", "old.bin"])
@pytest.mark.parametrize("kept", [0, 3, 0.5, 0.98])
def test_a_file_that_is_cut_off_is_refused(name: str, kept: float, state: dict[str, Tensor], tmp_path: Path) -> None:
    test_every_kind_of_file_is_read(name, state, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    with pytest.raises(CheckpointUnreadable, match=name):
        read_state(path)


def test_a_file_that_is_not_there_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnreadable, match=r"unet\.pth is not there; .* lipserve models status"):
        read_state(tmp_path / "unet.pth")


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_that_wants_code_is_named_and_not_run(new: bool, state: dict[str, Tensor], tmp_path: Path) -> None:
    path, mark = tmp_path / "unet.pth", tmp_path / "executed"
    torch.save(state | {"evil": Malicious(mark)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointUnreadable, match=r"wants more than tensors \(posix mkdir\); it was not run"):
        read_state(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the test would notice if it were run
    assert mark.is_dir()


def test_a_plain_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    path, mark = tmp_path / "unet.pth", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    with pytest.raises(CheckpointUnreadable, match="neither a zip archive nor torch's older format"):
        read_state(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(1)], "no state dict but a list"),
        (torch.zeros(1), "no state dict but a Tensor"),
        ({}, "nothing in it is no tensor"),
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "state_dict, epoch in it is no tensor"),
    ],
)
def test_what_is_no_bare_state_dict_is_refused(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointUnreadable, match=said):
        read_state(tmp_path / "x.pth")


def test_a_state_that_fits_is_loaded_and_keeps_the_modules_dtype() -> None:
    module = nn.Linear(2, 3)
    state = {"weight": torch.ones(3, 2).half(), "bias": torch.zeros(3).half()}
    load_into(module, state, "a layer")
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, torch.ones(3, 2))


def test_all_that_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    module = nn.Sequential(*(nn.Linear(2, 3) for _ in range(8)))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = {f"{i}.weight": torch.zeros(3, 2) for i in range(8)} | {
        "0.weight": torch.zeros(2, 3),
        "new": torch.zeros(1),
    }
    with pytest.raises(StateUnfit) as caught:
        load_into(module, state, "a network")
    assert str(caught.value) == (
        "the weights do not belong into a network: 0.bias, 1.bias, 2.bias, 3.bias, 4.bias … (8 in all) missing; "
        "new not expected; 0.weight (2, 3) instead of (3, 2) of another shape"
    )
    assert isinstance(caught.value, ExportError)
    assert same(before, module.state_dict())


@pytest.mark.parametrize("as_convolution", [False, True])
def test_a_vae_from_before_the_renaming_computes_the_same(as_convolution: bool, tmp_path: Path) -> None:
    trained, fresh = small_vae(1), small_vae(2)
    old = as_before_renaming(trained.state_dict())
    attention = [key for key in old if ".attentions.0.query.weight" in key]
    assert len(attention) == 2  # encoder and decoder
    if as_convolution:
        old |= {key: old[key][..., None, None] for key in old if key.endswith(("query.weight", "proj_attn.weight"))}
    torch.save(old, tmp_path / "vae.bin")
    state = read_state(tmp_path / "vae.bin")
    with pytest.raises(StateUnfit, match="to_q"):
        load_into(fresh, state, "the VAE")
    load_into(fresh, modern_attention(state), "the VAE")
    picture = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(fresh(picture).sample, trained(picture).sample)
    assert same(modern_attention(trained.state_dict()), trained.state_dict())


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_whisper_gives_its_encoder_only(prefix: str) -> None:
    torch.manual_seed(4)
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    config = WhisperConfig(d_model=16, vocab_size=32, max_source_positions=50, **tokens, **heads, **layers)
    whole = WhisperModel(config).eval()
    encoder = WhisperEncoder(config).eval()
    load_into(encoder, whisper_encoder({prefix + key: value for key, value in whole.state_dict().items()}), "Whisper")
    mel = torch.randn(1, 80, 100)
    with torch.no_grad():
        assert torch.equal(encoder(mel).last_hidden_state, whole.encoder(mel).last_hidden_state)


def test_what_is_not_whisper_is_refused() -> None:
    with pytest.raises(StateUnfit, match=r"no tensor begins with model\.encoder\. or encoder\."):
        whisper_encoder({"decoder.layers.0.weight": torch.zeros(1)})


def test_real_files_load_and_the_unet_computes_what_the_reference_computed(reference: Path) -> None:
    weights = reference / "weights"
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(weights / "musetalkV15/musetalk.json"))
    load_into(unet, read_state(weights / "musetalkV15/unet.pth"), "the UNet")
    step = UNetStep(unet.eval())
    case = np.load(next((reference / "small").glob("*.internals.npz")))
    prompts = torch.from_numpy(case["unet_ctx"]).float() - step.positions  # the module adds them
    with torch.no_grad():
        latents = step(prompts, torch.from_numpy(case["unet_in"]))
    assert np.abs(latents.float().numpy() - case["unet_out"]).max() < 5e-3  # the contract's edges are float16

    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(weights / "sd-vae"))
    load_into(vae, modern_attention(read_state(weights / "sd-vae/diffusion_pytorch_model.safetensors")), "the VAE")
    encoder = WhisperEncoder(WhisperConfig.from_pretrained(weights / "whisper"))
    load_into(encoder, whisper_encoder(read_state(weights / "whisper/model.safetensors")), "Whisper's encoder")
