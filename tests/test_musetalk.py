"""MuseTalk's profiles: weight files to graphs in float32 and FP16, refusals, configurations, memory, TensorRT."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

import arena  # noqa: E402
import fake_gpu  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from exports import remembered  # noqa: E402
from google.protobuf import text_format  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tritonclient.grpc import model_config_pb2  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from export import (  # noqa: E402
    bundle,
    demo,
    gate,
    half,
    memory,
    musetalk,
    onnx_graphs,
    operators,
    pipeline,
    profiles,
    samples,
    served,
    tensorrt,
)
from export import triton_config as config  # noqa: E402
from export.arena import write_for_onnxruntime  # noqa: E402
from export.checkpoints import modern_attention, read_state  # noqa: E402
from export.cli import app  # noqa: E402
from export.errors import (  # noqa: E402
    CheckpointUnreadable,
    ConfigUnfit,
    EngineFailed,
    EngineUnavailable,
    ExportRefused,
    GraphsMissing,
    GraphUnfit,
    HeadroomLacking,
    ServerUnavailable,
    StateUnfit,
    WeightsMissing,
)
from export.modules import FaceDecoder, UNetStep  # noqa: E402
from export.repository import write_repository  # noqa: E402
from export.training import weights as trained  # noqa: E402
from lipserve import contract  # noqa: E402
from lipserve.embedded import EmbeddedTriton  # noqa: E402

V15 = "musetalk-v15"
NAMES = ["unet", "vae_decoder", "vae_encoder", "audio_encoder"]


@pytest.fixture(scope="module", autouse=True)
def each_graph_once() -> Iterator[None]:
    with remembered():
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with seeded weights of a small architecture in MuseTalk's files."""
    folder = tmp_path_factory.mktemp("weights")
    musetalk.write_random_weights(folder, 0, "small")
    return folder


