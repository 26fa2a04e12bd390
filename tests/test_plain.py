"""MuseTalk's networks in fewer operators: equal outputs, exact counts of what goes, and what is refused."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D

from export import musetalk, plain
from export.errors import ExportRefused, GraphUnfit
from export.modules import FaceDecoder, UNetStep
from export.networks import Networks
from export.onnx_graphs import Graph, write_graph
from lipserve import contract

PROFILE = "musetalk-v15"
WIDTHS = [32, 64, 64, 64, 64, 64, 32, 32]  # of the small UNet's blocks with a time projection, in any order
EMBEDDED = 128  # of its time embedding


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    musetalk.write_random_weights(folder, 0, "small", PROFILE)
    return folder


@pytest.fixture
def networks(weights: Path) -> Networks:
    return musetalk.load(weights, PROFILE)


def step(unet: UNet2DConditionModel) -> torch.Tensor:
    random = torch.Generator().manual_seed(7)
    latents, prompts = torch.randn(2, 8, 32, 32, generator=random), torch.randn(2, 50, 384, generator=random)
    with torch.inference_mode():
        found: torch.Tensor = unet(latents, torch.tensor(0), encoder_hidden_states=prompts).sample
    return found


def test_the_timestep_is_in_the_biases(networks: Networks) -> None:
    unet = networks.unet
    blocks = [block for block in unet.modules() if isinstance(block, ResnetBlock2D)]
    projected = sum(p.numel() for block in blocks for p in block.time_emb_proj.parameters())
    embedding = sum(p.numel() for p in unet.time_embedding.parameters())
    before = step(unet)
    assert plain.fold_timestep(unet) == projected + embedding > 0
    assert not [name for name in unet.state_dict() if "time_" in name]
    after = step(unet)
    assert before.std() > 0.1
    assert float((after - before).abs().max()) < 1e-5


def test_a_block_that_takes_its_timestep_otherwise_is_refused(networks: Networks) -> None:
    networks.unet.mid_block.resnets[0].time_embedding_norm = "scale_shift"
    with pytest.raises(GraphUnfit, match="takes its timestep as scale_shift"):
        plain.fold_timestep(networks.unet)


def test_attention_is_what_it_was(networks: Networks) -> None:
    before = step(networks.unet)
    plain.write_attention_out(networks.unet)
    assert float((step(networks.unet) - before).abs().max()) < 1e-5


@pytest.mark.parametrize("head_width", [16, 4], ids=["one head", "four heads"])
def test_the_vaes_attention_is_what_it_was(networks: Networks, head_width: int) -> None:
    vae = networks.vae
    assert isinstance(vae, AutoencoderKL)
    (attention,) = vae.decoder.mid_block.attentions
    attention.heads = 16 // head_width
    latents = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        before = vae.decode(latents).sample
        plain.write_attention_out(vae)
        after = vae.decode(latents).sample
    assert float((after - before).abs().max()) < 1e-5


def test_attention_with_norms_of_its_own_is_refused(networks: Networks) -> None:
    block = networks.unet.mid_block.attentions[0].transformer_blocks[0]
    block.attn1.norm_q = torch.nn.LayerNorm(4)
    with pytest.raises(GraphUnfit, match="normalises its queries"):
        plain.write_attention_out(networks.unet)


def test_nothing_moves_and_what_does_is_refused(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = plain.simplify(networks)
    assert [(check.graph, check.bound) for check in checks] == [
        ("unet", 1e-4),
        ("vae_encoder", 1e-4),
        ("vae_decoder", 1e-4),
    ]
    assert all(check.maximum < 1e-5 for check in checks)

    def off(unet: UNet2DConditionModel) -> None:
        unet.conv_out.bias.data += 2e-4

    monkeypatch.setattr(plain, "fold_timestep", off)
    with pytest.raises(ExportRefused, match="'unet' refused at batch 1"):
        plain.simplify(networks)


def operators(graph: Graph, path: Path) -> Counter[str]:
    write_graph(graph, path, "test-0", folded=True)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_the_graphs_compute_no_shape_and_no_timestep(networks: Networks, tmp_path: Path) -> None:
    plain.simplify(networks)
    unet = operators(Graph(contract.UNET, UNetStep(networks.unet)), tmp_path / "unet.onnx")
    decoder = operators(Graph(contract.VAE_DECODER, FaceDecoder(networks.vae)), tmp_path / "vae_decoder.onnx")
    for found in (unet, decoder):
        assert not {"Shape", "Gather", "Expand", "Sin", "Cos", "Gemm", "Where"} & set(found)
    # Each attention: a softmax between two products, four more for queries, keys, values and output.
    attentions = sum(block.__class__.__name__ == "BasicTransformerBlock" for block in networks.unet.modules()) * 2
    assert unet["Softmax"] == attentions
    assert decoder["Softmax"] == 1
    assert decoder["Transpose"] == 4  # tokens and back, the keys, and the pictures' channels