@pytest.fixture(scope="module")
def halved(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[pipeline.Written]]:
    """The folder of models with the FP16 graphs of these weights, the UNet's weights in a file of their own."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graphs, "EXTERNAL_ABOVE", 1_500_000)
        networks = musetalk.load(weights, V15)
        return folder, pipeline.write_graphs(networks, folder / V15, precision=profiles.FP16)


@pytest.fixture
def copied(weights: Path, tmp_path: Path) -> Path:
    """The weights again, to be damaged: every file but the one that a test replaces is a link."""
    for file in weights.rglob("*.*"):
        if file.is_file():
            place = tmp_path / "models" / file.relative_to(weights)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.hardlink_to(file)
    return tmp_path / "models"


# -- weight files -----------------------------------------------------------------------------------------------------


def test_weights_are_random_by_seed_and_leave_the_global_state(weights: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    musetalk.write_random_weights(tmp_path, 0, "small")
    assert torch.equal(state, torch.random.get_rng_state())
    first = musetalk.load(weights, V15)
    assert musetalk.load(tmp_path, V15).weights_id == first.weights_id
    musetalk.write_random_weights(tmp_path, 1, "small")
    assert musetalk.load(tmp_path, V15).weights_id != first.weights_id


def test_every_profile_reads_its_own_unet(copied: Path) -> None:
    musetalk.write_random_weights(copied, 7, "small", "musetalk-v1")
    assert (copied / "musetalk/pytorch_model.bin").is_file()
    old = musetalk.load(copied, "musetalk-v1")
    assert old.weights_id.startswith("musetalk-v1-")
    state = torch.load(copied / "musetalk/pytorch_model.bin", weights_only=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in old.unet.state_dict().items())


def test_the_full_architecture_is_musetalks() -> None:
    """Counted without memory for it: the published UNet has 850 million parameters, the VAE 84, TAESD 2.4."""
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    sizes = musetalk.SIZES["full"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(in_channels=8, out_channels=4, cross_attention_dim=384, **sizes["unet"])
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            **sizes["vae"],
        )
        taesd = AutoencoderTiny(**sizes["taesd"])
    counted = [sum(weight.numel() for weight in network.parameters()) for network in (unet, vae, taesd)]
    assert counted == [849_947_844, 83_653_863, 2_445_063]


def test_attention_is_read_under_its_old_names_and_its_new(weights: Path, copied: Path) -> None:
    file = "sd-vae/diffusion_pytorch_model.safetensors"
    old = load_file(weights / file)
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in old
    renamed = modern_attention(old)
    assert "decoder.mid_block.attentions.0.to_out.0.weight" in renamed
    (copied / file).unlink()
    save_file(renamed, copied / file)
    assert musetalk.load(copied, V15).weights_id == musetalk.load(weights, V15).weights_id


def test_half_precision_weights_are_read_as_float32(weights: Path, copied: Path) -> None:
    file = copied / "musetalkV15/unet.pth"
    state = {name: tensor.half() for name, tensor in read_state(file).items()}
    file.unlink()
    torch.save(state, file)
    unet = musetalk.load(copied, V15).unet
    assert {weight.dtype for weight in unet.parameters()} == {torch.float32}
    assert torch.equal(unet.conv_in.weight, state["conv_in.weight"].float())


def test_hidden_states_are_whispers_the_last_one_normed(weights: Path) -> None:
    audio_encoder: Any = musetalk.load(weights, V15).audio_encoder
    encoder = audio_encoder.encoder
    log_mel = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1.5, (1, 80, 3000)).astype(np.float32))
    gelu = torch.nn.functional.gelu
    with torch.inference_mode():
        states = audio_encoder(log_mel)
        wanted = [gelu(encoder.conv2(gelu(encoder.conv1(log_mel)))).transpose(1, 2) + encoder.embed_positions.weight]
        for layer in encoder.layers:
            found = layer(wanted[-1], attention_mask=None)
            wanted.append(found[0] if isinstance(found, tuple) else found)
        wanted[-1] = encoder.layer_norm(wanted[-1])
    assert states.shape == (1, 1500, 5, 384)
    for layer, state in enumerate(wanted):
        assert torch.allclose(states[:, :, layer], state, atol=1e-5), layer


def test_missing_weights_are_named(copied: Path) -> None:
    (copied / "whisper/model.safetensors").unlink()
    (copied / "taesd/config.json").unlink()
    with pytest.raises(WeightsMissing, match=r"'musetalk-v15'.*whisper/model\.safetensors\. lipserve models status"):
        musetalk.load(copied, V15)
    with pytest.raises(WeightsMissing, match=r"taesd/config.json"):
        musetalk.load(copied, V15, "taesd")


def test_weights_of_another_shape_are_refused_by_name(copied: Path) -> None:
    file = copied / "musetalkV15/unet.pth"
    state = read_state(file)
    state["conv_in.weight"] = state["conv_in.weight"][:, :4]
    state["more"] = state.pop("conv_out.bias")
    file.unlink()
    torch.save(state, file)
    with pytest.raises(StateUnfit, match=r"musetalkV15/musetalk\.json: ") as refusal:
        musetalk.load(copied, V15)
    assert "conv_in.weight (32, 4, 3, 3) instead of (32, 8, 3, 3) of another shape" in str(refusal.value)
    assert "conv_out.bias missing; more not expected" in str(refusal.value)


@pytest.mark.parametrize("file", ["musetalkV15/unet.pth", "sd-vae/diffusion_pytorch_model.safetensors"])
def test_a_damaged_weight_file_is_refused(copied: Path, file: str) -> None:
    content = (copied / file).read_bytes()
    (copied / file).unlink()
    (copied / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointUnreadable, match=rf"{file} is (no whole|cut off)"):
        musetalk.load(copied, V15)


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("musetalkV15/musetalk.json", "in_channels", 4, "in_channels': 4"),
        ("musetalkV15/musetalk.json", "cross_attention_dim", 768, "cross_attention_dim': 768"),
        ("whisper/config.json", "encoder_layers", 6, r"\(384, 7, 80, 1500\)"),
    ],
)
def test_another_architecture_is_refused(copied: Path, file: str, key: str, value: int, said: str) -> None:
    settings = json.loads((copied / file).read_text())
    (copied / file).unlink()
    (copied / file).write_text(json.dumps(settings | {key: value}))
    with pytest.raises(ConfigUnfit, match=said):
        musetalk.load(copied, V15)


def test_a_network_beside_the_vae_draws_and_does_not_count_for_avatars(weights: Path) -> None:
    own, tiny = musetalk.load(weights, V15), musetalk.load(weights, V15, "taesd")
    assert tiny.weights_id == own.weights_id
    graphs = {graph.name: graph.module for graph in onnx_graphs.graphs(tiny)}
    assert graphs["vae_decoder"].vae is tiny.decoder and graphs["vae_encoder"].vae is tiny.vae
    assert onnx_graphs.metadata(tiny) == onnx_graphs.metadata(own) | {"decoder": "taesd"}
    latents = torch.full((1, 4, 32, 32), 0.25).half()
    with torch.inference_mode():
        faces = FaceDecoder(tiny.decoder)(latents)
        wanted = tiny.decoder.decoder(latents.float())  # TAESD takes latents as they are, scaled
    levels = ((wanted / 2 + 0.5).clamp(0, 1) * 255).flip(1).permute(0, 2, 3, 1)
    assert (faces.float() - levels).abs().max() <= 0.5 + 1e-3


# -- FP16 -------------------------------------------------------------------------------------------------------------


def test_norms_stay_float32_and_the_rest_is_half(weights: Path) -> None:
    networks = musetalk.load(weights, V15)
    norm = networks.unet.mid_block.resnets[0].norm1
    half.halve(networks.unet)
    assert {weight.dtype for weight in networks.unet.parameters()} == {torch.float16}
    island = networks.unet.mid_block.resnets[0].norm1
    assert isinstance(island, half.GroupNormIsland) and island.weight.dtype == torch.float32
    assert not [m for m in networks.unet.modules() if isinstance(m, torch.nn.GroupNorm)]
    # A layer norm is one operator, which sums in float32 whatever it is given.
    assert {m.weight.dtype for m in networks.unet.modules() if isinstance(m, torch.nn.LayerNorm)} == {torch.float16}
    values = 200 * torch.randn(2, 64, 16, 16)  # squares beyond FP16's end
    assert torch.allclose(island(values.half()).float(), norm(values.half().float()), atol=4e-3)


def test_the_graphs_pass_the_gate_and_lie_where_they_belong(halved: tuple[Path, list[pipeline.Written]]) -> None:
    models, written = halved
    folder = models / V15
    assert [graph.graph for graph in written] == NAMES
    places = [graph.path.relative_to(folder).as_posix() for graph in written]
    assert places == ["fp16/unet.onnx", "fp16/vae_decoder.onnx", "vae_encoder.onnx", "audio_encoder.onnx"]
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    large = {f"{place}.data" for place in ("fp16/unet.onnx", "audio_encoder.onnx")}
    assert files == {*places, *large, "reference.npz"}
    for graph in written[:2]:
        assert [check.batch for check in graph.checks] == [1, 4, 5, 8, 16]
        bounds = {"unet": (0.5, 0.01), "vae_decoder": (8, 2)}[graph.graph]
        assert all((check.bound, check.mean_bound) == bounds for check in graph.checks)
        assert all(check.passed and check.mean > 0 for check in graph.checks)  # FP16 cannot be float32
    assert [path.name for path in models.iterdir()] == [V15]


def test_half_graphs_are_half_with_islands_and_no_sequence(halved: tuple[Path, list[pipeline.Written]]) -> None:
    for place in ("fp16/unet.onnx", "fp16/vae_decoder.onnx"):
        graph = onnx.load(halved[0] / V15 / place).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        constants = {constant.name: constant.data_type for constant in graph.initializer}
        heavy = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        weights = [constants[name] for node in heavy for name in node.input if name in constants]
        assert len(weights) > 50 and set(weights) == {TensorProto.FLOAT16}
        norms = [node for node in graph.node if node.op_type == "InstanceNormalization"]
        assert norms and {types[node.output[0]] for node in norms} == {TensorProto.FLOAT}
        layer_norms = [node for node in graph.node if node.op_type == "LayerNormalization"]  # these sum in float32
        assert all(helper.get_node_attr_value(node, "stash_type") == TensorProto.FLOAT for node in layer_norms)
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert {types[node.output[0]] for node in convolutions} == {TensorProto.FLOAT16}


def test_gpu_graphs_use_only_what_tensorrts_parser_takes(
    halved: tuple[Path, list[pipeline.Written]], capsys: pytest.CaptureFixture[str]
) -> None:
    operators.main(["--models-dir", str(halved[0])])
    assert "TensorRT's parser takes them all" in capsys.readouterr().out
    for place in ("fp16/unet.onnx", "fp16/vae_decoder.onnx", "vae_encoder.onnx"):
        assert operators.operators(halved[0] / V15 / place)["Conv"] > 10
        opset = onnx.load(halved[0] / V15 / place, load_external_data=False).opset_import[0].version
        assert opset == onnx_graphs.OPSET


def test_a_graph_of_other_weights_is_refused_by_the_gate(
    halved: tuple[Path, list[pipeline.Written]], weights: Path
) -> None:
    reference = gate.Reference.load(halved[0] / V15)
    path = halved[0] / V15 / "fp16/vae_decoder.onnx"
    from export.verify import verify_half

    assert len(verify_half(contract.VAE_DECODER, path, reference)) == 5
    other = dataclasses.replace(reference, faces=reference.faces[::-1].copy())
    with pytest.raises(ExportRefused, match=r"'vae_decoder' refused at batch 1, frame 0: maximum error"):
        verify_half(contract.VAE_DECODER, path, other)


def test_a_refused_graph_leaves_nothing(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = gate.BOUNDS | {"vae_decoder": gate.Bounds(8, 1e-7)}
    monkeypatch.setattr(gate, "BOUNDS", strict)
    networks = musetalk.load(weights, V15)
    decoder = onnx_graphs.graphs(networks)[1]
    monkeypatch.setattr(onnx_graphs, "graphs", lambda networks: (decoder,))
    with pytest.raises(ExportRefused, match=r"'vae_decoder' refused at batch 1, frame 0: mean error .* is over 1e-07"):
        pipeline.write_graphs(networks, tmp_path / "models" / V15, precision=profiles.FP16)
    assert list((tmp_path / "models").iterdir()) == []


def test_mean_and_maximum_are_both_bounds() -> None:
    wanted = np.zeros((1, *contract.FACES.shape), np.uint8)
    few, many = wanted.copy(), np.full_like(wanted, 3)
    few[0, 0, 0, 0] = 9
    assert gate.hold(contract.VAE_DECODER, wanted, np.full_like(wanted, 2)).mean == 2
    with pytest.raises(ExportRefused, match="maximum error 9 is over 8"):
        gate.hold(contract.VAE_DECODER, wanted, few)
    with pytest.raises(ExportRefused, match="mean error 3 is over 2"):
        gate.hold(contract.VAE_DECODER, wanted, many)
    latents = np.zeros((1, *contract.LATENTS.shape), np.float16)
    with pytest.raises(ExportRefused):
        gate.hold(contract.UNET, latents, np.full_like(latents, np.nan))


def test_every_frame_is_held_on_its_own_and_the_one_that_is_off_is_named() -> None:
    """One frame of 16 whose mean is five times its bound: over all of them it would be within."""
    wanted = np.zeros((16, *contract.LATENTS.shape), np.float16)
    actual = wanted.copy()
    actual[13] = 0.05
    check = gate.measured("unet", contract.LATENTS, wanted, actual, gate.LATENT_BOUNDS)
    assert (check.batch, check.passed) == (16, False)
    assert check.maximum == check.mean == pytest.approx(0.05, rel=1e-3)
    assert np.abs(actual).mean(dtype=np.float64) < gate.LATENT_BOUNDS.mean
    with pytest.raises(ExportRefused, match=r"'unet' refused at batch 16, frame 13: mean error 0\.05 is over 0\.01"):
        check.require()
    actual[13] = 0
    actual[9, 0, 0, 0] = np.nan
    with pytest.raises(ExportRefused, match=r"refused at batch 16, frame 9: maximum error nan is over 0\.5"):
        gate.hold(contract.UNET, wanted, actual)


def test_every_size_that_serves_is_held() -> None:
    assert gate.gate_batches(contract.UNET) == gate.gate_batches(contract.VAE_DECODER) == (1, 4, 5, 8, 16)
    assert gate.gate_batches(contract.LIPSYNC) == (1, 4, 5, 8, 16)
    assert gate.gate_batches(contract.VAE_ENCODER) == (1, 4, 5, 8)
    assert gate.gate_batches(contract.AUDIO_ENCODER) == (1,)


def test_the_sizes_of_an_optimisation_profile_are_held_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.BATCH_PROFILES, contract.UNET.name, ((2, 6, 16), (1, 3, 12)))
    assert gate.gate_batches(contract.UNET) == (1, 2, 3, 4, 5, 6, 8, 12, 16)


def test_the_references_frames_fill_a_batch_and_no_repetition_is_like_another(
    halved: tuple[Path, list[pipeline.Written]],
) -> None:
    order = gate.repeated_frames(4, 16)
    assert order == [0, 1, 2, 3, 1, 2, 3, 0, 2, 3, 0, 1, 3, 0, 1, 2]
    reference = gate.Reference.load(halved[0] / V15)
    many = reference.repeated(16)
    for name in ("crops", "audio_features", "face_latents", "latents", "faces"):
        found, kept = getattr(many, name), getattr(reference, name)
        assert all(np.array_equal(found[place], kept[frame]) for place, frame in enumerate(order)), name
    assert len(reference.repeated(1)) == 1 and len(reference.repeated(5)) == 5


def test_an_answer_with_two_repetitions_in_each_others_place_is_refused(
    halved: tuple[Path, list[pipeline.Written]],
) -> None:
    wanted = gate.Reference.load(halved[0] / V15).repeated(16).faces
    swapped = np.concatenate((wanted[:8], wanted[12:], wanted[8:12]))
    with pytest.raises(ExportRefused, match="refused at batch 16, frame 8"):
        gate.hold(contract.VAE_DECODER, wanted, swapped)


def test_a_network_near_the_end_of_fp16_is_refused_by_name_and_layer(weights: Path) -> None:
    networks = musetalk.load(weights, V15)
    decoder = networks.vae.decoder
    decoder.conv_in.weight.data.mul_(1e6)  # the next norm makes the pictures plain again
    said = r"'vae_decoder' reaches \d+ in float32 at its layer \S+, and 4 times that is over the 65504 of FP16"
    with pytest.raises(HeadroomLacking, match=said) as refusal:
        samples.reference(networks)
    assert refusal.value.layer in dict(decoder.named_modules())
    assert f"--headroom says (default {gate.HEADROOM:g}" in str(refusal.value)
    decoder.conv_in.weight.data.mul_(30_000 / refusal.value.largest)  # two times fit, four do not
    with pytest.raises(HeadroomLacking, match=r"reaches (29|30)\d\d\d in"):
        samples.reference(networks)
    assert len(samples.reference(networks, headroom=2)) == samples.FRAMES


def test_headroom_is_of_the_largest_activation_and_what_is_no_number_has_none() -> None:
    gate.require_headroom("unet", "conv_in", 65_504 / 4)
    gate.require_headroom("unet", "conv_in", 65_504, headroom=1)
    for largest in (65_504 / 4 + 1, float("inf"), float("nan")):
        with pytest.raises(HeadroomLacking):
            gate.require_headroom("unet", "conv_in", largest)
    network = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())
    with (
        pytest.raises(HeadroomLacking, match="inf in float32 at its layer 0"),
        samples._within_half(network, "unet", 1),
    ):
        network(torch.tensor([float("nan")]))
        network(torch.tensor([1.0]))


def test_the_headroom_asked_for_reaches_the_check(copied: Path, tmp_path: Path) -> None:
    options = ("--target", "onnx", "--profile", V15, "--models-dir", str(copied))
    result = run(*options, "--model-repository", str(tmp_path / "repository"), "--headroom", "1e6")
    assert result.exit_code == 1
    assert "and 1e+06 times that is over the 65504 of FP16" in " ".join(result.output.split())
    assert not (tmp_path / "repository").exists()


def test_the_reference_is_drawn_faces_and_a_voice(halved: tuple[Path, list[pipeline.Written]]) -> None:
    reference = gate.Reference.load(halved[0] / V15)
    assert len(reference) == 4
    assert 30 < reference.crops.mean() < 220 and reference.crops.std() > 20
    assert np.abs(np.diff(reference.crops.astype(int), axis=1)).mean() < 12  # a picture, not noise
    assert all(reference.audio_features[i].std() > 0.1 for i in range(4))
    assert not np.array_equal(reference.audio_features[0], reference.audio_features[1])
    assert np.array_equal(samples.crops.__wrapped__(), reference.crops)  # drawn again
    with pytest.raises(GraphUnfit, match="different lengths"):
        dataclasses.replace(reference, faces=reference.faces[:2])
    with pytest.raises(GraphUnfit, match="nothing can be held to it"):
        gate.Reference.load(halved[0])


# -- from the command line to the repository --------------------------------------------------------------------------


def run(*options: str) -> Any:
    return CliRunner().invoke(app, list(options), env={"COLUMNS": "200"})


def test_weights_become_a_repository(copied: Path, tmp_path: Path) -> None:
    options = (
        *("--target", "cpu", "--profile", V15, "--decoder", "taesd"),
        *("--models-dir", str(copied), "--model-repository", str(tmp_path / "repository")),
    )
    result = run(*options)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "repository/cpu"
    assert {path.name for path in folder.iterdir()} == {model.name for model in contract.MODELS}
    decoder = onnxruntime.InferenceSession(folder / "vae_decoder/1/model.onnx")
    notes = decoder.get_modelmeta().custom_metadata_map
    assert notes["decoder"] == "taesd"
    assert notes[contract.WEIGHTS_ID] in (folder / "lipsync/config.pbtxt").read_text()
    assert (folder / "unet/1/model.py").is_file()
    reference = samples.reference(musetalk.load(copied, V15, "taesd"))
    (faces,) = decoder.run(None, reference.feeds(contract.VAE_DECODER))
    assert np.abs(faces.astype(int) - reference.faces).max() <= 1


def test_graphs_that_are_there_are_used(
    weights: Path, halved: tuple[Path, list[pipeline.Written]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--target", "onnx", "--profile", V15, "--models-dir", str(halved[0]))
    result = run(*options, "--model-repository", str(tmp_path))  # no weight file is in this folder
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "GPU memory of target onnx at the largest batches" in said and "parser takes no" not in said
    assert not list((tmp_path / "onnx").rglob("model.py"))
    assert (tmp_path / "onnx/unet/1/unet.onnx.data").is_file()
    again = run(*options, "--again", "--model-repository", str(tmp_path))
    assert again.exit_code == 1 and "needs weights that are not there" in " ".join(again.output.split())


def test_what_is_exported_is_known_with_its_decoder(halved: tuple[Path, list[pipeline.Written]]) -> None:
    folder = halved[0] / V15
    assert bundle.is_exported(folder, profiles.FP16, "sd-vae")
    assert not bundle.is_exported(folder, profiles.FP16, "taesd")
    assert not bundle.is_exported(folder, profiles.FP32, "sd-vae")


def test_a_large_graph_takes_its_weights_along(halved: tuple[Path, list[pipeline.Written]], tmp_path: Path) -> None:
    found = pipeline.publish(halved[0], V15, "onnx", tmp_path)
    place = tmp_path / "onnx/unet/1"
    assert sorted(path.name for path in place.iterdir()) == ["model.onnx", "unet.onnx.data"]
    reference = gate.Reference.load(halved[0] / V15)
    (latents,) = onnxruntime.InferenceSession(place / "model.onnx").run(None, reference.feeds(contract.UNET))
    gate.hold(contract.UNET, reference.latents, latents)
    listed = dict(bundle.sizes(found))
    assert listed[halved[0] / V15 / "fp16/unet.onnx.data"] > 1_500_000 > listed[halved[0] / V15 / "fp16/unet.onnx"]
    with pytest.raises(GraphsMissing, match=r"lacks unet\.onnx, vae_decoder\.onnx"):
        pipeline.publish(halved[0], V15, "cpu", tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--profile", V15, "--target", "onnx"], "needs weights that are not there"),
        (["--profile", V15, "--decoder", "sdxl"], "decoders that exist: sd-vae, sd-vae-lower, taesd"),
        (["--profile", "musetalk-v2"], "profiles that exist: demo, musetalk-v15, musetalk-v1"),
    ],
)
def test_the_command_refuses_in_words(options: list[str], said: str, tmp_path: Path) -> None:
    result = run(*options, "--models-dir", str(tmp_path / "models"), "--model-repository", str(tmp_path / "repository"))
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


# -- Triton's configuration -------------------------------------------------------------------------------------------


def parsed(model: contract.Model, target: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse(config.model_config(model, "musetalk-v15-0", target), model_config_pb2.ModelConfig())


SERVED = (contract.UNET, contract.VAE_DECODER, contract.VAE_ENCODER)
LARGEST = {"unet": 16, "vae_decoder": 16, "vae_encoder": 8}


@pytest.mark.parametrize("target", config.TARGETS)
@pytest.mark.parametrize("model", SERVED, ids=lambda model: model.name)
def test_every_target_batches_and_lets_live_requests_pass(model: contract.Model, target: str) -> None:
    found = parsed(model, target)
    names = [tensor.name for tensor in (*found.input, *found.output)]
    assert (found.name, found.max_batch_size) == (model.name, LARGEST[model.name])
    assert names == [tensor.name for tensor in (*model.inputs, *model.outputs)]
    assert found.parameters[contract.WEIGHTS_ID].string_value == "musetalk-v15-0"
    batching = found.dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (2, 2)
    assert set(batching.priority_queue_policy) == {1}
    live, batch = batching.priority_queue_policy[1], batching.default_queue_policy
    assert 0 < live.default_timeout_microseconds < batch.default_timeout_microseconds
    for policy in (live, batch):
        assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
        assert policy.max_queue_size > 0 and policy.allow_timeout_override


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
@pytest.mark.parametrize("model", SERVED, ids=lambda model: model.name)
def test_gpu_models_are_warm_at_the_batches_that_come(model: contract.Model, target: str) -> None:
    found = parsed(model, target)
    (group,) = found.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 1)
    assert found.backend == {"onnx": "onnxruntime", "tensorrt": "tensorrt"}[target]
    warmed = [8, 1] if model is contract.VAE_ENCODER else [16, 8, 1]  # the largest first
    assert [warm.batch_size for warm in found.model_warmup] == warmed
    for warm in found.model_warmup:
        assert set(warm.inputs) == {tensor.name for tensor in model.inputs}
        for tensor in model.inputs:
            given = warm.inputs[tensor.name]
            assert (list(given.dims), given.zero_data) == (list(tensor.shape), True)
            assert model_config_pb2.DataType.Name(given.data_type) == f"TYPE_{tensor.triton_dtype}"


def test_onnx_runtime_runs_on_cuda_with_an_arena_that_does_not_double() -> None:
    found = parsed(contract.UNET, "onnx")
    (provider,) = found.optimization.execution_accelerators.gpu_execution_accelerator
    assert provider.name == "cuda"
    assert found.parameters["arena_extend_strategy"].string_value == "1"
    assert found.parameters["cudnn_conv_algo_search"].string_value == "1"
    assert found.parameters["enable_mem_pattern"].string_value == "0"


def test_graphs_for_onnx_runtime_on_a_gpu_have_no_name_for_the_batch(
    halved: tuple[Path, list[pipeline.Written]], tmp_path: Path
) -> None:
    files = {written.graph: written.path for written in halved[1]}
    repository = write_repository(tmp_path, config.ONNX, files, "musetalk-v15-0")
    reference = gate.Reference.load(halved[0] / V15)
    for model in SERVED:
        place = repository / model.name / "1/model.onnx"
        graph = onnx.load(place, load_external_data=False).graph
        assert not [
            axis.dim_param
            for value in (*graph.input, *graph.output, *graph.value_info)
            for axis in value.type.tensor_type.shape.dim
            if axis.dim_param
        ]
        (answer,) = onnxruntime.InferenceSession(place).run(None, reference.feeds(model))
        gate.hold(model, reference.output(model), answer)


def test_the_arena_holds_less_the_way_it_is_served(halved: tuple[Path, list[pipeline.Written]], tmp_path: Path) -> None:
    """Of the VAE's encoder, which is float32, so that a CPU runs it without casts."""
    named, unnamed = halved[0] / V15 / "vae_encoder.onnx", tmp_path / "vae_encoder.onnx"
    write_for_onnxruntime(named, unnamed)
    patterns, before, after = (
        arena.held(graph, warm, [3, 4, 3, 4], patterns)
        for graph, warm, patterns in ((named, [1, 4], True), (named, [4, 1], False), (unnamed, [4, 1], False))
    )
    assert patterns[1] > 1.3 * patterns[0]  # a block for every batch size that comes again
    assert before[0] == before[1] and after[0] == after[1]
    assert patterns[1] > 1.5 * before[1] and before[1] > 1.2 * after[1]


@pytest.mark.parametrize("model", SERVED, ids=lambda model: model.name)
def test_tensorrt_uses_every_profile_and_cuda_graphs(model: contract.Model) -> None:
    found = parsed(model, "tensorrt")
    batches = config.BATCH_PROFILES[model.name]
    assert list(found.instance_group[0].profile) == [str(index) for index in range(len(batches))]
    assert batches[0][0] == 1 and batches[0][2] == LARGEST[model.name]  # Triton looks at the first
    assert all(smallest <= optimal <= largest for smallest, optimal, largest in batches)
    cuda = found.optimization.cuda
    assert cuda.graphs
    graphed = [spec.batch_size for spec in cuda.graph_spec]
    assert graphed == [1, 2, 4, 8, 16][: 4 if model is contract.VAE_ENCODER else 5]
    assert set(found.dynamic_batching.preferred_batch_size) < set(graphed)
    for spec in cuda.graph_spec:
        shapes = {name: tuple(shape.dim) for name, shape in spec.input.items()}
        assert shapes == {tensor.name: tensor.shape for tensor in model.inputs}


# -- memory -----------------------------------------------------------------------------------------------------------


def test_activations_are_counted_by_who_is_alive() -> None:
    """a = x + x; b = view of a; c = b + b; y = c + b: at the end b (that is a), c and y are alive."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("Add", ["b", "b"], ["c"]),
        helper.make_node("Add", ["c", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 100])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 10, 10])],
        [helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 10, 10])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert memory.peak_of(model, 7) == 3 * 7 * 100 * 2


def test_the_budget_grows_with_the_batch_and_counts_every_file(halved: tuple[Path, list[pipeline.Written]]) -> None:
    files = {written.graph: written.path for written in halved[1]}
    shares, engines = (memory.budget(files, target) for target in ("onnx", "tensorrt"))
    assert [(share.model, share.batch) for share in shares] == list(LARGEST.items())
    for written, share, engine in zip(halved[1], shares, engines, strict=False):
        assert share.weights == engine.weights == written.size
        one, alive = (memory.peak_activations(written.path, batch) for batch in (1, share.batch))
        assert alive == pytest.approx(share.batch * one, rel=0.02)
        assert share.activations == alive * memory.ARENA[share.model]
        assert engine.activations == pytest.approx(alive * len(config.BATCH_PROFILES[share.model]) * 1.1)
    faces = 16 * 256 * 256 * 3
    assert shares[1].activations > 8 * faces
    assert memory.total(shares) == sum(share.total for share in shares) + memory.ALLOWANCE


def test_a_budget_that_does_not_fit_fails(halved: tuple[Path, list[pipeline.Written]]) -> None:
    command = [sys.executable, "-m", "export.memory", "--models-dir", str(halved[0]), "--card-gb"]
    fits = subprocess.run([*command, "24"], capture_output=True, text=True)
    assert fits.returncode == 0, fits.stdout + fits.stderr
    tight = subprocess.run([*command, "1"], capture_output=True, text=True)
    assert tight.returncode == 1 and "does not fit" in tight.stdout
    said = " ".join(tight.stdout.split())
    assert "--decoder taesd" in said and "the target tensorrt takes" not in said  # small networks: it takes more


def test_the_demos_graphs_are_published_uncounted(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not folded: sequences have no size."""
    models = ("--models-dir", str(exported / "models"))
    result = run("--target", "onnx", "--profile", "demo", *models, "--model-repository", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "onnx/unet/1/model.onnx").is_file() and "GPU memory" not in result.output
    with pytest.raises(SystemExit):
        memory.main(["--profile", "demo", *models])
    assert "is a sequence" in " ".join(capsys.readouterr().out.split())


def test_the_budget_is_held_against_what_is_free(
    halved: tuple[Path, list[pipeline.Written]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_gpu.Gpu(used=2 << 30).install(monkeypatch, fake_gpu.nvml())
    assert memory.card()[0] == (23_028 << 20) - (2 << 30)
    memory.main(["--models-dir", str(halved[0])])
    said = " ".join(capsys.readouterr().out.split())
    assert "held against NVIDIA driver 560.35.03, CUDA 12.6; NVIDIA RTX A5000" in said
    assert "22.0 of 24.1 GB free, ECC on" in said
    fake_gpu.Gpu(used=22 << 30).install(monkeypatch, fake_gpu.nvml())
    with pytest.raises(SystemExit):
        memory.main(["--models-dir", str(halved[0])])
    assert "does not fit into 0.5 GB" in " ".join(capsys.readouterr().out.split())


def test_without_a_gpu_it_is_held_against_an_a5000_with_ecc(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.Gpu(cuda=0).install(monkeypatch)
    assert memory.card() == (
        24_146_608_128,
        "an RTX A5000 with ECC, 24.1 GB, since no GPU can be used: there is no NVIDIA driver; "
        "driver 560 or later is needed",
    )


# -- TensorRT ---------------------------------------------------------------------------------------------------------


def test_without_tensorrt_nothing_is_begun(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    options = ["--models-dir", str(copied), "--model-repository", str(tmp_path / "repository")]
    result = run("--target", "tensorrt", "--profile", V15, *options)
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "Python has no tensorrt_bindings" in said and f"tensorrt-cu12-bindings=={tensorrt.TENSORRT_VERSION}" in said
    assert "'.[export,tensorrt]'" in said
    assert not (copied / V15).exists() and not (tmp_path / "repository").exists()


def test_bindings_without_their_libraries_are_refused_with_the_librarys_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the wheel of bindings does where libnvinfer is not."""
    said = "libnvinfer.so.10: cannot open shared object file"
    (tmp_path / "tensorrt_bindings.py").write_text(f"raise ImportError({said!r}, name='tensorrt')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt_bindings", raising=False)
    with pytest.raises(EngineUnavailable, match=rf"cannot be loaded \({re.escape(said)}\)\. .*tensorrt-cu12-libs"):
        tensorrt.require_tensorrt()


def test_another_tensorrt_or_no_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", module(__version__="10.16.1.11"))
    with pytest.raises(EngineUnavailable, match=r"TensorRT is 10\.16\.1\.11, and .*24\.10-py3 runs plans of 10\.5\.0"):
        tensorrt.require_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", module(__version__="10.5.0"))
    fake_gpu.Gpu(count=fake_gpu.Error.cudaErrorNoDevice).install(monkeypatch)
    with pytest.raises(EngineUnavailable, match="no GPU can be used"):
        tensorrt.require_tensorrt()


def test_plans_are_for_the_triton_whose_tensorrt_the_image_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tensorrt.serving_triton() == (tensorrt.TRITON_IMAGE, tensorrt.TENSORRT_VERSION)
    monkeypatch.setattr(tensorrt, "TAKEN_FROM", tmp_path / "triton-image")
    (tmp_path / "triton-image").write_text("nvcr.io/nvidia/tritonserver:25.07-py3 10.11.0\n")
    assert tensorrt.serving_triton() == ("nvcr.io/nvidia/tritonserver:25.07-py3", "10.11.0")
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", module(__version__="10.5.0"))
    with pytest.raises(EngineUnavailable, match=r"10\.5\.0, and .*25\.07-py3 runs plans of 10\.11\.0 only\. Build the"):
        tensorrt.require_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", module(__version__="10.11.0.33"))
    fake_gpu.Gpu(count=fake_gpu.Error.cudaErrorNoDevice).install(monkeypatch)
    with pytest.raises(EngineUnavailable, match="no GPU can be used"):
        tensorrt.require_tensorrt()


@pytest.mark.parametrize(("batch", "profile"), [(1, 1), (4, 1), (5, 0), (8, 0), (12, 0), (13, 2), (16, 2)])
def test_a_batch_takes_the_profile_made_for_its_like(batch: int, profile: int) -> None:
    assert tensorrt.nearest_profile(contract.UNET, batch) == profile
    assert tensorrt.nearest_profile(contract.VAE_DECODER, batch) == 0


def test_an_operator_that_the_parser_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=1),
        helper.make_node("SequenceAt", ["s", "i"], ["y"]),
    ]
    sizes = {"x": 4, "y": 1}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in sizes.items()]
    index = helper.make_tensor("i", TensorProto.INT64, [], [0])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [index])), tmp_path / "unet.onnx")
    files = {model.name: tmp_path / "unet.onnx" for model in SERVED}
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)  # it is said on any machine
    with pytest.raises(EngineFailed, match=r"'unet': its parser takes no SequenceAt, SplitToSequence.*target onnx"):
        tensorrt.build_engines(tmp_path, bundle.Bundle(files, "x"), print, print)


def test_operators_are_counted_in_subgraphs_and_by_domain(tmp_path: Path) -> None:
    float_, bool_ = TensorProto.FLOAT, TensorProto.BOOL
    inner = helper.make_graph(
        [helper.make_node("Det", ["x"], ["inside"])], "b", [], [helper.make_tensor_value_info("inside", float_, None)]
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Attention", ["y"], ["z"], domain="com.microsoft"),
    ]
    given = [helper.make_tensor_value_info("c", bool_, []), helper.make_tensor_value_info("x", float_, [2, 2])]
    graph = helper.make_graph(nodes, "g", given, [helper.make_tensor_value_info("z", float_, None)])
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    assert operators.operators(tmp_path / "g.onnx") == {"If": 1, "Det": 2, "com.microsoft::Attention": 1}
    assert operators.unknown_operators(tmp_path / "g.onnx") == ["Det", "com.microsoft::Attention"]


def module(**names: Any) -> Any:
    fake: Any = ModuleType("tensorrt_bindings")
    vars(fake).update(names)
    return fake


class FakeTensorRT:
    """TensorRT's builder as `export.tensorrt` uses it; records what it was asked for."""

    def __init__(
        self, parses: bool = True, plan: bytes | None = b"plan", cached: bool = True, foreign: bytes | None = None
    ) -> None:
        """cached: whether it has a timing cache in the end; foreign: the content of one that it does not take."""
        self.shapes: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
        self.timings: list[bytes] = []
        severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)
        logger = type("ILogger", (), {"Severity": severity, "__init__": lambda self: None})
        cache = SimpleNamespace(serialize=lambda: b"timings")

        def create_timing_cache(content: bytes) -> Any:
            self.timings.append(content)
            return content

        settings = SimpleNamespace(
            set_memory_pool_limit=lambda pool, size: None,
            create_timing_cache=create_timing_cache,
            set_timing_cache=lambda found, ignore_mismatch: found != foreign,
            get_timing_cache=lambda: cache if cached else None,
            add_optimization_profile=lambda profile: None,
        )
        builder = SimpleNamespace(
            create_network=lambda flags: flags,
            create_builder_config=lambda: settings,
            create_optimization_profile=lambda: SimpleNamespace(
                set_shape=lambda name, *shapes: self.shapes.append((name, *shapes))
            ),
            build_serialized_network=lambda network, config: plan,
        )
        parser = SimpleNamespace(
            parse_from_file=lambda path: parses,
            num_errors=1,
            get_error=lambda index: SimpleNamespace(desc=lambda: "node 7 is strange"),
        )
        self.module = module(
            __version__="10.5.0",
            ILogger=logger,
            Builder=lambda log: builder,
            OnnxParser=lambda network, log: parser,
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
            MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        )


def test_an_engine_is_built_for_every_batch_profile_with_the_timings_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, timings = FakeTensorRT(), tmp_path / "engines/gpu.timing"
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", fake.module)
    profiles = [(1, 8, 32), (1, 1, 4)]
    for _ in range(2):
        assert tensorrt.build(contract.VAE_DECODER, tmp_path / "vae_decoder.onnx", timings, profiles) == b"plan"
    assert fake.timings == [b"", b"timings"]
    assert fake.shapes[:2] == [
        ("latents", (1, 4, 32, 32), (8, 4, 32, 32), (32, 4, 32, 32)),
        ("latents", (1, 4, 32, 32), (1, 4, 32, 32), (4, 4, 32, 32)),
    ]
    assert timings.read_bytes() == b"timings"


def test_timings_of_another_device_are_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timings = tmp_path / "gpu.timing"
    timings.write_bytes(b"another's")
    fake = FakeTensorRT(foreign=b"another's")
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", fake.module)
    tensorrt.build(contract.UNET, tmp_path / "unet.onnx", timings, [(1, 8, 32)])
    assert fake.timings == [b"another's", b""] and timings.read_bytes() == b"timings"
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", FakeTensorRT(cached=False).module)
    assert tensorrt.build(contract.UNET, tmp_path / "unet.onnx", tmp_path / "none", [(1, 8, 32)]) == b"plan"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("fake", "said"),
    [(FakeTensorRT(parses=False), "node 7 is strange"), (FakeTensorRT(plan=None), "the builder gave no reason")],
)
def test_an_engine_that_fails_says_so_and_points_to_the_onnx_target(
    fake: FakeTensorRT, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", fake.module)
    with pytest.raises(EngineFailed, match=f"no engine of 'unet': {said}.*--target onnx"):
        tensorrt.build(contract.UNET, tmp_path / "unet.onnx", tmp_path / "gpu.timing", [(1, 8, 32)])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """A GPU and TensorRT, as far as building goes."""
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", fake.module)
    fake_gpu.Gpu().install(monkeypatch, fake_gpu.nvml())
    return fake


def engine(offset: float, profiles: int = 0, only: tuple[int, int] | None = None) -> Any:
    """A stand-in for an engine on the GPU: the reference's own answer, and something more. profiles: 0 for as asked;
    only: the profile and batch that are off."""

    def answer(model: contract.Model, plan: bytes) -> Any:
        assert plan == b"plan"

        def run(feeds: dict[str, Any], profile: int) -> Any:
            reference = gate.Reference.load(run_folder[0])
            batch = len(next(iter(feeds.values())))
            smallest, _, largest = config.BATCH_PROFILES[model.name][profile]
            assert smallest <= batch <= largest
            if (profile, batch) == only or only is None:
                offsets = np.asarray(offset, model.outputs[0].dtype)
            else:
                offsets = np.zeros((), model.outputs[0].dtype)
            return reference.repeated(batch).output(model) + offsets

        return SimpleNamespace(run=run, profiles=profiles or len(config.BATCH_PROFILES[model.name]))

    return answer


run_folder: list[Path] = []


def test_engines_that_pass_are_published_and_used_again(
    halved: tuple[Path, list[pipeline.Written]], tmp_path: Path, machine: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder[:] = [halved[0] / V15]
    monkeypatch.setattr(tensorrt, "Engine", engine(0))
    said: list[str] = []
    checks: list[gate.Check] = []
    pipeline.publish(halved[0], V15, "tensorrt", tmp_path, said.append, checks.extend)
    assert [(check.graph, check.batch) for check in checks] == [
        *(("unet, profile 0", batch) for batch in (1, 4, 5, 8, 16)),
        *(("unet, profile 1", batch) for batch in (1, 4)),
        *(("unet, profile 2", batch) for batch in (1, 4, 5, 8, 16)),
        *(("vae_decoder, profile 0", batch) for batch in (1, 4, 5, 8, 16)),
        *(("vae_encoder, profile 0", batch) for batch in (1, 4, 5, 8)),
    ]
    assert sorted(path.name for path in (tmp_path / "tensorrt/unet/1").iterdir()) == ["model.plan"]
    assert (tmp_path / "tensorrt/vae_encoder/1/model.plan").read_bytes() == b"plan"
    engines = {path.name for path in (halved[0] / V15 / "engines").iterdir()}
    digest = tensorrt.engine_hash(halved[0] / V15 / "fp16/unet.onnx", config.BATCH_PROFILES["unet"])
    assert f"unet-nvidia-rtx-a5000-10.5.0-{digest}.plan" in engines
    assert "nvidia-rtx-a5000-10.5.0.timing" in engines and len(engines) == 4
    assert sum(words.startswith("building") for words in said) == 3
    said.clear()
    pipeline.publish(halved[0], V15, "tensorrt", tmp_path, said.append)
    assert not any(words.startswith("building") for words in said)


def test_an_engine_that_computes_something_else_is_not_published(
    halved: tuple[Path, list[pipeline.Written]], tmp_path: Path, machine: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder[:] = [halved[0] / V15]
    monkeypatch.setattr(tensorrt, "Engine", engine(1))
    with pytest.raises(ExportRefused, match="'unet, profile 0' refused at batch 1, frame 0: maximum error"):
        pipeline.publish(halved[0], V15, "tensorrt", tmp_path)
    monkeypatch.setattr(tensorrt, "Engine", engine(1, only=(2, 16)))  # right at 8, wrong at 16
    with pytest.raises(ExportRefused, match="'unet, profile 2' refused at batch 16, frame 0"):
        pipeline.publish(halved[0], V15, "tensorrt", tmp_path)
    monkeypatch.setattr(tensorrt, "Engine", engine(0, profiles=1))
    with pytest.raises(EngineFailed, match="it has 1 optimisation profiles instead of 3"):
        pipeline.publish(halved[0], V15, "tensorrt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_of_an_engine_sees_weights_and_profiles(tmp_path: Path) -> None:
    graph = tmp_path / "unet.onnx"
    graph.write_bytes(b"graph")
    hashes = [tensorrt.engine_hash(graph, profiles) for profiles in ([(1, 8, 32)], [(1, 8, 16)], [(1, 8, 32)] * 2)]
    bundle.data_file(graph).write_bytes(b"weights")
    hashes.append(tensorrt.engine_hash(graph, [(1, 8, 32)]))
    assert len(set(hashes)) == 4


class FakeContext:
    """An execution context that refuses one kind of call."""

    def __init__(self, refused: str) -> None:
        self.refused = refused

    def __getattr__(self, name: str) -> Any:
        return lambda *given: name != self.refused


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ("set_optimization_profile_async", "optimisation profile 0 cannot be set"),
        ("set_input_shape", r"profile 0 takes no latents of \(2, 4, 32, 32\)"),
        ("set_tensor_address", "it has no input latents"),
        ("execute_async_v3", "the engine did not run"),
        ("", ""),
    ],
)
def test_an_engine_that_refuses_a_call_says_which(
    refused: str, said: str, machine: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SimpleNamespace(create_execution_context=lambda: FakeContext(refused), num_optimization_profiles=1)
    machine.module.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=lambda content: plan)
    runner, given = tensorrt.Engine(contract.VAE_DECODER, b"plan"), {"latents": np.zeros((2, 4, 32, 32), np.float16)}
    if refused:
        with pytest.raises(EngineFailed, match=said):
            runner.run(given)
    else:
        assert runner.run(given).shape == (2, *contract.FACES.shape) and runner.profiles == 1


def test_importing_these_modules_imports_no_torch() -> None:
    names = "export.cli, export.cuda, export.tensorrt, export.gate, export.profiles, export.memory, export.pipeline"
    subprocess.run([sys.executable, "-c", f"import sys, {names}; assert 'torch' not in sys.modules"], check=True)


def test_the_unet_step_hands_the_network_its_own_dtype(weights: Path) -> None:
    seen: list[Any] = []

    class Probe(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1).half())

        def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
            seen.extend((sample.dtype, encoder_hidden_states.dtype))
            return SimpleNamespace(sample=sample[:, :4])

    step = UNetStep(Probe())
    step(torch.zeros(1, 50, 384).half(), torch.zeros(1, 8, 32, 32).half())
    assert seen == [torch.float16, torch.float16]


# -- on the real Triton -----------------------------------------------------------------------------------------------


def test_half_graphs_run_in_triton_and_the_queue_knows_priority_and_time(
    halved: tuple[Path, list[pipeline.Written]], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The FP16 graphs under the Python backend: every answer is the reference's, and the queues have rules."""
    files = {written.graph: written.path for written in halved[1]}
    repository = write_repository(tmp_path, config.CPU, files, "musetalk-v15-0")
    reference = gate.Reference.load(halved[0] / V15)

    with EmbeddedTriton(repository, exported / "models", tmp_path / "run") as server:
        served.main(["--url", server.grpc_url, "--models-dir", str(halved[0])])
        table = capsys.readouterr().out
        feeds = reference.feeds(contract.LIPSYNC)
        for priority in (0, *contract.Priority):
            faces = served.ask(server.grpc_url, contract.LIPSYNC, feeds, priority=priority)
            gate.hold(contract.VAE_DECODER, reference.faces, faces)
        with pytest.raises(ServerUnavailable, match="timeout expired"):
            served.ask(server.grpc_url, contract.LIPSYNC, feeds, timeout=1)  # microseconds: a batch waits longer
        dataclasses.replace(reference, latents=reference.latents + np.float16(1)).save(tmp_path)
        (tmp_path / V15).symlink_to(tmp_path)
        with pytest.raises(SystemExit):
            served.main(["--url", server.grpc_url, "--models-dir", str(tmp_path)])
        assert "refused: graph 'unet' refused at batch 1, frame 0: maximum error" in " ".join(
            capsys.readouterr().out.split()
        )
    assert rows(table) == HELD


# Models and batch sizes, as Triton's answers are held.
HELD = [
    *(("unet", batch) for batch in (1, 4, 5, 8, 16)),
    *(("vae_decoder", batch) for batch in (1, 4, 5, 8, 16)),
    *(("vae_encoder", batch) for batch in (1, 4, 5, 8)),
    *(("lipsync", batch) for batch in (1, 4, 5, 8, 16)),
]


def rows(table: str) -> list[tuple[str, int]]:
    """Graph and batch of each row of a printed table of errors."""
    cells = [line.split("│") for line in table.splitlines() if "│ " in line and "error" not in line]
    return [(row[1].strip(), int(row[3])) for row in cells]


def test_the_demo_is_held_to_torch_at_every_size_that_serves(
    triton: EmbeddedTriton, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = demo.build(0)
    trained.load(networks, exported / "models/demo")
    (tmp_path / "demo").mkdir()
    samples.reference(networks).save(tmp_path / "demo")
    served.main(["--url", triton.grpc_url, "--profile", "demo", "--models-dir", str(tmp_path)])
    assert rows(capsys.readouterr().out) == HELD


def test_a_triton_that_is_not_there_is_named(
    halved: tuple[Path, list[pipeline.Written]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        served.main(["--url", "127.0.0.1:1", "--models-dir", str(halved[0])])
    assert "refused: Triton at 127.0.0.1:1: unet: " in " ".join(capsys.readouterr().out.split())
